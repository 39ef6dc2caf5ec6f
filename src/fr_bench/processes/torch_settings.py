"""Torch's settings of a whole process: threads, precision and determinism."""

from __future__ import annotations

import os

import torch


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
