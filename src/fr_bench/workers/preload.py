"""What the server of :mod:`fr_bench.processes.nursery` does before it forks: it imports what a worker needs.

The server must outlive signals that are sent to the whole process group, because its processes die with it, and must
itself die with the process that started it.
"""

import gc
import os
import signal
import sys
from types import TracebackType

from fr_bench.processes.child import CANNOT_FORK, IGNORED, die_with_parent


def end_in_words(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """What the server does where it cannot fork: the process that asked it to tells why, without a traceback."""
    if isinstance(error, BlockingIOError):
        os._exit(CANNOT_FORK)
    sys.__excepthook__(kind, error, where)


sys.excepthook = end_in_words
die_with_parent()
gc.disable()  # until a process is forked (see child.begin): what is imported stays, and is not to be looked through

import torch._dynamo  # noqa: E402, F401  # every optimizer imports it, which takes longer than torch itself

from fr_bench.workers import worker  # noqa: E402, F401

for number in IGNORED:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)  # see fr_bench.processes.nursery; what came until now is forgotten
gc.freeze()  # nor by the processes, which share its memory as long as they leave it alone
