"""The typed schema of the config, and the checks across its keys that need neither torch nor data.

Method, model, data set, optimizer and schedule are open groups: a YAML with a ``_target_`` is enough, so
their contents are not declared here (their signatures are checked when the run is planned).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from omegaconf import MISSING

from fr_bench.errors import ConfigError, nearest
from fr_bench.processes.heartbeat import SMALLEST_TIMEOUT_S

COMPONENTS = ("method", "model", "dataset", "optimizer", "schedule")
PARTITIONS = ("auto", "measured", "equal")
NAMED_COMPONENTS = ("method", "model", "dataset")
CHOICES = {
    "precision": ("fp32", "tf32", "bf16", "fp64"),
    "device": ("auto", "cpu", "cuda"),
    "transport": ("auto", "serial", "gloo", "nccl", "ipc"),
    "console": ("auto", "live", "plain", "off"),
    "wandb.mode": ("offline", "online", "disabled"),
}
MOST_THREADS = 1024  # of a module; torch fails in strange ways far above what machines have
SMALLEST = {
    "k": 1,
    "replicas": 1,
    "epochs": 1,
    "max_steps": 1,
    "batch_size": 1,
    "threads": 1,
    "log_every": 1,
    "trace": 0,
    "profile": 0,
}


@dataclass
class WandbConfig:
    """Weights & Biases, which mirrors the run directory."""

    mode: str = MISSING
    project: str = MISSING
    entity: str | None = MISSING
    group: str | None = MISSING
    name: str | None = MISSING
    tags: list[str] = MISSING


@dataclass
class SigmaConfig:
    """The sufficient-direction constant, measured over windows of iterations."""

    every: int = MISSING
    window: int = MISSING


@dataclass
class DiagnosticsConfig:
    """What is measured beside training: untimed, and without an effect on it."""

    sigma: SigmaConfig = MISSING


@dataclass
class CheckpointConfig:
    """How often the whole state of a run is saved, beside the moment at which it stops."""

    every: int | None = MISSING
    minutes: float | None = MISSING
    keep: int | None = MISSING


@dataclass
class Config:
    """Top level of the config. Values and what they mean are in conf/config.yaml: a key missing there is an error."""

    method: Any = MISSING
    model: Any = MISSING
    dataset: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    k: int = MISSING
    replicas: int = MISSING
    seed: int = MISSING
    epochs: int = MISSING
    max_steps: int | None = MISSING
    batch_size: int = MISSING
    eval_every: int | float = MISSING
    precision: str = MISSING
    device: str = MISSING
    devices: list[int] | None = MISSING
    threads: int | None = MISSING
    transport: str = MISSING
    partition: Any = MISSING
    memory_limit_gb: float | None = MISSING
    channels_last: bool = MISSING
    compile: bool = MISSING
    cuda_graphs: bool = MISSING
    streams: bool = MISSING
    deterministic: bool = MISSING
    module_lr: list[float] | None = MISSING
    clip_norm: float | None = MISSING
    label_smoothing: float = MISSING
    freeze: list[int] = MISSING
    log_every: int = MISSING
    dry_run: bool = MISSING
    trace: int = MISSING
    profile: int = MISSING
    diagnostics: DiagnosticsConfig = MISSING
    checkpoint: CheckpointConfig = MISSING
    resume: str = MISSING
    max_time: float | None = MISSING
    hang_timeout: float | None = MISSING
    console: str = MISSING
    run_dir: str = MISSING
    sweep_dir: str | None = MISSING
    cluster: Any = MISSING
    wandb: WandbConfig = MISSING


def check(config: dict[str, Any]) -> None:
    """Checks a resolved config across its keys.

    Raises:
        ConfigError: names the key, its value, what is allowed and the nearest right spelling.
    """
    _check_finite(config)
    for component in COMPONENTS:
        _check_component(component, config[component])
    for key, smallest in SMALLEST.items():
        if config[key] is not None and config[key] < smallest:
            raise ConfigError(f"{key}={config[key]}: must be an integer of at least {smallest}.")
    if config["threads"] is not None and config["threads"] > MOST_THREADS:
        raise ConfigError(f"threads={config['threads']}: must be at most {MOST_THREADS}.")
    for key, choices in CHOICES.items():
        _check_choice(key, config["wandb"]["mode"] if key == "wandb.mode" else config[key], choices)
    if not 0 <= config["label_smoothing"] < 1:
        raise ConfigError(f"label_smoothing={config['label_smoothing']}: must be at least 0 and below 1.")
    if config["clip_norm"] is not None and config["clip_norm"] <= 0:
        raise ConfigError(f"clip_norm={config['clip_norm']}: must be above 0, or null for no clipping.")
    if config["memory_limit_gb"] is not None and config["memory_limit_gb"] <= 0:
        raise ConfigError(f"memory_limit_gb={config['memory_limit_gb']:g}: must be above 0, or null for no limit.")
    _check_sigma(**config["diagnostics"]["sigma"])
    _check_checkpoint(**config["checkpoint"])
    if config["eval_every"] <= 0:
        raise ConfigError(f"eval_every={config['eval_every']:g}: must be above 0 (epochs).")
    if config["max_time"] is not None and config["max_time"] <= 0:
        raise ConfigError(f"max_time={config['max_time']:g}: must be above 0 (minutes), or null for no limit.")
    timeout_s = config["hang_timeout"]
    if timeout_s is not None and timeout_s < SMALLEST_TIMEOUT_S:
        raise ConfigError(
            f"hang_timeout={timeout_s:g}: must be at least {SMALLEST_TIMEOUT_S:g} (seconds), or null to wait for ever."
        )
    if config["compile"] and config["partition"] == "measured":
        raise ConfigError("partition=measured: times blocks that are not compiled; with compile=true use auto.")
    _check_devices(config["devices"], config["device"])
    _check_partition(config["partition"], config["k"])
    _check_modules(config["module_lr"], config["freeze"], config["k"])


def _check_finite(value: Any, key: str = "") -> None:
    """No number is NaN, which no comparison finds; nor infinite, but what a component may have a use for."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_finite(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            _check_finite(item, key)
    elif isinstance(value, float) and (
        math.isnan(value) or (math.isinf(value) and key.partition(".")[0] not in NAMED_COMPONENTS)
    ):
        raise ConfigError(f"{key}={value}: must be a finite number.")


