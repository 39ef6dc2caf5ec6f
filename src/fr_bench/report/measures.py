"""Numbers of one run, from its records alone, and how they spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fr_bench.measuring.categories import CATEGORIES, OTHER
from fr_bench.measuring.untimed import UntimedSteps
from fr_bench.records.reading import POSITION, Record, deciding_error, number
from fr_bench.records.runs import Run
from fr_bench.report.groups import CODE, Group

# Other fields of a `memory` record are not bytes of a category: `peak` and `predicted` include all of them.
MEMORY_CATEGORIES = (*CATEGORIES, OTHER)
UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
IN_EVERY_RUN = ("parameters", "gradients", "optimizer", "activations")  # whatever the method
SMALLEST_DIFFERENCE = 1e-9  # of two errors: 7.2 % is no exact binary fraction
BUSY = ("play_s", "learn_s", "send_s")
# What may differ between a run and the one that its speed is compared with: what makes it another method or
# another K, and what changes the numbers but hardly the time. All other settings must agree, `freeze` too: modules
# that do not learn do less work.
FREE_IN_A_COMPARISON = (
    "method.", "optimizer.", "schedule.", "epochs", "max_steps", "module_lr", "clip_norm", "label_smoothing",
    "cuts", "partition", "memory_limit_gb", "devices", "num_devices", "threads", "transport", "streams", "eval_every",
    "resume", "resume.",
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, and the sample standard deviation (None for one seed)."""

    mean: float
    sd: float | None


def spread(values: Iterable[float | None]) -> Spread | None:
    """Returns mean and standard deviation of the values that are there; None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def over_seeds(group: Group, measure: Callable[[Run], float | None]) -> Spread | None:
    """``measure`` over the runs that stand for the group."""
    return spread(measure(run) for run in group.measured)


def _numbers(records: Iterable[Record], key: str) -> list[float]:
    """What the records that have a number for ``key`` have there."""
    return [value for record in records if (value := number(record, key)) is not None]


def best_test_error(run: Run) -> float | None:
    """The smallest test error; with a validation set, that of the epoch with the smallest validation error."""
    known = [record for record in run.own_evaluations if number(record, "test_error") is not None]
    return min(known, key=deciding_error)["test_error"] if known else None


def best_validation_error(run: Run) -> float | None:
    """The smallest error on the images held out of the training set; None without any."""
    return min(_numbers(run.own_evaluations, "validation_error"), default=None)


def seconds_to(run: Run, test_error: float) -> float | None:
    """Seconds of training until the first evaluation with at most ``test_error``; None if there is none."""
    for record in run.own_evaluations:
        error = number(record, "test_error")
        if error is not None and error <= test_error + SMALLEST_DIFFERENCE:
            return float(record["train_time"])
    return None


def last_test_error(run: Run) -> float | None:
    """The test error of the last evaluation."""
    known = _numbers(run.own_evaluations, "test_error")
    return known[-1] if known else None


def _last(run: Run) -> Record | None:
    """The record at the run's end: of those of its last step the latest, because the `train` record is written while
    the modules below the last still learn."""
    records = [record for found in run.records.values() for record in found]
    return max(records, key=lambda record: (record["step"], record["train_time"]), default=None)


def _seconds_per(run: Run, key: str) -> float | None:
    """Over the run's own training: a run that took over from another begins with that one's seconds."""
    last = _last(run)
    if last is None or run.own_from is None:
        return None
    before = dict(zip(POSITION, run.own_from, strict=True))
    seconds, number_of = last["train_time"] - before["train_time"], last[key] - before[key]
    if untimed := UntimedSteps(run.of("profile")).between(before["step"], last["step"]):
        number_of *= 1 - untimed / (last["step"] - before["step"])
    return seconds / number_of if number_of > 0 and seconds > 0 else None


def step_time_s(run: Run) -> float | None:
    """Seconds of training a step, over the whole run."""
    return _seconds_per(run, "step")


def epoch_time_s(run: Run) -> float | None:
    """Seconds of training an epoch, over the whole run."""
    return _seconds_per(run, "epoch")


def efficiency(run: Run) -> float | None:
    """Pipeline efficiency, the busiest module's computing time over the step time: the mean over the run's steps."""
    # All modules of one step have the same.
    known = {record["step"]: record for record in run.of("time") if number(record, "efficiency") is not None}
    weighted = _weighted(run, list(known.values()))
    num_steps = sum(steps for steps, _ in weighted)
    return sum(steps * record["efficiency"] for steps, record in weighted) / num_steps if num_steps else None


def _weighted(run: Run, records: list[Record]) -> list[tuple[float, Record]]:
    """The run's own ones of ``records``, which hold means over the steps since the last, with how many those are: all
    but those that were profiled, where a record tells (those of older versions do not)."""
    if run.own_from is None:
        return []
    last_step, found = run.own_from[0], []
    for record in records:
        if record["step"] > last_step:
            found.append((number(record, "iterations") or record["step"] - last_step, record))
            last_step = record["step"]
    return found


def measured_sigma(group: Group) -> bool:
    """Whether its times are longer than they would be because the pipe ran empty for each iteration in which sigma was
    measured. One of locked BP is so anyway, and in one process there is none."""
    has_pipe = group.k > 1 and group.method != "bp" and not group.in_one_process
    return has_pipe and any(run.of("sigma") for run in group.measured)


def waiting_share(run: Run, module: int) -> float | None:
    """The share of time that a module waits for its neighbours; None where no record tells."""
    waiting_s, total_s = 0.0, 0.0
    for num_steps, record in _weighted(run, run.of("time", module)):
        if number(record, "wait_s") is None:
            return None
        waiting_s += num_steps * record["wait_s"]
        total_s += num_steps * sum(number(record, key) or 0.0 for key in (*BUSY, "wait_s"))
    return waiting_s / total_s if total_s else None


def memory_by_category(run: Run, module: int) -> dict[str, float]:
    """Bytes by category in a module's last account; categories that it lacks are absent."""
    records = run.of("memory", module)
    if not records:
        return {}
    return {name: value for name in MEMORY_CATEGORIES if (value := number(records[-1], name)) is not None}


