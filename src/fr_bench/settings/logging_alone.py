"""Settings that only say what is written down, or how long: a run with others of these is the same run."""

LOGGING = (
    "checkpoint", "cluster", "console", "dry_run", "eval_every", "hang_timeout", "log_every", "max_time", "profile",
    "resume", "run_dir", "sweep_dir", "trace", "wandb",
)  # fmt: skip
