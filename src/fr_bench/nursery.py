"""Where a run's processes come from: a server process imports torch once, and every process is forked from it.

A fresh interpreter for each of K modules would import torch, and what its optimizers import, K times: about five
seconds of a core each. The server starts no thread and touches no GPU, so what is forked from it is as good as new. It
lives as long as the process that uses it.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext


def context() -> ForkServerContext:
    """The context whose processes have torch and the worker imported; the server starts with its first process."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["fr_bench.preload"])
    return found
