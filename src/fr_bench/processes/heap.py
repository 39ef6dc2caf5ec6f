"""Memory of a whole process as the C library hands it out. Imports nothing heavy: some of it must come first."""

from __future__ import annotations

import contextlib
import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Has the C library keep what this process frees, instead of giving it back to the system.

    An iteration frees its activations and the next one allocates as many: given back in between, every page of them
    costs a fault, and being zeroed, once an iteration. Does nothing where malloc is not glibc's, and for threads but
    the first, unless :func:`share_one_heap` was called.
    """
    _mallopt(M_MMAP_MAX, 0)  # large blocks too come from the heap
    _mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # whose end is never cut off


def share_one_heap() -> None:
    """Has all threads allocate from the heap of the first, for a process in which another one trains: the others' own
    hold no block above 64 MiB, which then comes from the system every time, and are given back as soon as they are
    empty. Before the process has another thread: with the second the C library settles how many heaps there may be."""
    _mallopt(M_ARENA_MAX, 1)


def _mallopt(parameter: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).mallopt(parameter, value)
