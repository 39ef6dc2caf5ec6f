"""torch.nn.parallel.DistributedDataParallel: every process has the whole network and its share of the batch.

Batch norm normalises over a process's share, and running statistics are those of the first process, as by default.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fr_bench.peers.task import PeerTask


class DataParallel:
    """See :class:`fr_bench.peers.task.Training`."""

    def __init__(self, task: PeerTask) -> None:
        self._task = task
        self._model = DistributedDataParallel(nn.Sequential(OrderedDict(task.blocks())))
        self._optimizer = task.optimizer(self._model.parameters())

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Forward, loss, backward with the gradients averaged meanwhile, step."""
        rank, num_processes = self._task.rank, self._task.num_processes
        x, y = x.tensor_split(num_processes)[rank], y.tensor_split(num_processes)[rank]
        self._optimizer.zero_grad(set_to_none=True)
        # DDP averages over the processes, and the loss is already divided by the global batch size.
        loss = self._task.loss(self._model(x), y) * num_processes
        loss.backward()
        self._optimizer.step()
        if not self._task.keep_losses:
            return None
        total = loss.detach() / num_processes
        dist.all_reduce(total)
        return total


make = DataParallel
