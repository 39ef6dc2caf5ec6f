"""Run directories written by hand, as a training run would leave them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

Record = dict[str, Any]
STEPS_PER_EPOCH = 10


def records_of_a_run(
    k: int,
    epochs: int = 3,
    step_s: float = 0.1,
    loss: Callable[[float], float] = lambda epoch: 2.0 / (1 + epoch),
    test_error: Callable[[int], float] = lambda epoch: 0.5 / epoch,
    category_bytes: int = 2**20,
    kinds: tuple[str, ...] = ("train", "eval", "memory", "time", "sigma"),
) -> list[Record]:
    """Five steps a train record; at the end of every epoch one record of each other kind (and module)."""
    records: list[Record] = []
    for step in range(5, epochs * STEPS_PER_EPOCH + 1, 5):
        epoch = step / STEPS_PER_EPOCH
        at = {"step": step, "epoch": epoch, "train_time": step * step_s}
        records.append({"kind": "train", **at, "loss": loss(epoch), "error": 0.5, "lr": 0.1})
        if step % STEPS_PER_EPOCH:
            continue
        for module in range(1, k + 1):
            seconds = {"play_s": 0.2, "learn_s": 0.3, "send_s": 0.1, "wait_s": 0.4, "efficiency": 0.8}
            records.append({"kind": "time", **at, "module": module, **seconds})
            sizes = dict.fromkeys(("parameters", "gradients", "optimizer", "activations"), category_bytes)
            records.append({"kind": "memory", **at, "module": module, "device": "cpu", **sizes, "peak": 2**30})
        for module in range(k + 1):
            records.append({"kind": "sigma", **at, "module": module, "sigma": 0.9, "cosine": 0.9, "norm_ratio": 1.0})
        errors = {"train_error": 0.5, "test_error": test_error(int(epoch))}
        records.append({"kind": "eval", **at, "train_loss": 1.0, **errors})
    return [record for record in records if record["kind"] in kinds]


def write_run(
    path: Path,
    method: str = "fr",
    k: int = 2,
    seed: int = 0,
    *,
    model: str = "tiny",
    dataset: str = "digits",
    records: list[Record] | None = None,
    state: str = "finished",
    error: str | None = None,
    settings: Record | None = None,
    transport: str | None = None,
    origin: Record | None = None,
    **shape: Any,
) -> Path:
    """Writes one run directory and returns it.

    Args:
        records: default ``records_of_a_run(k, **shape)``.
        settings: merged into config.yaml, level by level.
        origin: what origin.json says of the run that this one took over from.
    """
    path.mkdir(parents=True)
    config: Record = {
        "method": {"name": method, "_target_": f"methods.{method}"},
        "model": {"name": model},
        "dataset": {"name": dataset, "limit": None},
        "optimizer": {"lr": 0.1},
        "k": k,
        "seed": seed,
        "batch_size": 8,
        "freeze": [],
        "run_dir": str(path),
        "plan": {
            "cuts": list(range(1, k)),
            "devices": ["cpu"] * k,
            "transport": transport or ("gloo" if k > 1 else "serial"),
            "threads": 1,
        },
    }
    for key, value in copy.deepcopy(settings or {}).items():
        config[key] = config[key] | value if isinstance(value, dict) and key in config else value
    (path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (path / "status.json").write_text(json.dumps({"state": state, "error": error, "started": 1.0 + seed}))
    if origin is not None:
        (path / "origin.json").write_text(json.dumps(origin))
    lines = records_of_a_run(k, **shape) if records is None else records
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    return path
