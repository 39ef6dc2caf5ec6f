"""What the server of :mod:`fr_bench.nursery` does before it forks: it imports what a worker needs.

The server must outlive signals that are sent to the whole process group, because its processes die with it, and must
itself die with the process that started it.
"""

import signal

import torch._dynamo  # noqa: F401  # every optimizer imports it, which takes longer than torch itself

from fr_bench import worker  # noqa: F401
from fr_bench.child import IGNORED, die_with_parent

for number in IGNORED:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)  # see fr_bench.nursery; what came until now is forgotten
die_with_parent()
