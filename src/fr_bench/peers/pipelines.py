"""The synchronous pipelines of torch.distributed.pipelining: GPipe, 1F1B, interleaved 1F1B and zero bubble (ZB1P).

The batch is cut into M micro-batches, and the weights step once all of them have been back-propagated: the lock stays,
its bubble shrinks with M. Batch norm normalises over a micro-batch, so the numbers are not those of the whole batch.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fr_bench.modules.pipelining import Part, Pipeline
from fr_bench.peers.task import CHUNKS, PeerTask
from fr_bench.planning.partition import module_slices
from fr_bench.planning.tracing import batch_on_meta, blocks_on_meta


class PipelinePeer:
    """See :class:`fr_bench.peers.task.Training`. Process r has stages r, r + K, ..."""

    def __init__(self, task: PeerTask) -> None:
        chunks, num_processes = CHUNKS.get(task.peer, 1), task.num_processes
        num_stages = chunks * num_processes
        features = self._features(task)
        blocks = task.blocks()
        slices = module_slices(task.cuts, len(blocks))
        assert len(slices) == num_stages
        parts = [
            Part(n, nn.Sequential(OrderedDict(blocks[slices[n]])), features[n], features[n + 1])
            for n in (task.rank + chunk * num_processes for chunk in range(chunks))
        ]
        self._pipeline = Pipeline(task.peer, parts, num_stages, task.num_microbatches, task.loss, torch.device("cpu"))
        self._optimizer = task.optimizer([p for part in parts for p in part.network.parameters()])

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        """All micro-batches forward and backward, then one step."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._pipeline.step(x, y)
        self._optimizer.step()
        return loss

    @staticmethod
    def _features(task: PeerTask) -> list[Tensor]:
        """What enters stage 0, passes each cut and leaves the last stage, of a micro-batch: shapes and strides."""
        blocks = blocks_on_meta(task.config, task.sample)
        features = [batch_on_meta(task.config, task.sample, task.config["batch_size"] // task.num_microbatches)]
        for part in module_slices(task.cuts, len(blocks)):
            h = features[-1]
            for _, block in blocks[part]:
                h = block(h)
            features.append(h)
        return [h.to(memory_format=task.memory_format) if h.dim() == 4 else h for h in features]


make = PipelinePeer
