"""Where time and bytes go: stopwatches, profiles, saved tensors by storage."""
