"""Simulates a schedule and says how fast it is once its pipe is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fr_bench.simulation.engine import execute
from fr_bench.simulation.program import Schedule


@dataclass(frozen=True)
class Prediction:
    """What a schedule would do on devices of its own.

    Attributes:
        schedule: its name.
        num_devices: that it uses.
        step_time_s: seconds between two mini-batches in the steady state.
        busy_s: by device, seconds of a step in which it computes or copies.
        fill_s: seconds that a run takes beyond its number of steps times ``step_time_s``: to fill the pipe.
    """

    schedule: str
    num_devices: int
    step_time_s: float
    busy_s: tuple[float, ...]
    fill_s: float

    @property
    def busy_share(self) -> tuple[float, ...]:
        """By device, the share of its time in which it computes or copies."""
        return tuple(busy_s / self.step_time_s for busy_s in self.busy_s)

    @property
    def wait_s(self) -> tuple[float, ...]:
        """By device, seconds of a step in which it waits for others."""
        return tuple(max(0.0, self.step_time_s - busy_s) for busy_s in self.busy_s)

    @property
    def efficiency(self) -> float:
        """The busiest device's compute time over the step time, as in `time` records."""
        return max(self.busy_share)


def simulate(schedule: Schedule) -> Prediction:
    """Runs a schedule until it repeats itself and measures it from there.

    Args:
        schedule: made by one of the functions of this package.

    Raises:
        Deadlock: the schedule cannot go on.
        ConfigError: the setup's straggler factors are not one a device.
    """
    num_settling, num_measured = schedule.num_settling, schedule.num_measured
    num_iterations = num_settling + num_measured
    execution = execute(schedule, num_iterations)
    # Modules drift apart only as far as their channels let them, and then have one period. Where nothing is waited for
    # from above that can take long, and until then the slowest module's is that of the run.
    step_time_s = max(_mean_step_s(ends_s[num_settling - 1 :]) for ends_s in execution.ends_s)
    return Prediction(
        schedule=schedule.name,
        num_devices=len(schedule.programs),
        step_time_s=step_time_s,
        busy_s=tuple(sum(busy_s[num_settling:]) / num_measured for busy_s in execution.busy_s),
        fill_s=max(ends[-1] for ends in execution.ends_s) - num_iterations * step_time_s,
    )


def _mean_step_s(ends_s: Sequence[float]) -> float:
    """Mean seconds between ``ends_s``, over as many as make whole periods."""
    steps_s = [after - before for before, after in pairwise(ends_s)]
    closeness_s = 1e-9 * ends_s[-1]  # what rounding leaves between two that are the same
    num_whole = len(steps_s)
    for period in range(1, len(steps_s) // 2 + 1):
        if all(abs(steps_s[i] - steps_s[i - period]) <= closeness_s for i in range(period, len(steps_s))):
            num_whole -= num_whole % period
            break
    return (ends_s[-1] - ends_s[-1 - num_whole]) / num_whole
