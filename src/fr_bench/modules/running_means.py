"""What a method measures in a module, summed on the device and turned into numbers only when it is logged."""

from __future__ import annotations

from typing import Any

from torch import Tensor

TAKEN = ("kind", "step", "epoch", "train_time", "module", "event", "time_ns")  # by what every record has


class RunningMeans:
    """Means of named values since the last :meth:`take`."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, int]] = {}  # and of how many values

    def add(self, name: str, value: Tensor | float) -> None:
        """Adds a value; never waits for the device.

        Raises:
            ValueError: ``name`` is no field of a record, or ``value`` is not one number.
        """
        if not name.isidentifier() or name in TAKEN:
            raise ValueError(f"record({name!r}, ...): a name is an identifier, and none of {', '.join(TAKEN)}")
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"record({name!r}, ...): a value is one number, not {list(value.shape)}")
            value = value.detach().double().reshape(())
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + value, count + 1

    def take(self) -> dict[str, float]:
        """Returns the mean of each name that has values, and starts anew."""
        means = {name: float(total) / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """The sums since the last :meth:`take`."""
        return dict(self._sums)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the sums of :meth:`state_dict`; those on the CPU move with the next value."""
        self._sums = dict(state)