def completions(word: str) -> list[str]:
    """What a setting that is being typed could become, ``precision=b`` or in a sweep ``precision=fp32,b``; nothing
    where any value will do."""
    key, _, typed = word.partition("=")
    before, comma, last = typed.rpartition(",")
    values = {**CHOICES, "partition": PARTITIONS, "resume": ("auto", "never")}.get(key, ())
    if Config.__annotations__.get(key) == "bool":
        values = ("true", "false")
    return [f"{key}={before}{comma}{value}" for value in values if value.startswith(last)]


def check_name(component: str, name: object) -> None:
    """Checks the ``name`` of a method, model or data set, which goes into the name of the run directory.

    Raises:
        ConfigError: it is missing, or not usable in a path.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.+-]*", name):
        given = "is missing" if name is None else f"is {name!r}"
        raise ConfigError(
            f"{component}.name {given}: the YAML of a {component} needs a `name:` made of letters, digits, "
            "'-', '_' or '.'; run directories are named by it."
        )


def _check_component(component: str, node: Any) -> None:
    if not isinstance(node, dict):
        raise ConfigError(f"{component}={node}: choose one with {component}=NAME; fr-bench train --help lists them.")
    if not isinstance(node.get("_target_"), str):
        raise ConfigError(f"{component} has no _target_, the dotted path of the class or function to call.")
    if component in NAMED_COMPONENTS:
        check_name(component, node.get("name"))
    if component == "optimizer":
        lr = node.get("lr")
        if not isinstance(lr, int | float) or isinstance(lr, bool) or lr < 0:
            raise ConfigError(f"optimizer.lr={lr}: must be a number of at least 0.")


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}={value}: must be one of {', '.join(choices)}.{nearest(value, choices)}")


def _check_sigma(every: int, window: int) -> None:
    if every < 0:
        raise ConfigError(f"diagnostics.sigma.every={every}: must be 0 (not measured) or a number of iterations.")
    if window < 1:
        raise ConfigError(f"diagnostics.sigma.window={window}: must be an integer of at least 1.")
    if every and window > every:
        raise ConfigError(
            f"diagnostics.sigma.window={window}: must be at most diagnostics.sigma.every={every}, "
            "or windows would overlap."
        )


def _check_checkpoint(every: int | None, minutes: float | None, keep: int | None) -> None:
    if every is not None and every < 1:
        raise ConfigError(f"checkpoint.every={every}: must be an integer of at least 1, or null.")
    if minutes is not None and minutes <= 0:
        raise ConfigError(f"checkpoint.minutes={minutes:g}: must be above 0, or null.")
    if keep is not None and keep < 1:
        raise ConfigError(f"checkpoint.keep={keep}: must be an integer of at least 1, or null.")


def _check_devices(devices: list[int] | None, device: str) -> None:
    if devices is None:
        return
    if not devices or not all(isinstance(number, int) and number >= 0 for number in devices):
        raise ConfigError(f"devices={devices}: must be a list of GPU numbers such as [0,1], or null for all of them.")
    if device == "cpu":
        raise ConfigError(
            f"devices={devices}: are GPU numbers, which mean nothing with device=cpu; drop one of the two."
        )


def _check_partition(partition: Any, k: int) -> None:
    if partition in PARTITIONS:
        return
    rule = f"must be {', '.join(PARTITIONS)} or a list of rising block numbers at which to cut"
    if isinstance(partition, str):
        raise ConfigError(f"partition={partition}: {rule}.{nearest(partition, PARTITIONS)}")
    if not isinstance(partition, list) or not all(type(cut) is int for cut in partition):
        raise ConfigError(f"partition={partition}: {rule}, such as [8,18,32] for k=4.")
    if len(partition) != k - 1:
        raise ConfigError(f"partition={partition}: has {len(partition)} cuts, k={k} modules need {k - 1}.")
    for before, cut in pairwise([0, *partition]):
        if cut <= before:
            kind = "an empty module" if cut in (before, 0) else "falling cuts"
            raise ConfigError(f"partition={partition}: {kind} at cut {cut}; {rule}, from 1 on.")


def _check_modules(module_lr: list[float] | None, freeze: Iterable[int], k: int) -> None:
    if module_lr is not None:
        if len(module_lr) != k:
            raise ConfigError(f"module_lr={module_lr}: has {len(module_lr)} multipliers for k={k} modules.")
        if min(module_lr) <= 0:
            raise ConfigError(f"module_lr={module_lr}: must be above 0; freeze=[...] stops a module.")
    for module in freeze:
        if type(module) is not int or not 1 <= module <= k:
            raise ConfigError(f"freeze={list(freeze)}: no module {module}; modules are 1 to k={k}.")
