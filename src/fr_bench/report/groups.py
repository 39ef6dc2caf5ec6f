"""Runs that differ in nothing but the seed, as one group with a label that says what sets it apart.

Means are taken within a group only, so whatever can change a result or a time is part of a group's identity:
every setting of config.yaml but those that only say what is written down or where the data lie, the cuts, the
transport, the hardware and the code of the user's own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import PurePath
from typing import Any

from fr_bench.planning.own_code import NUM_DIGITS, code_history
from fr_bench.records.reading import Record
from fr_bench.records.runs import Complain, Run
from fr_bench.settings.comparison import LOGGING, SINCE_LATER, flat, wherever_data_lie

METHOD_NAMES = {
    "bp": "BP",
    "dni": "DNI",
    "cdni": "cDNI",
    "ddg": "DDG",
    "fr": "FR",
    "dgl": "DGL",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved 1F1B",
    "zero_bubble": "Zero bubble",
    "ddp": "DDP",
    "plain": "Plain",
}
# Settings that change neither what is computed nor how fast nor which errors are seen (of `resume` see `_taken_over`),
# and those that the plan settles (see `settings_of`).
WITHOUT_EFFECT = {*LOGGING, "diagnostics", "seed"} - {"eval_every"}
SETTLED_BY_THE_PLAN = ("device", "devices", "memory_limit_gb", "partition", "threads", "transport")
# Settings whose values are said in a word of their own, because `name=value` would fill a figure.
SAID_SHORTER: dict[str, dict[Any, str]] = {"method.checkpoint_activations": {True: "checkpointed", False: ""}}
# Settings that a K brings along: they are compared among the groups of one K only.
BOUND_TO_K = ("cuts", "devices", "freeze", "module_lr", "num_devices", "partition", "threads", "transport")

TARGET = "_target_"  # of a component's settings: the class or function it is made by
CODE = "code."  # begins the names of the user's own packages, whose code env.json has the hash of
THERE = "resume."  # begins the names of settings of the run that another took over from


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one data set, model, method, K and all other settings, one a seed. A group equals itself alone.

    Attributes:
        settings: flat, ``{"method.bn_stats": "replay", "optimizer.lr": 0.01, ...}``.
        variant: the settings that set it apart from other groups, as text; empty if the method and K do.
        variant_number: of the variant among those of its method, from 0, whatever K is: figures go by it.
    """

    dataset: str
    model: str
    method: str
    k: int
    settings: dict[str, Any]
    variant: str
    runs: tuple[Run, ...]
    variant_number: int = 0

    @property
    def size(self) -> int:
        """Modules of all replicas."""
        return self.runs[0].size

    @property
    def name(self) -> str:
        """Method and variant: ``FR (bn_stats=play)``."""
        name = METHOD_NAMES.get(self.method, self.method)
        return f"{name} ({self.variant})" if self.variant else name

    @property
    def label(self) -> str:
        """The same with K."""
        return f"{self.name}, K = {self.k}"

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that went to their end."""
        return tuple(run for run in self.runs if run.end == "finished")

    @property
    def measured(self) -> tuple[Run, ...]:
        """The runs whose numbers stand for the group: the finished ones, or all if none is."""
        return self.finished or self.runs

    @property
    def seeds(self) -> str:
        """How many seeds: ``n = 3``, ``n = 2, 1 diverged``."""
        return self.seeds_of(len(self.finished))

    def seeds_of(self, number: int) -> str:
        """The same where ``number`` of the finished runs have what is shown: ``n = 1 of 3``."""
        among = "" if number == len(self.finished) else f" of {len(self.finished)}"
        counts = [f"n = {number}{among}"] if self.finished else []
        for end in ("diverged", "unfinished"):
            others = sum(run.end == end for run in self.runs)
            counts += [f"{others} {end}"] if others else []
        return ", ".join(counts)

    @property
    def in_one_process(self) -> bool:
        """Whether several modules shared one process and its device: then times say nothing about a pipeline."""
        return self.k > 1 and self.settings.get("transport") == "serial"


def make_groups(runs: Iterable[Run], complain: Complain) -> list[Group]:
    """Returns the groups in the order of data set, model, K and method.

    Of two runs with the same seed in a group, which are no two samples, one is left out, and ``complain`` says which.
    """
    by_identity: dict[str, list[Run]] = {}
    for run in runs:
        identity = json.dumps([run.dataset, run.model, run.method, run.k, settings_of(run)], default=str)
        by_identity.setdefault(identity, []).append(run)
    groups = [_group(same, complain) for same in by_identity.values()]
    groups = [_with_variant(group, groups) for group in groups]
    return sorted((replace(group, variant_number=_number(group, groups)) for group in groups), key=_place)


def _place(group: Group) -> tuple[Any, ...]:
    """Of several variants the one with most finished runs comes first."""
    order = list(METHOD_NAMES)
    rank = order.index(group.method) if group.method in order else len(order)
    return group.dataset, group.model, group.k, rank, group.method, -len(group.finished), group.variant


def _number(group: Group, groups: list[Group]) -> int:
    """The variant with most finished runs of all K has number 0, the method's own look in figures."""
    num_finished: Counter[str] = Counter()
    for other in groups:
        if (other.dataset, other.model, other.method) == (group.dataset, group.model, group.method):
            num_finished[other.variant] += len(other.finished)
    return sorted(num_finished, key=lambda variant: (-num_finished[variant], variant)).index(group.variant)


