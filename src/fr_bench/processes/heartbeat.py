"""Finds a run that hangs: each process sends a pulse, and the parent counts for how long it has heard nothing of one.

A thread sends the pulse, so a step, a compilation or a wait for a neighbour may take as long as it likes. What stops a
pulse is what stops the whole process: SIGSTOP, a debugger, a device or a disk that does not answer.

The pulse also says what its process waits for. Where each of them waits, and goes on waiting for the same, they wait
for each other, and the run would never end.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fr_bench.errors import RunFailed
from fr_bench.waits import current_wait

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
                reporter.send(PULSE, wait=current_wait())
                time.sleep(PULSE_S)

    threading.Thread(target=beat, name="pulse", daemon=True).start()


class _Turns:
    """The turns of the parent's loop."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def take_s(self) -> float:
        """Seconds since the last turn in which the parent was listening."""
        now_s = time.monotonic()
        turn_s = min(now_s - self._last_s, LONGEST_TURN_S)
        self._last_s = now_s
        return turn_s


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
        self._turns = _Turns()

    def take_turn(self, heard: Collection[int]) -> None:
        """The parent has listened, and has ``heard`` these processes since its last turn."""
        turn_s = self._turns.take_s()
        for index, silent_s in enumerate(self._silent_s):
            if index in heard:
                self._silent_s[index] = 0.0
            elif silent_s is not None:
                self._silent_s[index] = silent_s + turn_s

    def hangs(self, index: int) -> bool:
        """Whether the process has been silent for too long."""
        silent_s = self._silent_s[index]
        return silent_s is not None and silent_s >= self.timeout_s


class Standstill:
    """For how long all processes have waited for each other.

    A wait lasts from the first pulse that tells of it to the last: of a process that is silent nothing is known.

    Args:
        timeout_s: after which they would for ever; None to never find that.
        modules: of the processes, by which messages name them: the first of each.
    """

    def __init__(self, timeout_s: float | None, modules: Sequence[int]) -> None:
        self._timeout_s = float("inf") if timeout_s is None else timeout_s
        self._modules = modules
        self._waits: list[Any] = [None] * len(modules)
        self._lasted_s = [0.0] * len(modules)
        self._began_s = [0.0] * len(modules)
        self._listened_s = 0.0
        self._turns = _Turns()

    def hear(self, index: int, wait: Sequence[Any] | None) -> None:
        """The pulse of process ``index`` tells of this ``wait`` (see :class:`fr_bench.waits.Wait`), or of none."""
        wait = wait and tuple(wait)  # a list where JSON has carried it
        if wait is None or wait != self._waits[index]:
            self._began_s[index] = self._listened_s
        self._waits[index] = wait
        self._lasted_s[index] = self._listened_s - self._began_s[index]

    def refuse(self) -> None:
        """The parent has listened; to be called in each of its turns.

        Raises:
            RunFailed: each process has waited for the same for too long.
        """
        self._listened_s += self._turns.take_s()
        if None not in self._waits and min(self._lasted_s) >= self._timeout_s:
            waits = [f"module {k} for {what}" for k, (_, what) in zip(self._modules, self._waits, strict=True)]
            raise RunFailed(
                f"all modules have waited for each other for {self._timeout_s:g} s: {'; '.join(waits)}. A method that "
                "receives what no module sends does that, or one that sends gradients which none receives (without "
                "sends_gradients = False), or a message that takes longer; a larger hang_timeout waits longer, null "
                "for ever",
                self._modules[0],
            )


def state_in_words(pid: int) -> str:
    """What the system says of a process that hangs."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        letter = "?"
    return _STATES.get(letter, "its threads do not get to run")
