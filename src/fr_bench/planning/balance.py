"""Where a run's network is cut, and how busy each module should then be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fr_bench.components import bind
from fr_bench.data import SampleSpec
from fr_bench.errors import ConfigError
from fr_bench.methods.base import Method
from fr_bench.models import Blocks
from fr_bench.planning.block_memory import BlockMemory
from fr_bench.planning.costs import ModuleCosts, OperationMeter, network_costs
from fr_bench.planning.measured_costs import MeasuringTask, measured_costs
from fr_bench.planning.memory_model import MemoryModel
from fr_bench.planning.partition import BALANCED, OF_MODULE, make_cuts, module_slices


@dataclass(frozen=True)
class Balance:
    """Cuts by the costs of the run's method.

    Attributes:
        config: of the run.
        method, hyper_parameters: what it trains with; nested nodes built.
        blocks: of the network, on ``meta``, in the run's dtype and memory format.
        x: a mini-batch, or the part of one that modules see at once, of one replica with the whole batch, on ``meta``:
            the cuts of several are those of one.
        sample: what one of the data set is like.
        devices: of modules 1..K, replica by replica.
        threads: of a module.
        transport: by name; the memory of its buffers counts.
        num_per_machine: of modules in all replicas; the next ones are on another machine. None if there is one.
        runs_here: whether the run is on this machine; one that is not measures nothing here.
        share: what a replica sees of ``x``, by which memory is counted; None for all of it.
        asked_by: what blocks are timed for, in messages.
    """

    config: dict[str, Any]
    method: type[Method]
    hyper_parameters: dict[str, Any]
    blocks: Blocks
    x: Tensor
    sample: SampleSpec
    devices: Sequence[str]
    threads: int
    transport: str
    num_per_machine: int | None = None
    runs_here: bool = True
    share: Tensor | None = None
    asked_by: str = "partition=measured"

    @property
    def num_modules(self) -> int:
        """K, or 1 where every process has the whole network."""
        return 1 if self.method.policy(**self.hyper_parameters).replicates else int(self.config["k"])

    @cached_property
    def costs(self) -> ModuleCosts:
        """Of a module, in seconds a mini-batch: measured ones where the config says so, else analytic ones.

        Raises:
            ConfigError: a block that cannot run, or a measurement that failed.
        """
        costs = network_costs(
            self.blocks, self.x, OperationMeter(), self._companion, companion_gradient=not self.method.sends_gradients
        )
        if self.config["partition"] == "measured" and self.num_modules > 1 and self.runs_here:
            device, num_blocks, has_companion = self.devices[0], len(self.blocks), any(costs.companions)
            task = MeasuringTask.of(self.config, self.sample, device, self.threads, num_blocks, has_companion)
            costs = measured_costs(task, self.asked_by)
        policy = self.method.policy(**self.hyper_parameters)
        trains = [any(p.requires_grad for p in block.parameters()) for _, block in self.blocks]
        return ModuleCosts(costs, policy, self.num_modules, trains)

    def cuts(self) -> list[int]:
        """The K-1 cuts.

        Raises:
            ConfigError: as :func:`make_cuts`; a block that cannot run; a failed measurement.
        """
        partition, k = self.config["partition"], self.num_modules
        limit_gb = self.config["memory_limit_gb"]
        if limit_gb is None or partition not in BALANCED:
            return make_cuts(partition, len(self.blocks), k, lambda: self.costs)
        return make_cuts(partition, len(self.blocks), k, lambda: self.costs, self._device_bytes(), limit_gb * 2**30)

    def shares(self, cuts: Sequence[int]) -> list[float]:
        """How long each module is busy with a mini-batch, over the slowest module."""
        if not cuts:
            return [1.0] * len(self.devices)
        parts = module_slices(cuts, len(self.blocks))
        busy_s = [self.costs(part.start, part.stop, k) for k, part in enumerate(parts, start=1)]
        return [module_s / max(busy_s) for module_s in busy_s] * (len(self.devices) // len(busy_s))

    def check_limit(self, predicted_memory: Sequence[dict[str, int]]) -> None:
        """Refuses cuts that were given, or a network that is not cut, where they break the memory limit.

        Raises:
            ConfigError: naming the module that needs most.
        """
        limit_gb, partition = self.config["memory_limit_gb"], self.config["partition"]
        if limit_gb is None or (partition in BALANCED and self.num_modules > 1):
            return
        sharing = self._modules_by_device()
        needed = [sum(found.values()) * n / 2**30 for found, n in zip(predicted_memory, sharing, strict=True)]
        if max(needed) > limit_gb:
            k = needed.index(max(needed)) + 1
            needs = f"the device of module {k} needs {math.ceil(max(needed) * 1000) / 1000:g}"
            if self.num_modules == 1:
                raise ConfigError(f"memory_limit_gb={limit_gb:g}: {needs}; a smaller batch_size needs less")
            raise ConfigError(
                f"memory_limit_gb={limit_gb:g}: with partition={partition} {needs}; "
                "partition=auto looks for cuts that keep the limit"
            )

    def _companion(self, h: Tensor) -> nn.Module | None:
        with torch.device(h.device):
            companion = self.method.companion(h.shape, self.sample.num_classes, **self.hyper_parameters)
        return None if companion is None else companion.to(h.dtype)

    def _device_bytes(self) -> OF_MODULE:
        """What a device needs if all its modules are like the one asked about: each has an equal part of the device.

        With a device for each module that is exact. Where modules share one it is on the safe side: the sum of
        unequal modules may fit although the largest, times their number, does not.
        """
        model = MemoryModel(
            self.num_modules, self.method, self.hyper_parameters, bind(self.config["optimizer"]), self.transport,
            self.sample.num_classes, self.config["replicas"] > 1,
        )  # fmt: skip
        memory = BlockMemory(model, self.blocks, self.x if self.share is None else self.share, self.devices[0])
        sharing = self._modules_by_device()
        frozen = self.config["freeze"]
        return lambda first, last, k: memory(first, last, k, k in frozen) * sharing[k - 1]

    def _modules_by_device(self) -> list[int]:
        """For each module, how many share its device."""
        num_per_machine = self.num_per_machine or len(self.devices)
        found = [(number // num_per_machine, device) for number, device in enumerate(self.devices)]
        counts = Counter(found)
        return [counts[device] for device in found]
