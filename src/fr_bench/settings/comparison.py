"""What it takes to compare the configs of two runs."""

from __future__ import annotations

from typing import Any

# Settings that only say what is written down, or how long: a run with others of these is the same run.
LOGGING = (
    "checkpoint", "cluster", "console", "dry_run", "eval_every", "hang_timeout", "log_every", "max_time", "profile",
    "resume", "run_dir", "sweep_dir", "trace", "wandb",
)  # fmt: skip
# Settings that configs of older runs do not have, with the value that says what those runs did.
SINCE_LATER = {
    "replicas": 1,
    "model.norm": "batch",
    "compile": False,
    "cuda_graphs": False,
    "streams": True,
    "profile": 0,
    "label_smoothing": 0.0,
}


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optimizer": {"lr": 0.1}}`` as ``{"optimizer.lr": 0.1}``."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found
