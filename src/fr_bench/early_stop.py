"""What a signal does that asks to stop while there is no run to be saved: before one has begun, or between two.

Once a run is there, :func:`fr_bench.supervisor.watch_signals` answers instead. Imports nothing heavy: the first seconds
of a command are what this is for.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)  # Ctrl-C is Python's own KeyboardInterrupt


def catch() -> None:
    """From now on such a signal ends this process with the exit code of a run that was stopped, and a message.

    One that is ignored, as under ``nohup``, or that a launcher answers, is left alone.
    """
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)


def stop(number: int, _frame: FrameType | None) -> NoReturn:
    """The handler. It raises nothing, which might be caught in the middle of an import; there is nothing to tidy up."""
    message = f"fr-bench: stopped by {signal.Signals(number).name} while no run was under way\n"
    os.write(2, message.encode())
    os._exit(75)
