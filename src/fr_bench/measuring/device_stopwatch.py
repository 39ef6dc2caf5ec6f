"""A stopwatch whose spans are those of a GPU, timed by events that its stream reaches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from fr_bench.measuring.stopwatch import Span, Stopwatch

LOOK_EVERY = 64  # spans, after which those that are done are turned into seconds
# elapsed_time is a float32 of milliseconds: within so many of them it is as exact as the device's own timer.
FURTHEST_MS = 500.0


class TimingEvent(Protocol):
    """What is used of ``torch.cuda.Event(enable_timing=True)``."""

    def record(self, stream: torch.cuda.Stream | None = None) -> None:
        """Queues it on ``stream``."""

    def query(self) -> bool:
        """Whether the stream has reached it."""

    def synchronize(self) -> None:
        """Waits until the stream has reached it."""

    def elapsed_time(self, end_event: Any, /) -> float:
        """Milliseconds from this event to ``end_event``; both must have been reached."""


@dataclass(eq=False)
class Moment:
    """One point of a stream.

    Attributes:
        event: queued there; None once ``time_ns`` is known.
        time_ns: on the clock of ``time.monotonic_ns``, when the device got there.
    """

    event: TimingEvent | None
    time_ns: int = 0


class OpenSpan(NamedTuple):
    """A span whose end the device may not have reached yet."""

    name: str
    start: Moment
    end: Moment
    batch: int
    is_traced: bool


class DeviceStopwatch(Stopwatch):
    """Times what the current stream of ``device`` does between the start and the end of each span.

    That is work, and what the stream waits for in between: another stream, a neighbour's message, or a host that is
    late with the next kernel. Nothing waits for the device until somebody asks for the times.
    """

    def __init__(self, device: torch.device, make_event: Callable[[], TimingEvent] | None = None) -> None:
        """
        Args:
            device: a GPU.
            make_event: for tests, which have none.
        """
        super().__init__()
        self._device = device
        self._make_event = make_event
        self._pool: list[TimingEvent] = []
        self._moments: deque[Moment] = deque()  # whose time is not known, in the order in which they were queued
        self._open: deque[OpenSpan] = deque()
        self._base: TimingEvent | None = None  # reached, and when
        self._base_ns = 0
        self._num_until_look = LOOK_EVERY

    def begin(self) -> None:
        """Sets the device's clock by the host's. Waits for the current stream."""
        self._resolve(wait=True)
        base = self._base or self._take_event()
        stream = self._current_stream()
        if stream is not None:
            stream.synchronize()
        before_ns = time.monotonic_ns()
        base.record(stream)
        base.synchronize()
        self._base, self._base_ns = base, (before_ns + time.monotonic_ns()) // 2

    def _now(self) -> Moment:
        """Queues an event."""
        if self._base is None:
            self.begin()
        event = self._take_event()
        event.record(self._current_stream())
        moment = Moment(event)
        self._moments.append(moment)
        return moment

    def _add(self, name: str, start: Moment, end: Moment, batch: int) -> None:
        self._open.append(OpenSpan(name, start, end, batch, self.tracing))
        self._num_until_look -= 1
        if self._num_until_look <= 0:
            self._resolve(wait=False)
            self._num_until_look = LOOK_EVERY

    def settle(self) -> None:
        """Waits until the device is past the last span."""
        self._resolve(wait=True)

    def _resolve(self, wait: bool) -> None:
        """Reads the times of what the device has reached; if ``wait``, of all that was queued."""
        if wait and self._moments:
            last = self._moments[-1].event
            assert last is not None
            last.synchronize()
        while self._moments:
            moment = self._moments[0]
            assert moment.event is not None and self._base is not None
            if not moment.event.query():
                if not wait:
                    break
                moment.event.synchronize()  # of another stream than the last one
            self._moments.popleft()
            self._read(moment)
        while self._open and self._open[0].end.event is None:
            name, start, end, batch, is_traced = self._open.popleft()
            self._sums_ns[name] += end.time_ns - start.time_ns
            if is_traced:
                self._spans.append(Span(name, start.time_ns, end.time_ns, batch))

    def _read(self, moment: Moment) -> None:
        """Its time, from the base; one that is far from it is the next base."""
        event = moment.event
        assert event is not None and self._base is not None
        elapsed_ms = self._base.elapsed_time(event)
        moment.event, moment.time_ns = None, self._base_ns + round(elapsed_ms * 1e6)
        if elapsed_ms > FURTHEST_MS:
            event, self._base = self._base, event
            self._base_ns = moment.time_ns
        self._pool.append(event)

    def _take_event(self) -> TimingEvent:
        if self._pool:
            return self._pool.pop()
        return self._make_event() if self._make_event is not None else torch.cuda.Event(enable_timing=True)

    def _current_stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.current_stream(self._device) if self._make_event is None else None


def make_stopwatch(device: torch.device) -> Stopwatch:
    """The stopwatch of a module on ``device``: the host's on the CPU, else the GPU's."""
    return DeviceStopwatch(device) if device.type == "cuda" else Stopwatch()
