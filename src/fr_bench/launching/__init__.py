"""One run from its parent's side: processes, first cause of an end, going on from an earlier run."""
