"""The side channel: untimed messages of any shape between neighbours (rehearsal, evaluation, diagnostics).

It is slower than the training channels and needs no agreement beforehand: a header travels with each tensor.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from fr_bench.transport.spec import TensorSpec, flat, noticing_loss
from fr_bench.waits import waiting_for

MAX_DIMENSIONS = 8
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int64)


class SideChannel(Protocol):
    """Blocking exchange with the neighbours above and below."""

    def send_up(self, tensor: Tensor) -> None:
        """To module k+1."""

    def send_down(self, tensor: Tensor) -> None:
        """To module k-1."""

    def receive_from_below(self) -> Tensor:
        """From module k-1."""

    def receive_from_above(self) -> Tensor:
        """From module k+1."""

    def barrier(self) -> None:
        """Waits for all modules. Only ever outside the training clock."""


class LocalSide:
    """Side channel between the modules of one process; ``chain(K)`` makes all K of them."""

    def __init__(self) -> None:
        self._from_below: deque[Tensor] = deque()
        self._from_above: deque[Tensor] = deque()
        self._below: LocalSide | None = None
        self._above: LocalSide | None = None

    @staticmethod
    def chain(num_modules: int) -> list[LocalSide]:
        """The side channels of modules 1..K."""
        sides = [LocalSide() for _ in range(num_modules)]
        for below, above in itertools.pairwise(sides):
            below._above, above._below = above, below
        return sides

    def send_up(self, tensor: Tensor) -> None:
        """See :class:`SideChannel`."""
        assert self._above is not None
        self._above._from_below.append(tensor.detach())

    def send_down(self, tensor: Tensor) -> None:
        """See :class:`SideChannel`."""
        assert self._below is not None
        self._below._from_above.append(tensor.detach())

    def receive_from_below(self) -> Tensor:
        """See :class:`SideChannel`."""
        return self._from_below.popleft()

    def receive_from_above(self) -> Tensor:
        """See :class:`SideChannel`."""
        return self._from_above.popleft()

    def barrier(self) -> None:
        """Nothing to wait for: the modules take turns."""


class DistributedSide:
    """Side channel over the default (gloo) process group; tensors travel through host memory.

    Args:
        number: this module, from 1; its rank in the group is number - 1.
        device: where received tensors go.
    """

    def __init__(self, number: int, device: torch.device) -> None:
        self._rank = number - 1
        self._device = device

    def send_up(self, tensor: Tensor) -> None:
        """See :class:`SideChannel`."""
        self._send(tensor, self._rank + 1)

    def send_down(self, tensor: Tensor) -> None:
        """See :class:`SideChannel`."""
        self._send(tensor, self._rank - 1)

    def receive_from_below(self) -> Tensor:
        """See :class:`SideChannel`."""
        return self._receive(self._rank - 1)

    def receive_from_above(self) -> Tensor:
        """See :class:`SideChannel`."""
        return self._receive(self._rank + 1)

    def barrier(self) -> None:
        """See :class:`SideChannel`."""
        with noticing_loss("another module did not reach the barrier"), waiting_for("all modules"):
            dist.barrier()

    def _send(self, tensor: Tensor, peer: int) -> None:
        spec = TensorSpec.of(tensor)
        message = spec.conform(tensor.detach(), "side channel").cpu()
        header = [DTYPES.index(spec.dtype), len(spec.shape), *spec.shape, *spec.stride]
        with noticing_loss(f"module {peer + 1} is gone"), waiting_for(f"module {peer + 1} outside of training"):
            dist.send(torch.tensor(header + [0] * (2 + 2 * MAX_DIMENSIONS - len(header))), peer)
            dist.send(flat(message), peer)

    def _receive(self, peer: int) -> Tensor:
        header = torch.zeros(2 + 2 * MAX_DIMENSIONS, dtype=torch.int64)
        with noticing_loss(f"module {peer + 1} is gone"):
            with waiting_for(f"module {peer + 1} outside of training"):
                dist.recv(header, peer)
            dtype, num_dimensions, *numbers = header.tolist()
            shape, stride = numbers[:num_dimensions], numbers[num_dimensions : 2 * num_dimensions]
            message = TensorSpec(tuple(shape), DTYPES[dtype], tuple(stride)).empty()
            dist.recv(flat(message), peer)
        return message.to(self._device)
