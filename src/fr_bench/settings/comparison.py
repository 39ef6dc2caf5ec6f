"""What it takes to compare the configs of two runs."""

from __future__ import annotations

import os
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
OWN_LOADERS = "fr_bench.data."
# Settings of these loaders: folders and files, and what says where the data lie but not what they are.
PATHS_OF_DATA = ("root", "path")
PLACES_OF_DATA = ("root", "download")


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optimizer": {"lr": 0.1}}`` as ``{"optimizer.lr": 0.1}``."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def with_own_loader(config: dict[str, Any]) -> bool:
    """Whether the data set's loader is one of ours: what settings of others mean is not known here."""
    dataset = config.get("dataset")
    return isinstance(dataset, dict) and str(dataset.get("_target_")).startswith(OWN_LOADERS)


def with_absolute_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The same config with the paths of the data set absolute: a run is looked at from other folders, too."""
    if not with_own_loader(config):
        return config
    given = {key: config["dataset"].get(key) for key in PATHS_OF_DATA}
    absolute = {
        key: os.path.abspath(os.path.expanduser(path)) for key, path in given.items() if path and isinstance(path, str)
    }
    return {**config, "dataset": {**config["dataset"], **absolute}}


def wherever_data_lie(config: dict[str, Any]) -> dict[str, Any]:
    """The config without what a job on another machine, to which the data were copied, has otherwise; what file of the
    user's own they are is named in one way, however it was spelled."""
    if not with_own_loader(config):
        return config
    dataset = with_absolute_paths(config)["dataset"]
    return {**config, "dataset": {key: value for key, value in dataset.items() if key not in PLACES_OF_DATA}}
