"""When each step of a peer ended: by the host's clock, or by events that a GPU reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch


class StepClock:
    """Made before the first step. On a GPU nothing waits for the device until the times are asked for."""

    def __init__(self, device: str, make_event: Callable[[], Any] | None = None) -> None:
        """
        Args:
            device: ``cpu``, or a GPU by name, which is the process's current one.
            make_event: for tests, which have no GPU.
        """
        self._start_ns = time.monotonic_ns()
        self._ends_ns: list[int] = []
        self._make_event = make_event or (lambda: torch.cuda.Event(enable_timing=True))
        self._events: list[Any] = []
        if device != "cpu":
            self._record()

    def tick(self) -> None:
        """A step was done, or on a GPU queued."""
        if self._events:
            self._record()
        else:
            self._ends_ns.append(time.monotonic_ns())

    def _record(self) -> None:
        self._events.append(self._make_event())
        self._events[-1].record()

    def ends_ns(self) -> list[int]:
        """By step: ``time.monotonic_ns``, on a GPU only as exact as it was idle at the start. Differences are exact."""
        if not self._events:
            return self._ends_ns
        self._events[-1].synchronize()
        ends_ns, end_ns = [], float(self._start_ns)
        for one, following in pairwise(self._events):  # from one to the next: milliseconds in float32
            end_ns += one.elapsed_time(following) * 1e6
            ends_ns.append(round(end_ns))
        return ends_ns
