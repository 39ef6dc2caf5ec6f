"""Signals while there is no run to be saved: before one has begun, between two, or once all is done.

Once a run is there, :func:`fr_bench.launching.signal_watch.watch_signals` answers instead. Imports nothing heavy: the
first seconds of a command, and its last tenths of one, are what this is for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

THAT_STOP = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)  # Ctrl-C is Python's own KeyboardInterrupt


def catch_early() -> None:
    """From now on such a signal ends this process with the exit code of a run that was stopped, and a message.

    One that is ignored, as under ``nohup``, or that a launcher answers, is left alone.
    """
    for number in THAT_STOP:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop_early)


def stop_early(number: int, _frame: FrameType | None) -> NoReturn:
    """The handler. It raises nothing, which might be caught in the middle of an import; there is nothing to tidy up but
    the folder of the server of processes, which may have been started."""
    message = f"fr-bench: stopped by {signal.Signals(number).name} while no run was under way\n"
    with contextlib.suppress(OSError):
        os.write(2, message.encode())
    with contextlib.suppress(Exception):
        sys.modules["multiprocessing.util"]._run_finalizers()
    os._exit(75)


def ignore_late() -> None:
    """From now on such a signal is ignored: what this process came to is known, and its exit code is to say that. While
    it ends, for some tenths of a second, Python would put the system's own answer back in place of ours."""
    for number in THAT_STOP:
        signal.signal(number, signal.SIG_IGN)


def how_it_ended(exit_code: int | None) -> str:
    """What became of a process that did not do its part, as what follows its name: ``was killed by SIGSEGV``."""
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}" + (", before it was done" if exit_code == 0 else "")
    known = {number.value: number.name for number in signal.Signals}
    how = f"was killed by {known.get(-exit_code, f'signal {-exit_code}')}"
    if -exit_code == signal.SIGKILL:
        how += " (by hand, or by the system for want of memory: see dmesg)"
    return how


@contextmanager
def held_back(numbers: Iterable[int]) -> Iterator[None]:
    """Those of ``numbers`` that come inside arrive afterwards, unless the process has other threads already, which may
    take them; a thread or process started inside has them blocked, until it says otherwise."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
