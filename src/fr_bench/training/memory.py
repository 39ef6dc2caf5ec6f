"""Bytes that a module holds, by what they are for, measured on one accounting pass outside the training clock.

Each storage counts once, in one of the categories of :mod:`fr_bench.measuring.categories`: parameters first, then
history, then stash, then activations. The account is that of the moment before a backward with a full pipe, when a
module holds most.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fr_bench.errors import ConfigError
from fr_bench.measuring.categories import KEPT, OTHER
from fr_bench.measuring.saved_tensors import PeakOfSaved, SavedTensors, state_tensors, tensor_bytes
from fr_bench.methods.base import Method
from fr_bench.modules.module import Module
from fr_bench.modules.passes import Pass


class Account:
    """The accounting pass of one module: what it saves while it plays batch ``t`` as its method would."""

    def __init__(self, module: Module, method: Method) -> None:
        self._module = module
        self._method = method
        self._saved = SavedTensors()
        self._kept: dict[str, list[Tensor]] = {}
        self._recomputed_bytes = 0
        self._peak: PeakOfSaved | None = None

    def play(self, x: Tensor, t: int) -> Pass:
        """Plays with a graph and changes nothing: no weight, no statistic, no random stream, nothing of the method."""
        with self._saved.listen():
            live, self._kept = self._method.account_play(x, t)
            if self._module.is_top:
                self._module.loss(live, self._method.link.targets(t))
        if self._module.network.checkpointing:  # one block at a time is recomputed: the largest counts
            with self._module.autocast():
                self._recomputed_bytes = max(self._module.network.block_graph_bytes(live.x, t))
        return live

    def play_iteration(self, t: int) -> None:
        """The same for a method whose library decides when a graph is built and used up: in place of :meth:`play`."""
        network, buffers = self._module.network, self._method.kept_tensors().get("buffers", [])
        self._peak = PeakOfSaved(except_for=[*network.parameters(), *network.buffers(), *buffers])
        with self._peak.listen():
            self._method.account_iteration(t, self._peak.hold)

    def take(self, buffer_bytes: int, device: torch.device, peak: Peak, alone: bool) -> dict[str, int]:
        """The module's bytes by category, and ``peak``.

        Args:
            buffer_bytes: of its channels.
            device: where it is.
            peak: of its process: see :class:`PeakMemory`.
            alone: whether the process has no other module, so that its peak is this module's.
        """
        parameters = list(self._module.network.parameters())
        weights = [*parameters, *self._module.network.buffers()]
        kept = {kind: list(tensors) for kind, tensors in self._method.kept_tensors().items()}
        if unknown := sorted(kept.keys() - {*KEPT}):
            raise ConfigError(
                f"{type(self._method).__name__}.kept_tensors: '{unknown[0]}' is no category of memory; "
                f"known are {', '.join(KEPT)}."
            )
        for kind, tensors in self._kept.items():
            kept.setdefault(kind, []).extend(tensors)
        elsewhere = [*weights, *kept.get("history", []), *kept.get("stash", [])]
        # Graphs are alike: one is measured, the others are counted.
        graph_bytes = tensor_bytes(self._saved.tensors, except_for=elsewhere) * self._method.num_graphs
        if self._peak is not None:
            graph_bytes = self._peak.num_bytes["activations"]
            buffer_bytes += self._peak.num_bytes["buffers"]
        account = {
            "parameters": tensor_bytes(weights),
            "gradients": sum(p.numel() * p.element_size() for p in parameters if p.requires_grad),
            "optimizer": tensor_bytes(state_tensors(self._module.optimizer)),
            "history": tensor_bytes(kept.get("history", [])),
            "activations": graph_bytes + self._recomputed_bytes,
            "stash": tensor_bytes(kept.get("stash", [])),
            "synthesizer": tensor_bytes(kept.get("synthesizer", []), except_for=[*elsewhere, *self._saved.tensors]),
            "buffers": buffer_bytes + tensor_bytes(kept.get("buffers", [])),
        }
        if device.type == "cuda" and alone:
            account[OTHER] = unexplained(account, peak.num_bytes)
        return account | peak.as_record()


def unexplained(account: dict[str, int], peak: int) -> int:
    """What ``peak`` holds beyond the account; gradients and activations are not all alive at once, so never below 0."""
    return max(0, peak - sum(account.values()))


@dataclass(frozen=True)
class Peak:
    """The most that a process held.

    Attributes:
        num_bytes: resident on the CPU, in tensors on a GPU.
        reserved: on a GPU, what the allocator had taken from it; None on the CPU.
    """

    num_bytes: int
    reserved: int | None = None

    def as_record(self) -> dict[str, int]:
        """The fields of a `memory` record."""
        return {"peak": self.num_bytes} | ({} if self.reserved is None else {"reserved": self.reserved})


class PeakMemory:
    """Peak memory of this process on ``device``: resident on the CPU, the allocator's while it trains on a GPU.

    There a peak is one of training alone. A rehearsal, an evaluation or a diagnostic, for whose new shapes cuDNN may
    try algorithms with any workspace that fits, comes between two stretches of it. What CUDA graphs use inside belongs
    to no tensor of the allocator's, but to their pools: it counts in full.
    """

    def __init__(self, device: torch.device, has_graphs: bool = False) -> None:
        """``has_graphs``: whether there are CUDA graphs, for which all of the allocator's memory is looked through."""
        self._device = device
        self._has_graphs = has_graphs
        self._peak = self._reserved = 0

    def begin(self) -> None:
        """Training goes on."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def end(self) -> None:
        """Training pauses."""
        if self._device.type == "cuda":
            inside = bytes_inside_graphs(self._device) if self._has_graphs else 0
            self._peak = max(self._peak, peak_allocated_bytes(self._device) + inside)
            self._reserved = max(self._reserved, torch.cuda.max_memory_reserved(self._device))

    def take(self) -> Peak:
        """Since the last call on a GPU, since the process began on the CPU."""
        if self._device.type != "cuda":
            return Peak(peak_resident_bytes())
        if not self._peak:  # nothing was trained yet
            self.end()
        peak = Peak(self._peak, self._reserved)
        self._peak = self._reserved = 0
        return peak

    def state_dict(self) -> dict[str, int]:
        """What the next call of :meth:`take` must not forget."""
        return {"peak": self._peak, "reserved": self._reserved}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from :meth:`state_dict`."""
        self._peak, self._reserved = max(self._peak, state["peak"]), max(self._reserved, state["reserved"])


def peak_allocated_bytes(device: torch.device) -> int:
    """The most that tensors on a GPU held since its statistics were reset, together with what was freed and waits for
    another stream to be done with it: ``max_memory_allocated`` leaves that out."""
    return int(torch.cuda.memory_stats(device)["active_bytes.all.peak"])


def bytes_inside_graphs(device: torch.device) -> int:
    """What the pools of CUDA graphs hold beside the tensors that are alive: what a graph allocates and frees inside."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return sum(
        segment["total_size"] - segment["active_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == index and tuple(segment["segment_pool_id"]) != (0, 0)
    )


def peak_resident_bytes() -> int:
    """Of this process, since it began."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
