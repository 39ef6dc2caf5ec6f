"""The synchronous pipelines of torch.distributed.pipelining: GPipe, 1F1B, interleaved 1F1B and zero bubble (ZB1P).

The batch is cut into M micro-batches, and the weights step once all of them have been back-propagated: the lock stays,
its bubble shrinks with M. Batch norm normalises over a micro-batch, so the numbers are not those of the whole batch.

Two traps of the library (torch 2.13): without shapes it finds them by running the real modules on uninitialised memory,
which ruins batch norm's running statistics; and it refuses messages that are not contiguous, so channels-last features
travel as the transposed view [B, H, W, C], which is contiguous and costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import pipelining

from fr_bench.models import Blocks, build_blocks
from fr_bench.partition import module_slices
from fr_bench.peers.task import CHUNKS, PeerTask

SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "zero_bubble": "InterleavedZeroBubble",  # with one stage a process, it is ZB1P
}
SINGLE_STAGE = ("gpipe", "1f1b")  # take a stage, not a list of stages


class Stage(nn.Module):
    """Consecutive blocks between contiguous messages: [B, H, W, C] where the features are in channels-last."""

    def __init__(self, blocks: Blocks, unpack: bool, pack: bool) -> None:
        super().__init__()
        for name, block in blocks:
            self.add_module(name, block)
        self._unpack = unpack
        self._pack = pack

    def forward(self, x: Tensor) -> Tensor:
        """Message in, message out."""
        if self._unpack:
            x = x.permute(0, 3, 1, 2)
        for block in self.children():
            x = block(x)
        return x.permute(0, 2, 3, 1) if self._pack else x


class Pipeline:
    """See :class:`fr_bench.peers.task.Training`. Process r has stages r, r + K, ..."""

    def __init__(self, task: PeerTask) -> None:
        self._task = task
        chunks, num_processes = CHUNKS.get(task.peer, 1), task.num_processes
        num_stages = chunks * num_processes
        messages = self._messages(num_stages)
        blocks = task.blocks()
        slices = module_slices(task.cuts, len(blocks))
        numbers = [task.rank + chunk * num_processes for chunk in range(chunks)]
        transposed = [False, *(self._transposes(message) for message in messages[1:])]
        modules = [Stage(blocks[slices[n]], transposed[n], transposed[n + 1]) for n in numbers]
        stages = [
            pipelining.PipelineStage(
                module, n, num_stages, torch.device("cpu"), input_args=messages[n], output_args=messages[n + 1]
            )
            for n, module in zip(numbers, modules, strict=True)
        ]
        schedule_class = pipelining.schedules.get_schedule_class(SCHEDULES[task.peer])
        self._schedule = schedule_class(
            stages[0] if task.peer in SINGLE_STAGE else stages,
            n_microbatches=task.num_microbatches,
            loss_fn=task.loss,
            scale_grads=False,  # the loss is already divided by the global batch size
        )
        self._optimizer = task.optimizer([p for module in modules for p in module.parameters()])
        self._is_first = task.rank == 0
        self._is_last = task.rank == num_processes - 1

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        """All micro-batches forward and backward, then one step."""
        self._optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        inputs = (x,) if self._is_first else ()
        if self._is_last:
            self._schedule.step(*inputs, target=y, losses=losses, return_outputs=False)
        else:
            self._schedule.step(*inputs, return_outputs=False)
        self._optimizer.step()
        return torch.stack(losses).sum().detach() if losses else None

    def _messages(self, num_stages: int) -> list[Tensor]:
        """What enters stage 0, passes each cut and leaves the last stage: shapes and strides of a micro-batch."""
        task = self._task
        with torch.device("meta"):
            blocks = build_blocks(task.config["model"], task.input_shape, task.num_classes, task.config["seed"])
        x = torch.empty(task.config["batch_size"] // task.num_microbatches, *task.input_shape, device="meta")
        x = x.to(task.dtype).to(memory_format=task.memory_format)
        messages = [x]
        for part in module_slices(task.cuts, len(blocks)):
            for _, block in blocks[part]:
                x = block.to(task.dtype)(x)
            messages.append(x)
        assert len(messages) == num_stages + 1
        inner = [h.permute(0, 2, 3, 1) if self._transposes(h) else h for h in messages[1:-1]]
        sizes = [inner_h.shape for inner_h in inner]
        first = torch.empty_like(messages[0], device="cpu", memory_format=task.memory_format)
        passed = [torch.empty(size, dtype=task.dtype, requires_grad=True) for size in [*sizes, x.shape]]
        return [first, *passed]

    def _transposes(self, h: Tensor) -> bool:
        """Whether the features ``h`` travel as [B, H, W, C]."""
        return self._task.config["channels_last"] and h.dim() == 4


make = Pipeline
