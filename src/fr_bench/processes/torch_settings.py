"""Torch's settings of a whole process: threads, precision and determinism."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def configure_torch(device: str, threads: int, precision: str, deterministic: bool) -> None:
    """Sets this process up for a run; before its first use of CUDA, in the thread that trains.

    Args:
        device: of the process's modules: ``cpu``, or a GPU by name.
        threads: on the CPU.
        precision, deterministic: as in the config.
    """
    torch.set_num_threads(threads)
    choose_algorithms(deterministic)
    if device != "cpu":
        torch.cuda.set_device(device)  # what names no device is done there, and no other GPU is touched
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def choose_algorithms(deterministic: bool) -> None:
    """Has torch use only algorithms that give the same bits every time, if ``deterministic``."""
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before CUDA starts
    torch.use_deterministic_algorithms(deterministic)
    # Nothing reads memory that was not written: filling it, such as the memory for every message, would be for nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Has the C library keep what this process frees, instead of giving it back to the system.

    An iteration frees its activations and the next one allocates as many: given back in between, every page of them
    costs a fault, and being zeroed, once an iteration. Does nothing where malloc is not glibc's.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_MAX, 0)  # large blocks too come from the heap
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # whose end is never cut off
