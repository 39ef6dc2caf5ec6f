"""How long a run is, and which of its iterations are told, evaluated, traced or profiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM = 3  # iterations with a full pipe, before any is profiled


@dataclass(frozen=True)
class Extent:
    """Of one run, as its trainer and its checkpointer see it.

    Attributes:
        num_steps: iterations of the run.
        steps_per_epoch: iterations of an epoch.
        eval_every: epochs between evaluations, or a fraction of one; the end of the run is evaluated in any case.
        log_every: iterations between ``train`` records.
        trace: iterations to record span by span, from the first in which all modules learn; 0 where there is a trace.
        profile: iterations to record with torch.profiler, outside the training clock and behind those of ``trace``.
        profile_folder: where these go.
    """

    num_steps: int
    steps_per_epoch: int
    eval_every: float
    log_every: int
    trace: int
    profile: int
    profile_folder: Path

    @classmethod
    def of(
        cls, config: Mapping[str, Any], num_steps: int, steps_per_epoch: int, profile_folder: Path, has_trace: bool
    ) -> Extent:
        """Of a run of ``config``; ``has_trace``: from before it was interrupted."""
        periods = {key: config[key] for key in ("eval_every", "log_every", "profile")}
        trace = 0 if has_trace else config["trace"]
        return cls(num_steps, steps_per_epoch, trace=trace, profile_folder=profile_folder, **periods)

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch, or the run, ends after ``step`` iterations."""
        return step % self.steps_per_epoch == 0 or step == self.num_steps

    def logs(self, step: int) -> bool:
        """Whether a ``train`` record is due after ``step`` iterations."""
        return step % self.log_every == 0 or step == self.num_steps

    def evaluates(self, step: int) -> bool:
        """Whether the run evaluates after ``step`` iterations."""
        return step == self.next_evaluation(step - 1)

    def next_evaluation(self, step: int) -> int:
        """The first step after ``step`` at which the run evaluates. Parts of an epoch that are no whole steps are
        rounded one by one, so that with 1/n every n-th is at the end of an epoch."""
        period = max(1.0, self.steps_per_epoch * self.eval_every)
        number = int(step / period)
        while round(number * period) <= step:
            number += 1
        return min(round(number * period), self.num_steps)

    def to_trace(self, start: int, num_modules: int) -> range:
        """The iterations to trace of a run that begins with ``start``: from the first in which all modules learn, if it
        gets there."""
        first = max(start, min(start + num_modules - 1, self.num_steps - self.trace))
        return range(first, first + self.trace)

    def to_profile(self, start: int, num_modules: int) -> range:
        """The iterations to profile of a run that begins with ``start``; fewer than asked for, or none, where it is too
        short for them."""
        behind_trace = self.to_trace(start, num_modules).stop if self.trace else 0
        warm = start + num_modules - 1 + WARM
        first = max(start, behind_trace, min(warm, self.num_steps - self.profile))
        return range(first, min(first + self.profile, self.num_steps))
