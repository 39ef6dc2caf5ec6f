"""Channels over torch.distributed: gloo (host memory) and nccl (K distinct GPUs).

Each direction has a process group of its own, so that a gradient never queues behind features. Sends return at once.
Under gloo every receive is posted a message ahead, into memory that is then handed over; on a GPU its messages pass
through pinned host memory.

Under nccl a receive is a kernel, which stays on the device until the message has come. One that is posted ahead of what
the neighbour can send yet would block whatever waits for the whole device (a synchronisation, a cudaFree, and with it
cuDNN when it tries algorithms for a new shape), and with BP, whose next features wait for this gradient, for ever. So
there it is posted when it is asked for, which is ahead of the device all the same: the host does not wait for it.

So is a send, until its message is received, and a gradient is received in the iteration after it was sent. Before all
modules pause, and wait for their devices, those that are on their way are therefore received (``expect``).
"""

from __future__ import annotations

from collections import deque

import torch
import torch.distributed as dist
from torch import Tensor

from fr_bench.transport.spec import TensorSpec, flat, noticing_loss
from fr_bench.waits import waiting_for

# Two messages may be on their way in each direction: one that is being used and one that is ahead of it.
DEPTH = 2


class DistributedSender:
    """Asynchronous sends to ``peer`` (a rank); at most DEPTH are unfinished."""

    def __init__(self, group: dist.ProcessGroup, peer: int, spec: TensorSpec, what: str, through_host: bool) -> None:
        self._group = group
        self._peer = peer
        self._spec = spec
        self._what = what
        self._through_host = through_host
        self._unfinished: deque[tuple[dist.Work, Tensor]] = deque()

    def send(self, tensor: Tensor, batch: int) -> None:
        """See :class:`fr_bench.transport.channel.Sender`."""
        message = self._spec.conform(tensor.detach(), self._what)
        if self._through_host:
            message = self._spec.empty(pin_memory=True).copy_(message)  # waits for the device
        with noticing_loss(f"{self._what}: module {self._peer + 1} is gone"):
            while len(self._unfinished) >= DEPTH:
                with waiting_for(f"room for {self._what}, batch {batch}"):
                    self._unfinished.popleft()[0].wait()
            work = dist.isend(flat(message), self._peer, group=self._group)
        assert work is not None
        self._unfinished.append((work, message))

    @property
    def buffer_bytes(self) -> int:
        """Messages that may wait to be sent."""
        return DEPTH * self._spec.num_bytes


class DistributedReceiver:
    """Receives from ``peer`` (a rank), with one receive posted ahead or, if not ``ahead``, when it is asked for.

    Attributes:
        is_ahead: which of the two.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        peer: int,
        spec: TensorSpec,
        what: str,
        device: torch.device,
        through_host: bool,
        ahead: bool = True,
    ) -> None:
        self._group = group
        self._peer = peer
        self._spec = spec
        self._what = what
        self._device = device
        self._through_host = through_host
        self.is_ahead = ahead
        self._posted: deque[tuple[dist.Work, Tensor]] = deque()
        self.expect(1 if ahead else 0)

    def receive(self, batch: int) -> Tensor:
        """See :class:`fr_bench.transport.channel.Receiver`. gloo and nccl keep the order of messages."""
        with noticing_loss(f"{self._what}: module {self._peer + 1} is gone"):
            self.expect(1)
            work, message = self._posted.popleft()
            with waiting_for(f"{self._what}, batch {batch}"):
                work.wait()
            self.expect(1 if self.is_ahead else 0)
        return message.to(self._device, non_blocking=True) if self._through_host else message

    def expect(self, num_messages: int) -> None:
        """See :class:`fr_bench.transport.channel.Receiver`."""
        while len(self._posted) < num_messages:
            self._posted.append(self._post())

    def _post(self) -> tuple[dist.Work, Tensor]:
        where = torch.device("cpu") if self._through_host else self._device
        message = self._spec.empty(where, pin_memory=self._through_host)
        work = dist.irecv(flat(message), self._peer, group=self._group)
        assert work is not None
        return work, message

    @property
    def buffer_bytes(self) -> int:
        """The message that is posted ahead."""
        return self._spec.num_bytes if self.is_ahead else 0
