"""The settings of ``fr-bench bench`` beside those of ``fr-bench train``: ``bench.KEY=VALUE``."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from fr_bench.errors import ConfigError, nearest

METHODS = ("plain", "bp", "dni", "ddg", "fr", "dgl", "ddp", "gpipe", "1f1b", "interleaved", "zero_bubble")
MOST_MODULES = 4
SET_BY_BENCH = ("method", "k", "max_steps", "trace", "profile")
GOING_ON = ("resume", "max_time", "cluster")  # of a run that does so later, or elsewhere
# Defaults on a GPU: one GPU is enough, its steps are short and its times steady.
ON_GPU: dict[str, Any] = {
    "methods": ["plain", "bp", "dni", "ddg", "fr"],
    "k": [1, 2, MOST_MODULES],
    "rounds": 1,
    "warmup": 10,
    "steps": 30,
    "profile": 3,
}


@dataclass
class BenchSettings:
    """What is compared, and how long.

    Attributes:
        methods: names of methods and peers, each with settings of its own behind it if need be, such as
            ``"fr partition=equal"``. None at all where everything is simulated.
        k: numbers of modules, or of processes of a peer. BP with one module, and BP over each number, always run: the
            speed-ups are over them.
        rounds: how often everything is run, in turn, so that a slow minute of the machine hits all alike.
        warmup: iterations before the clock starts, once the pipe is full; at least 1.
        steps: timed iterations of a run.
        profile: iterations after the timed ones, to be profiled: on a GPU they tell for how much of a step it is idle.
        microbatches: micro-batches of the pipelines, in multiples of K. All are tried in the first round, the fastest
            goes on.
        checkpoints: of each method, how many it takes in a second run of every round, which tells what they cost; 0:
            there is no such run.
    """

    methods: list[str] = field(default_factory=lambda: list(METHODS))
    k: list[int] = field(default_factory=lambda: default_k(len(os.sched_getaffinity(0))))
    rounds: int = 3
    warmup: int = 2
    steps: int = 6
    profile: int = 0
    microbatches: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    checkpoints: int = 0


HELP = {
    "methods": "methods and peers, with settings of their own behind them: [bp,fr,'fr partition=equal',1f1b]; "
    "[] with simulate.k: none",
    "k": "numbers of modules; default: 1, 2, 4 as far as there are cores",
    "rounds": "how often everything is run, in turn",
    "warmup": "iterations of a run before the clock starts",
    "steps": "timed iterations of a run",
    "profile": "iterations after those, profiled to tell how long a GPU is idle; 0: none",
    "microbatches": "numbers of micro-batches of the pipelines, as multiples of K; the fastest is reported",
    "checkpoints": "taken in a second run of each method in every round, to tell what they cost; 0: none",
}


def default_k(num_cores: int) -> list[int]:
    """1, 2 and 4, as far as every module has a core of its own."""
    return [k for k in (1, 2, MOST_MODULES) if k <= max(1, num_cores)]


def make_settings(values: dict[str, Any], simulates: bool = False, on_gpu: bool = False) -> BenchSettings:
    """The settings with ``values``, by key without ``bench.``, in place of the defaults.

    Args:
        values: by key.
        simulates: whether a simulation is asked for; then nothing needs to be measured beside it.
        on_gpu: whether the defaults are those on a GPU.

    Raises:
        ConfigError: an unknown key, a wrong type or a number out of range.
    """
    known = [each.name for each in fields(BenchSettings)]
    for key in values:
        if key not in known:
            raise ConfigError(f"bench.{key}: unknown.{nearest(key, known)} There are bench.{', bench.'.join(known)}.")
    settings = BenchSettings(**{**(copy.deepcopy(ON_GPU) if on_gpu else {}), **values})
    for key, smallest in (("rounds", 1), ("warmup", 1), ("steps", 2), ("profile", 0), ("checkpoints", 0)):
        _check_integers(key, [getattr(settings, key)], smallest)
    if settings.profile and not on_gpu:
        raise ConfigError(
            f"bench.profile={settings.profile}: tells how long a GPU is idle, and this bench is on the CPU; use 0."
        )
    for key in ("k", "microbatches"):
        _check_integers(key, _as_list(key, getattr(settings, key)), 1)
    if settings.methods == []:
        if not simulates:
            raise ConfigError("bench.methods=[]: leaves nothing to do; name some, or what to simulate: simulate.k=[8].")
        return settings
    methods = _as_list("methods", settings.methods)
    if any(not isinstance(words, str) or not words.split() for words in methods):
        raise ConfigError(f"bench.methods={methods}: must be a list of names such as [bp,fr,1f1b].")
    for words in methods:
        _, *own = words.split()
        try:
            refuse_settings(own)
            if "run_dir" in keys_of(own):
                raise ConfigError("run_dir: is of the bench as a whole; set it beside bench.methods.")
        except ConfigError as error:
            raise ConfigError(f"in bench.methods, '{words}': {error}") from error
    return settings


def refuse_settings(words: Iterable[str]) -> None:
    """Looks for settings of ``fr-bench train`` that a bench sets itself, or has no use for.

    Raises:
        ConfigError: one of ``words`` is one.
    """
    for key in keys_of(words):
        if key == "dry_run":
            raise ConfigError(
                "dry_run: belongs to fr-bench train; here bench.methods=[] with simulate.k=[8] trains nothing."
            )
        if key in GOING_ON:
            raise ConfigError(f"{key}: belongs to fr-bench train; a bench runs here, and all of it at once.")
        if key in SET_BY_BENCH:
            raise ConfigError(f"{key}: is set for each that is compared; use bench.methods=[...] and bench.k=[...].")


def keys_of(words: Iterable[str]) -> list[str]:
    """What the overrides ``words`` set, add or delete."""
    return [word.lstrip("+~").partition("=")[0] for word in words]


def _as_list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"bench.{key}={value}: must be a list with something in it, such as [{_example(key)}].")
    return value


def _example(key: str) -> str:
    return "bp,fr,1f1b" if key == "methods" else "1,2,4"


def _check_integers(key: str, numbers: Sequence[Any], smallest: int) -> None:
    for number in numbers:
        if type(number) is not int or number < smallest:
            raise ConfigError(f"bench.{key}={number}: must be an integer of at least {smallest}.")