def pairs(groups: Iterable[Group]) -> dict[tuple[str, str], list[Group]]:
    """The groups by (data set, model), which are never compared with each other."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        found.setdefault((group.dataset, group.model), []).append(group)
    return found


def settings_of(run: Run) -> dict[str, Any]:
    """Returns the settings that identify the run's group, sorted by name.

    What the plan settled (the cuts, the transport behind ``auto``) stands in the place of what was asked for. A
    setting that is null or empty is the same as one that an older config.yaml does not have; so are those of
    SINCE_LATER.
    """
    plan = run.config.get("plan")
    config = wherever_data_lie(run.config)
    asked = {key: value for key, value in config.items() if key not in {*WITHOUT_EFFECT, "k", "plan"}}
    settings = flat(asked)
    if isinstance(plan, dict):
        settled = {key: value for key, value in settings.items() if key not in SETTLED_BY_THE_PLAN}
        settings = settled | {key: plan.get(key) for key in ("cuts", "transport", "threads")}
        settings |= _hardware(run, {str(device) for device in plan.get("devices") or []})
    settings |= _code(run)
    settings["resume"] = _taken_over(run)
    if settings["resume"] is not None:
        settings |= dict(_settings_there(run.origin))
    settings = {key: value for key, value in sorted(settings.items()) if value not in (None, [], {})}
    return {key: value for key, value in settings.items() if SINCE_LATER.get(key) != value}


def _taken_over(run: Run) -> str | None:
    """From which run's checkpoint the run went on (``resume=RUN_DIR``): its numbers are also those of that one.

    None if it is as if it had run in one piece. Where no file tells more, the other run's directory.
    """
    if run.is_in_one_piece:
        return None
    return f"from {_stages(run.origin, run.method)}" if run.origin else str(run.config["resume"])


def _settings_there(origin: Record, stage: str = "there") -> Iterable[tuple[str, Any]]:
    """Settings with which the steps before were made; of earlier stages, as ``there_before``."""
    settings, earlier = origin.get("settings"), origin.get("origin")
    if isinstance(settings, dict):
        yield from ((f"{THERE}{name}_{stage}", value) for name, value in settings.items())
    if isinstance(earlier, dict):
        yield from _settings_there(earlier, f"{stage}_before")


def _stages(origin: Record, method: str) -> str:
    """``K=2 at step 100 of 400``, of another method than ``method`` ``BP, K=2 at ...``; a run that took over itself has
    several such stages."""
    name = str(origin.get("method", method))  # those of older versions had the same
    of_method = "" if name == method else f"{METHOD_NAMES.get(name, name)}, "
    replicas = f", replicas={origin.get('replicas')}" if origin.get("replicas") not in (None, 1) else ""
    stage = f"{of_method}K={origin.get('k')}{replicas} at step {origin.get('step')} of {origin.get('num_steps')}"
    earlier = origin.get("origin")
    return f"{_stages(earlier, method)}, {stage}" if isinstance(earlier, dict) and earlier else stage


def _hardware(run: Run, devices: set[str]) -> dict[str, Any]:
    """How many devices the modules share, and what they are."""
    if not any("cuda" in device for device in devices):
        cpu = run.environment.get("cpu")
        return {"num_devices": len(devices), "hardware": cpu.get("model", "cpu") if isinstance(cpu, dict) else "cpu"}
    gpus = run.environment.get("gpus")
    gpu = gpus[0] if isinstance(gpus, list) and gpus else None
    return {"num_devices": len(devices), "hardware": gpu.get("name", "cuda") if isinstance(gpu, dict) else "cuda"}


def _code(run: Run) -> dict[str, list[str]]:
    """The hashes of every package, the oldest first: several, where the run went on with other code."""
    history = code_history(run.environment)
    return {
        f"{CODE}{name}": [digest for digest, _ in groupby(str(code.get(name, "?")) for code in history)]
        for name in {name for code in history for name in code}
    }


def _group(runs: list[Run], complain: Complain) -> Group:
    first = runs[0]
    chosen: dict[Any, Run] = {}
    for run in runs:
        other = chosen.setdefault(run.seed, run)
        if other is not run:
            chosen[run.seed], dropped = (run, other) if _worth(run) > _worth(other) else (other, run)
            complain(f"{dropped.path}: same settings and seed as {chosen[run.seed].path}; left out")
    kept = tuple(sorted(chosen.values(), key=lambda run: str(run.seed)))
    return Group(first.dataset, first.model, first.method, first.k, settings_of(first), "", kept)


def _worth(run: Run) -> tuple[bool, float]:
    """The finished run, and of several the one started last."""
    started = run.status.get("started")
    return run.end == "finished", started if isinstance(started, int | float) else 0.0


def _with_variant(group: Group, groups: list[Group]) -> Group:
    if not group.runs[0].config:  # known by its summary.json alone
        return replace(group, variant="settings unknown")
    rivals = [other for other in groups if (other.dataset, other.model) == (group.dataset, group.model)]
    rivals = [other for other in rivals if other.runs[0].config]
    differing = [key for key in group.settings if _differs(key, group, rivals)]
    words = [_words(key, group.settings[key], differing, rivals) for key in differing]
    variant = ", ".join(word for word in words if word)
    return replace(group, variant=variant)


def _differs(key: str, group: Group, rivals: list[Group]) -> bool:
    for component in _components(key, group):  # what it is goes before its settings, which others need not have
        target = f"{component}.{TARGET}"
        rivals = [other for other in rivals if other.settings.get(target) == group.settings[target]]
    if key.startswith("method."):
        rivals = [other for other in rivals if other.method == group.method]
    elif key == "cuts":  # a balanced partition cuts by the costs of the method: that alone makes no variant
        rivals = [other for other in rivals if (other.method, other.k) == (group.method, group.k)]
    elif key.startswith(THERE):  # it goes without saying but where all else of the steps before is the same
        rivals = [other for other in rivals if other.settings.get("resume") == group.settings["resume"]]
        return any(_setting_there(key, other) != group.settings[key] for other in rivals)
    elif key.startswith(CODE):  # others have none of it to differ in
        rivals = [other for other in rivals if _has_code_of(key.removeprefix(CODE), other)]
    elif key in BOUND_TO_K:
        rivals = [other for other in rivals if other.k == group.k]
    return any(other.settings.get(key) != group.settings[key] for other in rivals)


def _setting_there(key: str, group: Group) -> Any:
    """What ``group`` has for ``key``, a setting of the steps before. Where these were made with the method of those
    that follow, origin.json does not repeat the method's settings."""
    while key not in group.settings and key.startswith(f"{THERE}method."):
        name, _, before = key.rpartition("_there")
        key = f"{name}_there{before.removesuffix('_before')}" if before else name.removeprefix(THERE)
    return group.settings.get(key)


