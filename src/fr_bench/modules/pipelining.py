"""torch.distributed.pipelining, as far as fr-bench uses it. The only file that knows its interface
(torch 2.11 to 2.15).

Four traps of the library are avoided here. Without shapes it finds them by running the real modules on uninitialised
memory, which ruins batch norm's running statistics: the shapes of all messages are given. It refuses messages that
are not contiguous: channels-last features travel as the transposed view [B, H, W, C], which is contiguous and costs
nothing. Hooks on what it receives pile up, because it reuses that memory: a gradient is made contiguous by a function
of its own in the graph. And zero bubble detaches what a stage in the middle has sent, which cannot be done to a view:
no message is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining

from fr_bench.measuring.saved_tensors import Held

SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "zero_bubble": "InterleavedZeroBubble",  # with one stage a process, it is ZB1P
}
SINGLE_STAGE = ("gpipe", "1f1b")  # take a stage, not a list of stages

Observe = Callable[[Literal["play", "backward"], int], AbstractContextManager[None]]  # (what, micro-batch)
Hold = Callable[[Tensor, Held], None]


def why_not(schedule: str, num_microbatches: int, num_processes: int) -> str | None:
    """Why ``schedule`` cannot run so many micro-batches on so many processes; None if it can."""
    if schedule != "gpipe" and num_microbatches < num_processes:
        return f"{schedule} needs at least as many micro-batches as processes, {num_processes}"
    num_rounds = max(1, num_microbatches // num_processes)
    if schedule in ("interleaved", "zero_bubble") and num_microbatches % num_rounds:
        return f"{schedule} runs in {num_rounds} rounds of equally many micro-batches; take a multiple of {num_rounds}"
    return None


@dataclass(frozen=True)
class Part:
    """One stage of a pipeline.

    Attributes:
        number: from 0.
        network: features in, features out.
        x: what enters it, of one micro-batch: shape, dtype and strides count, the device does not.
        h: the same of what leaves it.
    """

    number: int
    network: nn.Module
    x: Tensor
    h: Tensor


class Pipeline:
    """This process's stages of a synchronous pipeline over the processes of ``group``.

    Args:
        schedule: a key of SCHEDULES.
        parts: the stages of this process; process r of K has r, r + K, ...
        num_stages: of the whole pipeline.
        num_microbatches: into which every batch is cut.
        loss: (logits, labels) of a micro-batch -> its part of the batch's loss; gradients are added, not averaged.
        device: of this process.
        group: whose backend can move tensors of ``device``; None for the default group.
        observe: entered around the computations of a micro-batch; what is outside is waiting for the neighbours.
    """

    def __init__(
        self,
        schedule: str,
        parts: Sequence[Part],
        num_stages: int,
        num_microbatches: int,
        loss: Callable[[Tensor, Tensor], Tensor],
        device: torch.device,
        group: dist.ProcessGroup | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._is_first = parts[0].number == 0
        self._is_last = parts[-1].number == num_stages - 1
        self._stages = [
            ObservedStage(
                Stage(part.network, *(_is_transposed(features) for features in _between(part, num_stages))),
                part.number,
                num_stages,
                device,
                input_args=_message(part.x, device, is_images=part.number == 0),
                output_args=_message(part.h, device),
                group=group,
                observe=observe,
            )
            for part in parts
        ]
        schedule_class: Any = pipelining.schedules.get_schedule_class(SCHEDULES[schedule])
        self._schedule = schedule_class(
            self._stages[0] if schedule in SINGLE_STAGE else self._stages,
            n_microbatches=num_microbatches,
            loss_fn=loss,
            scale_grads=False,
        )

    def step(self, x: Tensor | None, y: Tensor | None, hold: Hold | None = None) -> Tensor | None:
        """All micro-batches forward and backward; gradients are added to those at hand.

        Args:
            x: inputs of the whole batch; looked at by the process of the first stage alone.
            y: labels of the whole batch; by that of the last stage alone.
            hold: told of every message to the stage above, an activation, and of every buffer to receive into.

        Returns:
            The loss of the whole batch, detached; None where the last stage is not.
        """
        for stage in self._stages:
            stage.hold = hold
        losses: list[Tensor] = []
        inputs = (x,) if self._is_first else ()
        of_last = {"target": y, "losses": losses} if self._is_last else {}
        try:
            self._schedule.step(*inputs, **of_last, return_outputs=False)
        except RuntimeError as error:
            if error.__cause__ is None:
                raise
            raise error.__cause__  # noqa: B904  what a block raised; torch's error says neither that nor where
        return torch.stack(losses).sum().detach() if losses else None

    @property
    def received(self) -> list[Tensor]:
        """The memory into which features and gradients of all micro-batches are received, known after a step; none
        since torch 2.15, which takes new memory for every message."""
        infos = [info for stage in self._stages for info in (stage.args_recv_info, stage.grad_recv_info)]
        slots = [slot for by_microbatch in infos for of_one in by_microbatch.values() for slot in of_one]
        # The images are received from nobody: their slot has no buffer, and up to torch 2.11 not even the attribute.
        found = [getattr(slot, "buffer", None) for slot in slots]
        return [buffer for buffer in found if buffer is not None]


class Stage(nn.Module):
    """A network between contiguous messages: [B, H, W, C] where its features are in channels-last."""

    def __init__(self, network: nn.Module, unpacks: bool, packs: bool) -> None:
        super().__init__()
        self.network = network
        self._unpacks = unpacks
        self._packs = packs

    def forward(self, message: Tensor) -> Tensor:
        """Message in, message out."""
        x = Received.apply(message) if message.requires_grad else message
        h = self.network(x.permute(0, 3, 1, 2) if self._unpacks else x)
        return Sent.apply(h.permute(0, 2, 3, 1) if self._packs else h)


class Received(torch.autograd.Function):
    """The identity, whose gradient is contiguous: that of a mean, for example, is not of itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """A view of ``x``."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient, copied only if it must be."""
        return gradients[0].contiguous()