def missing_categories(group: Group) -> list[str]:
    """The categories of IN_EVERY_RUN that some module's last account lacks, so that its total is too small."""
    accounts = [memory_by_category(run, module) for run in group.measured for module in run.modules("memory")]
    return [name for name in IN_EVERY_RUN if any(name not in account for account in accounts)]


def unit_of(num_bytes: float) -> tuple[str, int]:
    """The largest binary unit of which there is at least one, else the smallest; and its bytes."""
    return next(((unit, factor) for unit, factor in UNITS if num_bytes >= factor), UNITS[-1])


def predicted_memory(run: Run, module: int) -> float | None:
    """Predicted bytes of a module, all categories together; None where nothing was predicted."""
    records = run.of("memory", module)
    return number(records[-1], "predicted") if records else None


def peak_memory(run: Run, module: int) -> float | None:
    """The largest peak of a module's device or process, in bytes."""
    return max(_numbers(run.of("memory", module), "peak"), default=None)


def baseline(group: Group, groups: Iterable[Group], k: int) -> Group | None:
    """Returns the BP group with ``k`` modules that ``group``'s times may be compared with, or None.

    Data set, model, batch size, precision, hardware and the user's own code that both need are the same (all but
    FREE_IN_A_COMPARISON); of several the one that shares most settings. Where modules shared one process, the
    baseline's did too. It recomputes nothing, as ordinary training does.
    """
    rivals = [
        other
        for other in groups
        if (other.method, other.k, other.dataset, other.model) == ("bp", k, group.dataset, group.model)
        and not other.settings.get("method.checkpoint_activations")
        and all(is_among(key, FREE_IN_A_COMPARISON) for key in differing_settings(group, other))
        and (k == 1 or other.in_one_process == group.in_one_process)
        and over_seeds(other, step_time_s) is not None
    ]
    # Settings of the method say nothing here: BP's are others than the group's, or the group is a BP of another kind.
    return min(
        rivals,
        key=lambda other: sum(not key.startswith("method.") for key in differing_settings(group, other)),
        default=None,
    )


def differing_settings(one: Group, other: Group) -> list[str]:
    """The keys of all settings that one of the two groups has otherwise, or not at all. Code of the user's own that
    only one of them needs is none: what names it is, as ``method._target_``."""
    keys = one.settings.keys() | other.settings.keys()
    keys -= {key for key in one.settings.keys() ^ other.settings.keys() if key.startswith(CODE)}
    return [key for key in keys if one.settings.get(key) != other.settings.get(key)]


def is_among(key: str, names: Iterable[str]) -> bool:
    """Whether ``names`` has ``key``, or its group with a dot at the end: ``optimizer.``."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)


def speedup_over(group: Group, reference: Group | None) -> Spread | None:
    """How many times faster the mean step of ``group`` is than that of ``reference``, and the standard deviation that
    follows from those of both.

    Exactly 1 for the reference itself, None without one.
    """
    if reference is None:
        return None
    if group is reference:
        return Spread(1.0, None)
    own, other = over_seeds(group, step_time_s), over_seeds(reference, step_time_s)
    if own is None or other is None:
        return None
    ratio = other.mean / own.mean
    relative = [each.sd / each.mean for each in (own, other) if each.sd is not None]
    return Spread(ratio, ratio * math.hypot(*relative) if relative else None)
