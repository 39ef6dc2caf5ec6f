"""Data parallelism: every process has the whole network and learns from its share of each batch.

    process 1   forward | backward .... | step        rows 1 .. B/K of batch t
    process 2   forward | backward .... | step        the next B/K         (....: gradients are added up meanwhile)

Kept after the forward: the graph of the share. Gradient: true, of batch t: the sum over the shares. Weights: w^t, the
same in all processes. Nothing is cut, so every process holds all weights and their optimizer's state.

The peer is torch.nn.parallel.DistributedDataParallel as it comes, but for gradients that live in its buckets, which
saves a copy. Batch norm normalises over a share; the statistics that count, at evaluation and in the saved weights, are
those of process 1. Without batch norm the numbers are BP's but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from fr_bench.errors import ConfigError
from fr_bench.methods.base import Link, Method
from fr_bench.methods.policy import Policy
from fr_bench.modules.module import BatchResult, Module
from fr_bench.modules.passes import Pass


class DataParallel(Method):
    """One of K processes with a network of its own; with K = 1 BP."""

    transports = ("gloo", "nccl")
    uses_link = False
    sees_waiting = False  # DistributedDataParallel waits for the others inside the backward

    def __init__(self, module: Module, link: Link) -> None:
        super().__init__(module, link)
        self._replica = DistributedDataParallel(
            module.network, process_group=link.group, gradient_as_bucket_view=True
        )  # fmt: skip
        self._settle_buckets()

    def _settle_buckets(self) -> None:
        """One pass that changes nothing. After the first one DistributedDataParallel orders its buckets anew, as their
        gradients came, and with them the order of sums: a run that goes on from a checkpoint would otherwise begin with
        other sums than one that was left alone."""
        assert self.module.input_like is not None, "known after the rehearsal"
        x = torch.zeros_like(self.module.input_like, device=next(self.module.network.parameters()).device)
        with self.module.network.unchanged_buffers(), self.module.autocast():
            self._replica(x, self.module.stream(0)).sum().backward()
        self.module.optimizer.zero_grad(set_to_none=True)

    def play(self, t: int) -> None:
        """Plays this process's share of batch ``t`` with a graph."""
        x = self.link.receive_features(t)
        with self.module.watch.span("play", t), self.module.autocast():
            h = self._replica(x, self.module.stream(t))
        self._live = Pass(t, x, h)

    def learn(self, t: int) -> BatchResult:
        """Learns from the whole batch; returns loss and errors of the share."""
        assert self._live is not None, "learn() follows play()"
        live, self._live = self._live, None
        result = self.module.loss(live, self.link.targets(t))
        self.module.finite.add(result.loss.detach(), t)
        # Gradients are averaged over the processes, and the loss is already divided by the size of the whole batch.
        self.module.backward(live, loss=result.loss * self.module.num_replicas)
        self.module.step(t)
        return BatchResult(result.loss.detach(), result.num_errors)

    @classmethod
    def check_run(cls, config: Mapping[str, Any], *, transport: str, on_gpu: bool, **_: Any) -> None:
        """See :class:`Method`: a batch that cannot be shared, and settings of single modules."""
        name, k = config["method"]["name"], config["k"]
        if config["batch_size"] % k:
            raise ConfigError(
                f"batch_size={config['batch_size']}: cannot be shared equally by the k={k} processes of method={name}"
            )
        whole = f"every process of method={name} has the whole network"
        if isinstance(config["partition"], list) and config["partition"]:
            raise ConfigError(f"partition={config['partition']}: {whole}; there is nothing to cut")
        for key in ("freeze", "module_lr"):
            if config[key]:
                raise ConfigError(f"{key}={config[key]}: {whole}; there are no modules to treat differently")
        every = config["diagnostics"]["sigma"]["every"]
        if every:
            raise ConfigError(f"diagnostics.sigma.every={every}: {whole}, and its gradient is the true one")

    @classmethod
    def policy(cls, **_: Any) -> Policy:
        """See :class:`Policy`."""
        return Policy(keeps="share", gradient="true")
