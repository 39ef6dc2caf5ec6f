"""Bytes that a module holds, by what they are for, and the peak of its device or process."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from fr_bench.methods.base import Method
from fr_bench.module import Module


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of ``tensors``, each storage counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def account(module: Module, method: Method, buffer_bytes: int, device: torch.device) -> dict[str, int]:
    """The module's memory between two iterations, in bytes.

    ``gradients`` is what they occupy during a step (they are released after it); ``peak`` is the allocator's
    peak on a GPU since the last account, and the peak resident memory of the process on the CPU. Modules that
    share a process or a GPU share its peak.
    """
    parameters = list(module.network.parameters())
    kept = {"history": [], **method.kept_tensors()}
    state = (value for values in module.optimizer.state.values() for value in values.values())
    return {
        "parameters": tensor_bytes([*parameters, *module.network.buffers()]),
        "gradients": sum(p.numel() * p.element_size() for p in parameters if p.requires_grad),
        "optimizer": tensor_bytes(value for value in state if isinstance(value, Tensor)),
        **{kind: tensor_bytes(tensors) for kind, tensors in kept.items()},
        "buffers": buffer_bytes,
        "peak": peak_bytes(device),
    }


def peak_bytes(device: torch.device) -> int:
    """Peak memory: of the CUDA allocator (reset by this call), or resident memory of this process."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
