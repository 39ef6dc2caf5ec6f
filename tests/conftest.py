"""What every test process is set up with."""

import gc
import os

from fr_bench.cli import leave_what_stays

# Before torch is imported. The tests' tensors are tiny, and several test processes share the cores: a second thread in
# each is mostly waiting for the first, and waits by spinning. Runs set the number of their threads themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Torch's modules make a million objects that stay; looking through them again and again takes a tenth of the tests'
# time. fr_bench.cli.console does the same.
gc.set_threshold(200_000, 10, 10)


def pytest_collection_finish() -> None:
    """What has been imported and collected stays until the end: it need not be looked through any more (another
    fifteenth of the time of a test that composes configs)."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Nor shall pytest, and then the interpreter, look through all of them again and again before they end."""
    leave_what_stays()
