"""What two neighbours agree on once, at start-up: the shape, dtype and strides of every message."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fr_bench.memory_errors import is_out_of_memory


class TransportError(RuntimeError):
    """A message that is not what was agreed on."""


class PeerLost(RuntimeError):
    """The neighbour is gone. Never the first cause: something happened to the neighbour."""


def is_lost_peer(error: BaseException) -> bool:
    """Whether ``error`` says that another process is gone: PeerLost, or what torch.distributed raises in libraries."""
    if isinstance(error, PeerLost | dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)  # gloo has no exception of its own


@contextmanager
def noticing_loss(what: str) -> Iterator[None]:
    """For calls of torch.distributed: it raises where another process is gone.

    Args:
        what: that means, a sentence without a full stop: ``module 2 is gone``.

    Raises:
        PeerLost: it did.
        torch.AcceleratorError: this process's own device failed, as in a kernel of the model, and it shows here.
        RuntimeError: this process has no memory left for a message.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):
            raise
        raise PeerLost(f"{what}: {error}") from error


@dataclass(frozen=True)
class TensorSpec:
    """Shape, dtype and strides of a message. Strides count: a channels-last tensor travels as its own storage.

    Making a tensor contiguous at a cut would cost a copy and change the last bits of every gradient behind it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """The spec of messages like ``tensor``; a tensor with gaps in its storage travels contiguous."""
        stride = tensor.stride() if is_dense(tensor) else tensor.contiguous().stride()
        return cls(tuple(tensor.shape), tensor.dtype, tuple(stride))

    @property
    def num_bytes(self) -> int:
        """Bytes of one message."""
        return math.prod(self.shape) * self.dtype.itemsize

    def empty(self, device: torch.device | str = "cpu", pin_memory: bool = False) -> Tensor:
        """An uninitialised tensor of this spec."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device, pin_memory=pin_memory)

    def conform(self, tensor: Tensor, what: str) -> Tensor:
        """Returns ``tensor`` with the agreed strides: itself in all but exotic cases, else a copy.

        Raises:
            TransportError: for another shape or dtype, naming ``what`` (gloo would abort the process, or
                silently accept a smaller message).
        """
        if tensor.shape != self.shape or tensor.dtype != self.dtype:
            raise TransportError(
                f"{what}: {tuple(tensor.shape)} {tensor.dtype} where {self.shape} {self.dtype} was agreed on"
            )
        if tensor.stride() == self.stride:
            return tensor
        return self.empty(tensor.device).copy_(tensor)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their storage without gaps or overlap, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def flat(tensor: Tensor) -> Tensor:
    """The dense ``tensor`` as a vector in the order of its storage: contiguous, without a copy."""
    return tensor.as_strided((tensor.numel(),), (1,))