def _has_code_of(package: str, group: Group) -> bool:
    """Whether a part of it is made by ``package``; of runs of older versions no hash says so."""
    used = {str(value).partition(".")[0] for key, value in group.settings.items() if key.endswith(f".{TARGET}")}
    return package in used or f"{CODE}{package}" in group.settings


def _components(key: str, group: Group) -> Iterable[str]:
    """Those that ``key`` is a setting of: ``optimizer`` of ``optimizer.lr``, none of ``optimizer._target_``."""
    parts = key.split(".")[:-1]
    names = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return [name for name in names if f"{name}.{TARGET}" in group.settings and key != f"{name}.{TARGET}"]


def _words(key: str, value: Any, differing: list[str], rivals: list[Group]) -> str:
    """``lr=0.1``, ``optimizer=Adam``, ``my_package=3f2a``, or the words of SAID_SHORTER; empty for what goes unsaid."""
    if key == "resume":
        return str(value) if str(value).startswith("from ") else f"resumed from {PurePath(str(value)).name}"
    if key.startswith(CODE):
        hashes = {each for other in rivals for each in other.settings.get(key, ())}
        length = next((n for n in range(4, NUM_DIGITS) if len({each[:n] for each in hashes}) == len(hashes)), None)
        return f"{key.removeprefix(CODE)}={' then '.join(each[:length] for each in value)}"
    known = SAID_SHORTER.get(key)
    if known is not None and isinstance(value, Hashable) and value in known:
        return known[value]
    if key.endswith(f".{TARGET}"):
        names = {str(other.settings.get(key)).rpartition(".")[2] for other in rivals}
        is_clear = len(names) == len({str(other.settings.get(key)) for other in rivals})
        return f"{key.split('.')[-2]}={str(value).rpartition('.')[2] if is_clear else value}"
    return f"{_short(key, differing)}={_text(value)}"


def _short(key: str, keys: list[str]) -> str:
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, separators=(",", ":"))
