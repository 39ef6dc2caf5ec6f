"""From a command line to the checked, plain settings of every job."""
