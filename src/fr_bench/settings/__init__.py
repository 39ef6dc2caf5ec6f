"""From a command line to the checked, plain settings of every job: all that knows Hydra and OmegaConf."""
