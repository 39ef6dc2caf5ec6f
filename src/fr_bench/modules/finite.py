"""Notices the iteration in which a module's numbers stopped being finite, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from fr_bench.errors import Diverged

NEVER = 2**62


class FiniteWatch:
    """Remembers, on the device, the first step whose loss or gradient was infinite or not a number.

    What goes wrong anywhere in a module reaches the gradient of its first layer in the same backward pass, so one
    small gradient tells for all.
    """

    def __init__(self, number: int, device: torch.device) -> None:
        self._number = number
        self._first_bad_step = torch.full((), NEVER, dtype=torch.int64, device=device)

    def add(self, value: Tensor, t: int) -> None:
        """Looks at ``value`` (any shape, so small that its sum is cheap) of iteration ``t``."""
        step = torch.where(torch.isfinite(value.sum()), NEVER, t + 1)
        self._first_bad_step = torch.minimum(self._first_bad_step, step)

    def check(self) -> None:
        """Waits for the device.

        Raises:
            Diverged: something was not finite; names the first such step, counted from 1 as in the records.
        """
        step = int(self._first_bad_step)
        if step != NEVER:
            raise Diverged(step, self._number)
