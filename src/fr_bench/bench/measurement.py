"""Runs one contender once and says how long its iterations took, and what its modules did meanwhile."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from fr_bench.bench.contenders import Contender
from fr_bench.bench.settings import BenchSettings
from fr_bench.launching.signal_watch import SignalWatch
from fr_bench.launching.supervisor import Supervisor
from fr_bench.measuring.categories import CATEGORIES
from fr_bench.measuring.stopwatch import Span
from fr_bench.peers import PeerTask
from fr_bench.planning.plan import Plan
from fr_bench.records.collector import Collector
from fr_bench.records.device_load import load_of


@dataclass(frozen=True)
class Iteration:
    """One iteration of a module, from the end of an optimizer step to the end of the next.

    Attributes:
        seconds: all of it.
        phases_s: by name of span.
    """

    seconds: float
    phases_s: dict[str, float]


@dataclass(frozen=True)
class Measurement:
    """One run.

    Attributes:
        step_s: seconds of each timed iteration, on the slowest module or process.
        iterations: by module, those that were timed; empty for a peer.
        peak_bytes: by module or process, the peak of the process: resident memory, on a GPU the allocator's.
        accounted_bytes: by module, what its tensors hold (see fr_bench.training.memory); empty for a peer.
        device_busy_s: seconds of an iteration in which the GPU is busy; of several GPUs the busiest. None where it was
            not profiled, or is no GPU.
        num_kernels: of an iteration, in all processes.
    """

    step_s: list[float]
    iterations: list[list[Iteration]] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    accounted_bytes: list[int] = field(default_factory=list)
    device_busy_s: float | None = None
    num_kernels: float | None = None


def measure(contender: Contender, settings: BenchSettings, folder: Path, signals: SignalWatch) -> Measurement:
    """Runs ``contender`` in processes of its own. Their logs stay in ``folder`` if the run fails, else nothing does.

    Raises:
        RunFailed: with the first cause.
        Interrupted: a signal came.
    """
    folder.mkdir(parents=True)
    found = (_measure_peer if contender.is_peer else _measure_method)(contender, settings, folder, signals)
    shutil.rmtree(folder)
    return found


def _measure_method(contender: Contender, settings: BenchSettings, folder: Path, signals: SignalWatch) -> Measurement:
    plan = contender.plan
    collector = collector_of(plan)
    peaks, accounts = [0] * plan.size, [0] * plan.size
    profiles = list[dict[str, Any]]()
    with Supervisor.of_plan(plan, folder) as supervisor:
        for event in supervisor.events(signals):
            for record in collector.add(event) if event else ():
                if record["kind"] == "memory":
                    peaks[record["module"] - 1] = record["peak"]
                    accounts[record["module"] - 1] = sum(record.get(name, 0) for name in CATEGORIES)
                elif record["kind"] == "profile":
                    profiles.append(record)
    iterations = [iterations_of(collector.spans[k])[settings.warmup :] for k in range(1, plan.size + 1)]
    times = [[iteration.seconds for iteration in module] for module in iterations]
    return Measurement(max(times, key=sum), iterations, peaks, accounts, *load_of(profiles))


def _measure_peer(contender: Contender, settings: BenchSettings, folder: Path, signals: SignalWatch) -> Measurement:
    plan, k = contender.plan, contender.k
    ends_ns: dict[int, list[int]] = {}
    peaks = [0] * k
    profiles = list[dict[str, Any]]()

    def make_tasks(_: Any, store_port: int | None) -> list[PeerTask]:
        task = PeerTask(
            contender.method,
            plan.config,
            sample=plan.sample,
            num_processes=k,
            threads=plan.threads,
            num_steps=settings.warmup + settings.steps,
            store_port=store_port,
            cuts=contender.cuts,
            num_microbatches=contender.num_microbatches or 1,
            device=plan.devices[0],
            profile=settings.profile,
            folder=folder,
        )
        return task.in_every_process()

    hang_timeout_s = plan.config["hang_timeout"]
    with Supervisor(make_tasks, k, folder, needs_store=k > 1, hang_timeout_s=hang_timeout_s) as supervisor:
        for event in supervisor.events(signals):
            if event and event["event"] == "peer":
                ends_ns[event["module"]] = event["ends_ns"]
                peaks[event["module"] - 1] = event["peak"]
                profiles.append({"device": plan.devices[0], **event})
    first = settings.warmup - 1  # the clock starts with the end of the last iteration that is not timed
    times = [[(end - start) / 1e9 for start, end in pairwise(ends[first:])] for ends in ends_ns.values()]
    busy_s, num_kernels = load_of(profiles)
    return Measurement(max(times, key=sum), peak_bytes=peaks, device_busy_s=busy_s, num_kernels=num_kernels)


def collector_of(plan: Plan) -> Collector:
    """For the events of a contender that is a method."""
    return Collector(
        plan.num_modules,
        plan.steps_per_epoch,
        plan.config["batch_size"],
        in_parallel=True,
        num_replicas=plan.num_replicas,
    )


def iterations_of(spans: Sequence[Span]) -> list[Iteration]:
    """Cuts the spans of one module into iterations; the first, which has no step before it, begins with its span."""
    found, start_ns = [], spans[0].start_ns
    phases: defaultdict[str, float] = defaultdict(float)
    for span in spans:
        phases[span.name] += (span.end_ns - span.start_ns) / 1e9
        if span.name == "step":
            found.append(Iteration((span.end_ns - start_ns) / 1e9, dict(phases)))
            start_ns = span.end_ns
            phases.clear()
    return found
