"""Events that a module sends to the parent process, which alone writes files and talks to W&B."""

from __future__ import annotations

import threading
import time
from collections.abc import MutableSequence
from multiprocessing.connection import Connection
from typing import Any

BEFORE_TRAINING = -1


class Reporter:
    """The worker's end: flat events over a pipe, and the iteration each module is in, in shared memory.

    Every event carries ``event`` (its kind) and ``time_ns`` (``time.monotonic_ns``, one clock for all
    processes of a machine).
    """

    def __init__(self, connection: Connection, progress: MutableSequence[int]) -> None:
        self._connection = connection
        self._progress = progress
        self._lock = threading.Lock()  # checkpoints and pulses are sent by threads of their own

    def send(self, event: str, **fields: Any) -> None:
        """Sends one event to the parent."""
        with self._lock:
            self._connection.send({"event": event, "time_ns": time.monotonic_ns(), **fields})

    def enter_iteration(self, k: int, t: int) -> None:
        """Notes that module ``k`` is in iteration ``t``: what the parent says of a module that dies."""
        self._progress[k - 1] = t

    def when(self, k: int) -> str:
        """Where module ``k`` is, in words."""
        return when(self._progress[k - 1])


def when(t: int) -> str:
    """Iteration ``t`` in words; users count steps from 1."""
    return "before the first step" if t == BEFORE_TRAINING else f"in step {t + 1}"
