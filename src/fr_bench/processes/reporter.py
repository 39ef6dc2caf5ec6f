"""Events that a module sends to the parent process, which alone writes files and talks to W&B."""

from __future__ import annotations

import threading
import time
from collections.abc import MutableSequence, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fr_bench.measuring.stopwatch import Span


class EventSink(Protocol):
    """A pipe to the parent, or what stands in its place."""

    def send(self, event: dict[str, Any], /) -> None:
        """Sends one event.

        Raises:
            OSError: nobody is there to receive it.
        """


BEFORE_TRAINING = -1


class Reporter:
    """The worker's end: flat events over a pipe, and the iteration each module is in, in shared memory.

    Every event carries ``event`` (its kind) and ``time_ns`` (``time.monotonic_ns``, one clock for all
    processes of a machine; elsewhere ``offset_ns`` is added, see fr_bench.measuring.clocks).
    """

    def __init__(self, connection: EventSink, progress: MutableSequence[int]) -> None:
        self.offset_ns = 0
        self._connection = connection
        self._progress = progress
        self._lock = threading.Lock()  # checkpoints and pulses are sent by threads of their own

    def send(self, event: str, **fields: Any) -> None:
        """Sends one event to the parent."""
        with self._lock:
            self._connection.send({"event": event, "time_ns": self.now_ns(), **fields})

    def now_ns(self) -> int:
        """The time of an event that happens now."""
        return time.monotonic_ns() + self.offset_ns

    def send_trace(self, module: int, spans: Sequence[Span]) -> None:
        """Sends what a stopwatch kept, on the clock of the events."""
        shifted = [(name, start + self.offset_ns, end + self.offset_ns, batch) for name, start, end, batch in spans]
        self.send("trace", module=module, spans=shifted)

    def enter_iteration(self, number: int, t: int) -> None:
        """Notes that module ``number`` is in iteration ``t``: what the parent says of a module that dies."""
        self._progress[number - 1] = t

    def when(self, number: int) -> str:
        """Where module ``number`` is, in words."""
        return when(self._progress[number - 1])


def when(t: int) -> str:
    """Iteration ``t`` in words; users count steps from 1."""
    return "before the first step" if t == BEFORE_TRAINING else f"in step {t + 1}"
