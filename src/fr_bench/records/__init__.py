"""What a run leaves on disk and shows on the way: run directories, records, console, W&B."""
