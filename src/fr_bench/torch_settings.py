"""Torch's settings of a whole process: threads, precision and determinism."""

from __future__ import annotations

import os

import torch


def configure_torch(device: str, threads: int, precision: str, deterministic: bool) -> None:
    """Sets this process up for a run; before its first use of CUDA.

    Args:
        device: of the process's modules: ``cpu``, or a GPU by name.
        threads: on the CPU.
        precision, deterministic: as in the config.
    """
    torch.set_num_threads(threads)
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before CUDA starts
        torch.use_deterministic_algorithms(True)
    if device != "cpu":
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
