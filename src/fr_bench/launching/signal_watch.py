"""Signals that end a run, or the time that it was given: who asked it to stop, how urgently, with which exit code."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fr_bench.errors import Interrupted
from fr_bench.processes.signals import THAT_STOP, stop_early

# How long modules may take to finish a step, or an evaluation, and save it once a signal asks them to. Slurm kills
# 30 s after SIGTERM, and sends SIGUSR2 two minutes before that, with our settings.
STOP_WITHIN_S = 25.0
STOP_WITHIN_S_OF = {signal.SIGUSR2: 110.0}
# One wish, told twice: `timeout` signals its child and then the group, a cluster the process and then the job.
SAME_WISH_S = 1.0

SIGNAL_EXIT_CODES = {signal.SIGINT: 130, **dict.fromkeys(THAT_STOP, 75)}


class SignalWatch:
    """Remembers the first signal that asks the run to end, or that its time is up.

    Args:
        max_time_s: seconds from now until that.
        previous: the handlers that were there before, for :meth:`hand_on`.
    """

    def __init__(self, max_time_s: float = float("inf"), previous: Mapping[int, Any] | None = None) -> None:
        self.received: int | None = None
        self._signaled_at_s = float("inf")  # monotonic
        self._is_insisting = False
        self._ends_at_s = time.monotonic() + max_time_s
        self._max_time_s = max_time_s
        self._previous = previous or {}

    def handle(self, number: int, _frame: Any) -> None:
        """The signal handler."""
        now_s = time.monotonic()
        self._is_insisting = self.received is not None and now_s >= self._signaled_at_s + SAME_WISH_S
        if self.received is None:
            self.received, self._signaled_at_s = number, now_s

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether the run shall end."""
        return self.received is not None or time.monotonic() >= self._ends_at_s

    @property
    def is_impatient(self) -> bool:
        """Whether it shall end at once: a second signal came later on, or a step and its checkpoint take longer after
        the first than whoever sent it may wait. Where the time is up nobody does."""
        if self.received is None:
            return False
        within_s = STOP_WITHIN_S_OF.get(signal.Signals(self.received), STOP_WITHIN_S)
        return self._is_insisting or time.monotonic() > self._signaled_at_s + within_s

    @property
    def exit_code(self) -> int:
        """Of a run that ends for this reason."""
        return 75 if self.received is None else SIGNAL_EXIT_CODES[signal.Signals(self.received)]

    def interruption(self, step: int | None = None) -> Interrupted:
        """The end of a run for this reason; ``step``: after which all modules ended, if they did so together."""
        by = f"max_time={self._max_time_s / 60:g} (minutes)"
        if self.received is not None:
            by = signal.Signals(self.received).name
        return Interrupted(f"stopped by {by}" + ("" if step is None else f" after step {step}"), self.exit_code)

    def hand_on(self, interruption: Interrupted) -> Interrupted:
        """Calls the handler that was there before for the signal that came, as a launcher's (submitit's) requeues the
        job; where the time was up, that of SIGUSR2, with which such a launcher announces the same. Python's own for
        Ctrl-C, which raises, is left out, and ours for the time before a run.

        Returns:
            ``interruption``, with what came of it.
        """
        number = self.received or signal.SIGUSR2
        handler = self._previous.get(number)
        if not callable(handler) or handler in (signal.default_int_handler, stop_early):
            return interruption
        try:
            handler(number, None)
        except SystemExit:  # submitit's has requeued the job, and means to end this process
            return Interrupted(f"{interruption}; its job is back in the queue", interruption.exit_code)
        except Exception as error:  # submitit's says why it has not
            return Interrupted(f"{interruption}; {error}", interruption.exit_code)
        return interruption


@contextmanager
def watch_signals(max_time_s: float = float("inf")) -> Iterator[SignalWatch]:
    """Catches the signals that end a run, also where a shell's ``nohup ... &`` had SIGINT ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield SignalWatch(max_time_s)
        return
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNAL_EXIT_CODES}
    if previous[signal.SIGHUP] == signal.SIG_IGN:  # nohup means it
        del previous[signal.SIGHUP]
    watch = SignalWatch(max_time_s, previous)
    for number in previous:
        signal.signal(number, watch.handle)
    try:
        yield watch
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
