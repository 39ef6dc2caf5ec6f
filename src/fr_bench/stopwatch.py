"""Where a module's time goes: named spans on the machine-wide monotonic clock."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Span(NamedTuple):
    """One stretch of a module's time. Nanoseconds of ``time.monotonic_ns``, which all processes share."""

    name: str
    start_ns: int
    end_ns: int
    batch: int


# Each span's share in the `time` records (the four of the run directory's contract).
KINDS = {
    "wait features": "wait_s",
    "wait gradient": "wait_s",
    "wait neighbours": "wait_s",
    "wait replicas": "wait_s",
    "load images": "play_s",
    "play": "play_s",
    "replay": "learn_s",
    "loss": "learn_s",
    "backward": "learn_s",
    "synthesize": "learn_s",
    "step": "learn_s",
    "send features": "send_s",
    "send gradient": "send_s",
}


class Stopwatch:
    """Sums spans by name and, while ``tracing``, keeps each of them.

    On a GPU a span is the time that the host spent: launching, or waiting where the transport waits.
    """

    def __init__(self) -> None:
        self.tracing = False
        self._running = True
        self.spans: list[Span] = []
        self._sums_ns: defaultdict[str, int] = defaultdict(int)
        self._rest: tuple[str, int] | None = None  # name and batch of what no span covers now
        self._rest_from_ns = 0

    @property
    def is_running(self) -> bool:
        """Whether spans are timed: what happens is training."""
        return self._running

    @contextmanager
    def span(self, name: str, batch: int) -> Iterator[None]:
        """Times the body as ``name`` (a key of KINDS), working on mini-batch ``batch``."""
        if not self._running:
            yield
            return
        start_ns = time.monotonic_ns()
        self._end_rest(start_ns)
        yield
        self._rest_from_ns = time.monotonic_ns()
        self._add(name, start_ns, self._rest_from_ns, batch)

    @contextmanager
    def rest(self, name: str, batch: int) -> Iterator[None]:
        """Times as ``name`` what of the body no span inside covers."""
        if not self._running:
            yield
            return
        self._rest, self._rest_from_ns = (name, batch), time.monotonic_ns()
        yield
        self._end_rest(time.monotonic_ns())
        self._rest = None

    def _end_rest(self, now_ns: int) -> None:
        if self._rest is not None:
            name, batch = self._rest
            self._add(name, self._rest_from_ns, now_ns, batch)

    def _add(self, name: str, start_ns: int, end_ns: int, batch: int) -> None:
        self._sums_ns[name] += end_ns - start_ns
        if self.tracing:
            self.spans.append(Span(name, start_ns, end_ns, batch))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Spans inside are not timed: something beside training (rehearsal, diagnostics) uses the module."""
        self._running = False
        try:
            yield
        finally:
            self._running = True

    def take(self) -> dict[str, float]:
        """Returns the seconds by kind (``play_s, learn_s, wait_s, send_s``) since the last call."""
        seconds = dict.fromkeys(("play_s", "learn_s", "wait_s", "send_s"), 0.0)
        for name, total_ns in self._sums_ns.items():
            seconds[KINDS[name]] += total_ns / 1e9
        self._sums_ns.clear()
        return seconds

    def state_dict(self) -> dict[str, int]:
        """Nanoseconds by name since the last :meth:`take`."""
        return dict(self._sums_ns)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on with the sums of :meth:`state_dict`."""
        self._sums_ns.clear()
        self._sums_ns.update(state)
