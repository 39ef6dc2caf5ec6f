"""Iterations that the training clock leaves out: those that were profiled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class UntimedSteps:
    """From `profile` records or events, of which every process sends one for the same iterations."""

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self._steps: set[int] = set()  # a few: counted from 1, by what they complete
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes one, with ``step`` (the last of them) and ``iterations``."""
        step, iterations = record.get("step"), record.get("iterations")
        if isinstance(step, int) and isinstance(iterations, int):
            self._steps.update(range(max(1, step - iterations + 1), step + 1))

    def between(self, after: float, until: float) -> int:
        """How many of the steps ``after`` + 1 to ``until`` are not timed."""
        return sum(after < step <= until for step in self._steps)
