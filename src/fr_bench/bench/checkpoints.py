"""What a checkpoint costs: a run that takes some, its iterations around them beside those between them.

    iterations   | quiet       | pause, then training beside the writers | quiet       | pause, ...
    step                       s                             whole
    counted      |----- b -----|------------------ w ------------------------|----- a -----|

A checkpoint's cost is how much longer the stretch w took than as many iterations do in the quiet ones before and after
it, b and a. It holds all that training waits for (the pipe runs empty, the copies, the pipe fills again) and what the
threads that write take from the modules' cores until the checkpoint is whole.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from fr_bench.bench.measurement import collector_of
from fr_bench.bench.settings import BenchSettings
from fr_bench.errors import RunFailed
from fr_bench.launching.checkpoint_book import CheckpointBook
from fr_bench.launching.signal_watch import SignalWatch
from fr_bench.launching.supervisor import Supervisor
from fr_bench.measuring.stopwatch import Span
from fr_bench.planning.plan import Plan
from fr_bench.processes.board import Board
from fr_bench.records.sinks import JsonLinesSink

ROOM_FOR_WRITING_S = 1.0  # beside the quiet iterations between two checkpoints; a slow disk may take of those too


@dataclass(frozen=True)
class CheckpointCost:
    """Of one checkpoint.

    Attributes:
        extra_s: by how much training got behind; the pause is part of it. Noise can make it negative.
        pause_s: from the end of the last step before it, on the slowest module, until module 1 went on.
        whole_after_s: from that same end until the checkpoint was whole on disk.
        num_bytes: of its files.
    """

    extra_s: float
    pause_s: float
    whole_after_s: float
    num_bytes: int


def measure_checkpoints(
    plan: Plan, settings: BenchSettings, step_s: float, folder: Path, signals: SignalWatch
) -> list[CheckpointCost]:
    """Runs ``plan`` with ``settings.checkpoints`` real checkpoints in ``folder``, which is removed if all goes well.

    Args:
        plan: of a bench's contender that is a method.
        step_s: about how long its iterations take.

    Raises:
        RunFailed: with the first cause; also where no checkpoint could be written or measured.
        Interrupted: a signal came.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = with_checkpoints(plan, settings, step_s)
    collector = collector_of(plan)
    board, complaints = Board.shared(), list[str]()
    metrics = folder / "metrics.jsonl"  # a checkpoint has the records before it on disk first, so there are some
    sink = JsonLinesSink(metrics)
    book = CheckpointBook(plan, folder / "checkpoints", metrics, board, collector.clock, complaints.append)
    begins_ns, whole_ns, num_bytes = list[int](), dict[int, int](), defaultdict[int, int](int)
    with Supervisor.of_plan(plan, folder, board) as supervisor:
        for event in supervisor.events(signals):
            if not event:
                continue
            for record in collector.add(event):
                sink.write(record)
            last_step = book.last_step
            book.add(event)
            if book.last_step is not None and book.last_step != last_step:
                whole_ns[book.last_step] = time.monotonic_ns()
            if event["event"] == "stretch_begin" and 1 in event["modules"]:
                begins_ns.append(event["time_ns"])
            elif event["event"] == "checkpoint_written":
                num_bytes[event["step"]] += _num_bytes(event["written"])
    sink.finish(None, 0)
    if complaints:
        raise RunFailed(complaints[0], None)
    after_ns = ends_by_step([collector.spans[number] for number in range(1, plan.size + 1)])
    start = plan.num_modules - 1 + settings.warmup
    costs = costs_of(after_ns, start, begins_ns, whole_ns, num_bytes, margin=plan.num_modules)
    if not costs:
        raise RunFailed(
            "its checkpoints were not whole in time for a quiet iteration before the next; give bench.steps more", None
        )
    shutil.rmtree(folder)
    return costs


def with_checkpoints(plan: Plan, settings: BenchSettings, step_s: float) -> Plan:
    """A longer run of the same: checkpoints that are far enough apart, and one at its end that is not measured."""
    every = settings.warmup + settings.steps + 3 * plan.num_modules + math.ceil(ROOM_FOR_WRITING_S / step_s)
    num_steps = every * (settings.checkpoints + 1)
    extent = {
        "max_steps": num_steps,
        "profile": 0,
        # Under nccl a checkpoint is due where the loop waits for the device anyway.
        "log_every": min(plan.config["log_every"], 10),
        "trace": num_steps - (plan.num_modules - 1),
        "epochs": max(plan.config["epochs"], math.ceil(num_steps / plan.steps_per_epoch)),
        "checkpoint": {**plan.config["checkpoint"], "every": every, "minutes": None},
    }
    return replace(plan, num_steps=num_steps, config={**plan.config, **extent})


def _num_bytes(written: Sequence[Mapping[str, Any]]) -> int:
    return sum(file["bytes"] for module in written for file in module["files"].values())


def ends_by_step(spans: Sequence[Sequence[Span]]) -> dict[int, int]:
    """When the slowest module had completed so many iterations, in nanoseconds; ``spans`` are by module."""
    ends_ns = [{span.batch + 1: span.end_ns for span in module if span.name == "step"} for module in spans]
    common = set.intersection(*(set(module) for module in ends_ns))
    return {step: max(module[step] for module in ends_ns) for step in sorted(common)}


def costs_of(
    after_ns: Mapping[int, int],
    start: int,
    begins_ns: Sequence[int],
    whole_ns: Mapping[int, int],
    num_bytes: Mapping[int, int],
    margin: int,
) -> list[CheckpointCost]:
    """The costs of the checkpoints that have quiet iterations beside them, but for the last one, which ends the run.

    Args:
        after_ns: when so many iterations were completed.
        start: iterations before the first quiet stretch.
        begins_ns: when module 1 began to train, or to train again.
        whole_ns: by step of a checkpoint, when that was whole.
        num_bytes: by step of a checkpoint.
        margin: iterations before and after in which the pipe is not as it is else.
    """
    steps = sorted(whole_ns)
    firsts = [step - margin for step in steps]  # of the stretches with a checkpoint
    lasts = [margin + _first_after(after_ns, step, whole_ns[step]) for step in steps]
    quiet = list(zip([start, *lasts], firsts, strict=False))
    costs = []
    for step, first, last, beside in zip(steps, firsts, lasts, pairwise(quiet), strict=False):
        num_quiet = sum(end - begin for begin, end in beside)
        if num_quiet == 0 or any(begin > end for begin, end in beside):
            continue
        quiet_step_ns = sum(after_ns[end] - after_ns[begin] for begin, end in beside) / num_quiet
        resumed_ns = next(begin_ns for begin_ns in begins_ns if begin_ns >= after_ns[step])
        costs.append(
            CheckpointCost(
                extra_s=(after_ns[last] - after_ns[first] - (last - first) * quiet_step_ns) / 1e9,
                pause_s=(resumed_ns - after_ns[step]) / 1e9,
                whole_after_s=(whole_ns[step] - after_ns[step]) / 1e9,
                num_bytes=num_bytes[step],
            )
        )
    return costs


def _first_after(after_ns: Mapping[int, int], step: int, time_ns: int) -> int:
    """The first step from ``step`` on that ended after ``time_ns``; the last of all if none did."""
    return next((other for other in after_ns if other >= step and after_ns[other] >= time_ns), max(after_ns))
