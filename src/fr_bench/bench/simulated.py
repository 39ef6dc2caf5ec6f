"""What the event simulation says of a row, from the times that its modules computed in that very run."""

from __future__ import annotations

from collections.abc import Mapping

from fr_bench.bench.rows import Row
from fr_bench.simulation import METHODS, ModuleTimes, Setup, make_schedule, simulate


def simulated_step_s(row: Row) -> float | None:
    """Seconds an iteration of the row's schedule if its modules compute as long as they did; None where that is not
    known (a peer, replicas, modules that share a GPU, or a method that the simulation does not know).

    Sending, and what the loop does between spans, are part of a module's own time. How long a module waits is for the
    simulation to find out: beside the measured step time it shows whether schedule and transport do what they should.
    """
    if row.method not in METHODS or not row.phases_s or row.replicas > 1 or row.shares_gpu:
        return None
    step_s = row.step_time_s.median
    modules = tuple(_module_times(phases, step_s) for phases in row.phases_s)
    return simulate(make_schedule(row.method, Setup(modules, (0.0,) * (row.k - 1)))).step_time_s


def _module_times(phases: Mapping[str, float], step_s: float) -> ModuleTimes:
    def seconds(*names: str) -> float:
        return sum(phases.get(name, 0.0) for name in names)

    between_spans_s = max(0.0, step_s - sum(phases.values()))
    replays = "replay" in phases
    return ModuleTimes(
        play_s=seconds("play") if replays else 0.0,
        forward_s=seconds("replay") if replays else seconds("play"),
        backward_s=seconds("loss", "backward"),
        step_s=seconds("step", "send features", "send gradient") + between_spans_s,
        load_s=seconds("load images"),
        synthesize_s=seconds("synthesize"),
    )