class Sent(torch.autograd.Function):
    """The identity, whose result is contiguous and no view, though it shares memory where it can."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        """``h``, copied only if it must be."""
        message = h.contiguous()
        return message.new_empty(0).set_(
            message.untyped_storage(), message.storage_offset(), message.size(), message.stride()
        )  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient as it is."""
        return gradients[0]


class ObservedStage(pipelining.PipelineStage):
    """A stage that says when it computes and on which micro-batch."""

    def __init__(self, *args: Any, observe: Observe | None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._observe = observe or _unobserved
        self.hold: Hold | None = None

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """What receives the features of a micro-batch."""
        return self._hold_buffers(super().get_fwd_recv_ops(fwd_chunk_id))

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """What receives the gradient of a micro-batch."""
        return self._hold_buffers(super().get_bwd_recv_ops(bwd_chunk_id))

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **settings: Any) -> Any:
        """Forward of a micro-batch."""
        with self._observe("play", fwd_chunk_id):
            message = super().forward_one_chunk(fwd_chunk_id, *args, **settings)
        if self.hold is not None:
            self.hold(message, "activations")
        return message

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **settings: Any) -> Any:
        """Backward of a micro-batch; in zero bubble the part that the stage below waits for."""
        with self._observe("backward", bwd_chunk_id):
            return super().backward_one_chunk(bwd_chunk_id, *args, **settings)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **settings: Any) -> Any:
        """In zero bubble the other part: the gradients of the weights."""
        with self._observe("backward", bwd_chunk_id):
            return super().backward_weight_one_chunk(bwd_chunk_id, *args, **settings)

    def _hold_buffers(self, operations: list[dist.P2POp]) -> list[dist.P2POp]:
        if self.hold is not None:
            for operation in operations:
                self.hold(operation.tensor, "buffers")
        return operations


@contextmanager
def _unobserved(what: str, microbatch: int) -> Iterator[None]:
    yield


def _between(part: Part, num_stages: int) -> tuple[Tensor | None, Tensor | None]:
    """What comes from and goes to another stage: not the images, not the logits."""
    return part.x if part.number > 0 else None, part.h if part.number < num_stages - 1 else None


def _is_transposed(features: Tensor | None) -> bool:
    """Whether features like these travel as [B, H, W, C]."""
    if features is None or features.dim() != 4 or features.is_contiguous():
        return False
    return features.is_contiguous(memory_format=torch.channels_last)


def _message(features: Tensor, device: torch.device, is_images: bool = False) -> Tensor:
    """An example of the message that ``features`` travel as."""
    if is_images:
        return torch.empty_like(features, device=device)
    shape = features.permute(0, 2, 3, 1).shape if _is_transposed(features) else features.shape
    return torch.empty(shape, dtype=features.dtype, device=device, requires_grad=True)
