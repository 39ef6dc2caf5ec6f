"""Where a module's time goes: named spans on the machine-wide monotonic clock."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


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

    These are times of the host. See :class:`fr_bench.measuring.device_stopwatch.DeviceStopwatch` for those of a GPU.
    """

    def __init__(self) -> None:
        self.tracing = False
        self._running = True
        self._spans: list[Span] = []
        self._sums_ns: defaultdict[str, int] = defaultdict(int)
        self._rest: tuple[str, int] | None = None  # name and batch of what no span covers now
        self._rest_from: Any = None

    def begin(self) -> None:
        """A stretch of training begins."""

    @contextmanager
    def span(self, name: str, batch: int) -> Iterator[None]:
        """Times the body as ``name`` (a key of KINDS), working on mini-batch ``batch``."""
        if not self._running:
            yield
            return
        start = self._now()
        self._end_rest(start)
        yield
        self._rest_from = self._now()
        self._add(name, start, self._rest_from, batch)

    @contextmanager
    def rest(self, name: str, batch: int) -> Iterator[None]:
        """Times as ``name`` what of the body no span inside covers."""
        if not self._running:
            yield
            return
        self._rest, self._rest_from = (name, batch), self._now()
        yield
        self._end_rest(self._now())
        self._rest = None

    def _end_rest(self, now: Any) -> None:
        if self._rest is not None:
            name, batch = self._rest
            self._add(name, self._rest_from, now, batch)

    def _now(self) -> Any:
        """This moment, as :meth:`_add` takes it: here nanoseconds."""
        return time.monotonic_ns()

    def _add(self, name: str, start: Any, end: Any, batch: int) -> None:
        self._sums_ns[name] += end - start
        if self.tracing:
            self._spans.append(Span(name, start, end, batch))

    def settle(self) -> None:
        """Has the sums and spans complete, which may mean to wait for a device."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Spans inside are not timed: something beside training (rehearsal, diagnostics) uses the module."""
        before, self._running = self._running, False
        try:
            yield
        finally:
            self._running = before

    def take_spans(self) -> list[Span]:
        """Returns those that were traced since the last call."""
        self.settle()
        spans, self._spans = self._spans, []
        return spans

    def take(self) -> dict[str, float]:
        """Returns the seconds by kind (``play_s, learn_s, wait_s, send_s``) since the last call."""
        self.settle()
        seconds = dict.fromkeys(("play_s", "learn_s", "wait_s", "send_s"), 0.0)
        for name, total_ns in self._sums_ns.items():
            seconds[KINDS[name]] += total_ns / 1e9
        self._sums_ns.clear()
        return seconds

    def state_dict(self) -> dict[str, int]:
        """Nanoseconds by name since the last :meth:`take`."""
        self.settle()
        return dict(self._sums_ns)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on with the sums of :meth:`state_dict`."""
        self.settle()
        self._sums_ns.clear()
        self._sums_ns.update(state)
