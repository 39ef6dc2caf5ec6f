"""The learning rates of an optimizer's parameter groups, which the schedule scales and never replaces."""

from __future__ import annotations

import torch


class LearningRates:
    """Those that a new optimizer has, by group: of torch's own all are the config's, of a user's own some may differ.

    A group that has none is left alone.

    Args:
        optimizer: as it was made.
        multiplier: on all of them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, multiplier: float = 1.0) -> None:
        self._optimizer = optimizer
        rates = [group.get("lr") for group in optimizer.param_groups]
        self._initial = [None if rate is None else rate * multiplier for rate in rates]

    def scale(self, factor: float) -> None:
        """Sets each group's to its initial one times ``factor``, the schedule's."""
        for group, initial in zip(self._optimizer.param_groups, self._initial, strict=True):
            if initial is not None:
                group["lr"] = initial * factor
