"""How it shows that a device is full: the error has no type of its own."""

from __future__ import annotations

import errno

import torch

# How torch's allocator on the CPU, cuBLAS and cuDNN, and what is below them, say so.
_WORDS = ("can't allocate memory", "bad_alloc", "out of memory", "STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is what was missing, on a GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
