"""What the server of :mod:`fr_bench.processes.nursery` does before it forks: it imports what a worker needs.

The server must outlive signals that are sent to the whole process group, because its processes die with it, and must
itself die with the process that started it.
"""

import gc
import signal

from fr_bench.processes.child import IGNORED, die_with_parent

die_with_parent()
gc.disable()  # until a process is forked (see child.begin): what is imported stays, and is not to be looked through

import torch._dynamo  # noqa: E402, F401  # every optimizer imports it, which takes longer than torch itself

from fr_bench.workers import worker  # noqa: E402, F401

for number in IGNORED:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)  # see fr_bench.processes.nursery; what came until now is forgotten
gc.freeze()  # nor by the processes, which share its memory as long as they leave it alone
