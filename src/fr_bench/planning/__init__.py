"""Everything about a run that is decided, predicted or found wrong before a process is started."""
