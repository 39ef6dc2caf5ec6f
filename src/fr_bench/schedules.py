"""Learning-rate schedules: the factor on the base learning rate, a pure function of the iteration.

A schedule knows nothing of modules: the learning rate of iteration t is the same for all of them,
whether they step or not. Every schedule may begin with a linear warm-up of ``warmup_epochs``.

The length of a schedule is ``epochs``, also where ``max_steps`` ends the run before: the steps of a run cut short are
the first of the whole one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fr_bench.errors import ConfigError

# In epochs, far less than an iteration: 0.55 of 20 epochs is 11.000000000000002 in floating point, and epoch 11 is 11.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base: linear warm-up from 0, then :meth:`after_warmup`."""

    warmup_epochs: float = 0

    def __post_init__(self) -> None:
        _check_not_negative("warmup_epochs", self.warmup_epochs)

    def factor(self, t: int, steps_per_epoch: int, epochs: float) -> float:
        """Returns the factor of iteration ``t`` (from 0) of ``epochs`` epochs, of which the run may make fewer."""
        warmup_steps = self.warmup_epochs * steps_per_epoch
        warmup = min(1.0, (t + 1) / warmup_steps) if warmup_steps > 0 else 1.0
        return warmup * self.after_warmup(t / steps_per_epoch, epochs)

    def after_warmup(self, epoch: float, epochs: float) -> float:
        """Returns the factor at ``epoch`` (a fraction of an epoch counts) without the warm-up."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The base learning rate throughout."""


@dataclass(frozen=True, kw_only=True)
class MultiStep(Schedule):
    """Multiplies by ``gamma`` at each milestone.

    A milestone below 1 is a fraction of ``epochs``, from 1 on it is an epoch: ``[0.5, 0.75]`` of 300 epochs is the
    paper's ``[150, 225]``, and keeps its shape with fewer ``epochs``.
    """

    milestones: Sequence[float] = (0.5, 0.75)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.milestones, list | tuple):
            raise ConfigError(
                f"schedule.milestones={self.milestones}: must be a list, such as schedule.milestones=[0.5,0.75]"
            )
        are_numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in self.milestones)
        if not are_numbers or any(milestone <= 0 for milestone in self.milestones):
            raise ConfigError(f"schedule.milestones={list(self.milestones)}: must be positive numbers")
        _check_not_negative("gamma", self.gamma)

    def after_warmup(self, epoch: float, epochs: float) -> float:
        """Returns ``gamma`` to the number of milestones passed."""
        starts = (milestone * epochs if milestone < 1 else milestone for milestone in self.milestones)
        return self.gamma ** sum(epoch >= start - ROUNDING for start in starts)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from 1 to ``final`` over ``epochs`` (Loshchilov and Hutter 2017, without restarts)."""

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_not_negative("final", self.final)

    def after_warmup(self, epoch: float, epochs: float) -> float:
        """Returns the cosine's value at ``epoch``."""
        progress = min(epoch / epochs, 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


def _check_not_negative(key: str, value: float) -> None:
    if value < 0:
        raise ConfigError(f"schedule.{key}={value}: must be 0 or more")
