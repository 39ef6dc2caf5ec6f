"""Finds a process that hangs: each sends a pulse, and the parent counts for how long it has heard nothing.

A thread sends the pulse, so a step, a compilation or a wait for a neighbour may take as long as it likes. What stops a
pulse is what stops the whole process: SIGSTOP, a debugger, a device or a disk that does not answer.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fr_bench.processes.reporter import Reporter

PULSE = "pulse"
PULSE_S = 0.5
# The least of `hang_timeout`, seconds: a few pulses, which a busy machine may delay.
SMALLEST_TIMEOUT_S = 2.0
# What one turn of the parent's loop may count for, seconds: it waits for events for less than that. What is longer
# was the parent's own doing (it was stopped, or its disk was slow), and nobody else's.
LONGEST_TURN_S = 1.0

_STATES = {
    "T": "it is stopped, as by SIGSTOP",
    "t": "a debugger holds it",
    "D": "it waits for a device or a disk that does not answer",
}


def start_pulse(reporter: Reporter) -> None:
    """Sends the first pulse now, and others from a thread until the process ends or its parent is gone."""

    def beat() -> None:
        with contextlib.suppress(OSError):
            while True:
                reporter.send(PULSE)
                time.sleep(PULSE_S)

    threading.Thread(target=beat, name="pulse", daemon=True).start()


class Silence:
    """For how long the parent has heard nothing of each process.

    Counts seconds in which the parent was listening, from the process's first event on: before that it imports.

    Args:
        timeout_s: silence after which a process hangs; None to never find that.
        num_processes: numbered from 0.
    """

    def __init__(self, timeout_s: float | None, num_processes: int) -> None:
        self.timeout_s = float("inf") if timeout_s is None else timeout_s
        self._silent_s: list[float | None] = [None] * num_processes
        self._last_turn_s = time.monotonic()

    def take_turn(self, heard: Collection[int]) -> None:
        """The parent has listened, and has ``heard`` these processes since its last turn."""
        now_s = time.monotonic()
        turn_s = min(now_s - self._last_turn_s, LONGEST_TURN_S)
        self._last_turn_s = now_s
        for index, silent_s in enumerate(self._silent_s):
            if index in heard:
                self._silent_s[index] = 0.0
            elif silent_s is not None:
                self._silent_s[index] = silent_s + turn_s

    def hangs(self, index: int) -> bool:
        """Whether the process has been silent for too long."""
        silent_s = self._silent_s[index]
        return silent_s is not None and silent_s >= self.timeout_s


def state_in_words(pid: int) -> str:
    """What the system says of a process that hangs."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        letter = "?"
    return _STATES.get(letter, "its threads do not get to run")
