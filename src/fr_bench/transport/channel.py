"""Channels: one direction between two neighbours. And the one that stays within a process."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch
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
            TransportError: the next message is about another batch, or nobody is left to send it.
        """

    @property
    def is_ahead(self) -> bool:
        """Whether a message can arrive before it is asked for."""

    def expect(self, num_messages: int) -> None:
        """Makes ready to take so many messages that are on their way, without handing them over yet."""

    @property
    def buffer_bytes(self) -> int:
        """Bytes that this end holds for messages."""


class LocalChannel:
    """Both ends in one process: a queue of references. The serial transport, and the reference for the others.

    On a GPU each end has its own current stream: the receiver's waits for what the sender's has queued, and the host
    for neither.
    """

    buffer_bytes = 0
    is_ahead = True

    def __init__(self, spec: TensorSpec, what: str) -> None:
        self._spec = spec
        self._what = what
        self._queue: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def send(self, tensor: Tensor, batch: int) -> None:
        """See :class:`Sender`."""
        message = self._spec.conform(tensor.detach(), self._what)
        is_made = None
        if message.is_cuda:
            is_made = torch.cuda.Event()
            is_made.record(torch.cuda.current_stream(message.device))
        self._queue.append((batch, message, is_made))

    def expect(self, num_messages: int) -> None:
        """They are in the queue."""

    def receive(self, batch: int) -> Tensor:
        """See :class:`Receiver`."""
        if not self._queue:
            raise TransportError(
                f"{self._what}: batch {batch} is asked for before it was sent, in one process for ever"
            )
        arrived, message, is_made = self._queue.popleft()
        check_batch(arrived, batch, self._what)
        if is_made is not None:
            stream = torch.cuda.current_stream(message.device)
            stream.wait_event(is_made)
            message.record_stream(stream)  # its memory is the sender's, who must not use it again before
        return message


def check_batch(arrived: int, expected: int, what: str) -> None:
    """Raises TransportError where a message belongs to another mini-batch than the method asks for."""
    if arrived != expected:
        raise TransportError(f"{what}: batch {arrived} arrived where batch {expected} was expected")
