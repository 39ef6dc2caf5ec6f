"""Channels: one direction between two neighbours. And the one that stays within a process."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from torch import Tensor

from fr_bench.transport.spec import TensorSpec, TransportError


class Sender(Protocol):
    """The sending end of a channel."""

    def send(self, tensor: Tensor, batch: int) -> None:
        """Sends without waiting for arrival; ``tensor`` must not be changed afterwards.

        Raises:
            PeerLost: the receiver is gone.
            TransportError: the message is not of the agreed spec.
        """

    @property
    def buffer_bytes(self) -> int:
        """Bytes that this end holds for messages."""


class Receiver(Protocol):
    """The receiving end of a channel."""

    def receive(self, batch: int) -> Tensor:
        """Waits for the message about mini-batch ``batch`` and hands it over: it is the caller's from now on.

        Raises:
            PeerLost: the sender is gone.
            TransportError: the next message is about another batch.
        """

    @property
    def buffer_bytes(self) -> int:
        """Bytes that this end holds for messages."""


class LocalChannel:
    """Both ends in one process: a queue of references. The serial transport, and the reference for the others."""

    buffer_bytes = 0

    def __init__(self, spec: TensorSpec, what: str) -> None:
        self._spec = spec
        self._what = what
        self._queue: deque[tuple[int, Tensor]] = deque()

    def send(self, tensor: Tensor, batch: int) -> None:
        """See :class:`Sender`."""
        self._queue.append((batch, self._spec.conform(tensor.detach(), self._what)))

    def receive(self, batch: int) -> Tensor:
        """See :class:`Receiver`."""
        arrived, tensor = self._queue.popleft()
        check_batch(arrived, batch, self._what)
        return tensor


def check_batch(arrived: int, expected: int, what: str) -> None:
    """Raises TransportError where a message belongs to another mini-batch than the method asks for."""
    if arrived != expected:
        raise TransportError(f"{what}: batch {arrived} arrived where batch {expected} was expected")
