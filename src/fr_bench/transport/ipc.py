"""Channels through memory that two processes share: shared memory on the CPU, CUDA IPC on one GPU.

A channel is a ring of DEPTH slots, allocated once by the sender, whose handle crosses over once at start-up.
From then on only two semaphores move: ``free`` counts the slots that may be written, ``filled`` those that may
be read.

    sender     wait free | copy into slot i | post filled          i = 0, 1, 0, 1, ...
    receiver              wait filled | copy out of slot i | post free

On a GPU the copies are queued on streams, so each post also carries an inter-process event which the other
side's stream waits for before it touches the slot.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Semaphore
from typing import Any

import torch
from torch import Tensor

from fr_bench.errors import RunFailed
from fr_bench.transport.channel import check_batch
from fr_bench.transport.spec import PeerLost, TensorSpec
from fr_bench.waits import waiting_for

DEPTH = 2
SHARED_MEMORY = "/dev/shm"
PAGES_BESIDE_SLOTS = 3  # of a ring: two semaphores, and the numbers of the batches


@dataclass
class RingPorts:
    """What the parent makes for one channel before its processes exist: semaphores can only be inherited."""

    free: Semaphore
    filled: Semaphore
    sender_end: Connection
    receiver_end: Connection

    @classmethod
    def create(cls, context: BaseContext) -> RingPorts:
        """Ports of a ring with all slots free.

        Raises:
            RunFailed: shared memory has no room for a semaphore.
        """
        sender_end, receiver_end = context.Pipe()
        try:
            return cls(context.Semaphore(DEPTH), context.Semaphore(0), sender_end, receiver_end)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise _no_room(error) from error


class RingSender:
    """The end that allocates the ring. ``connect`` completes the exchange of handles."""

    def __init__(self, ports: RingPorts, spec: TensorSpec, what: str, device: torch.device) -> None:
        self._ports = ports
        self._spec = spec
        self._what = what
        self._device = device
        self._slots = _allocate(spec, device)
        self._batches = _shared(torch.zeros(DEPTH, dtype=torch.int64))
        self._filled_events = _make_events(device)
        self._free_events: list[torch.cuda.Event] = []
        self._index = 0
        handles = [event.ipc_handle() for event in self._filled_events]
        _exchange(lambda: ports.sender_end.send((self._slots, self._batches, handles)), what)

    def connect(self) -> None:
        """Waits for the receiver's half of the exchange."""
        handles = _exchange(self._ports.sender_end.recv, self._what)
        self._free_events = _open_events(self._device, handles)

    def send(self, tensor: Tensor, batch: int) -> None:
        """See :class:`fr_bench.transport.channel.Sender`."""
        message = self._spec.conform(tensor.detach(), self._what)
        with waiting_for(f"room for {self._what}, batch {batch}"):
            self._ports.free.acquire()
        if self._free_events:
            torch.cuda.current_stream(self._device).wait_event(self._free_events[self._index])
        self._slots[self._index].copy_(message)
        self._batches[self._index] = batch
        if self._filled_events:
            self._filled_events[self._index].record(torch.cuda.current_stream(self._device))
        self._index = (self._index + 1) % DEPTH
        self._ports.filled.release()

    @property
    def buffer_bytes(self) -> int:
        """The ring, counted at the end that allocated it."""
        return DEPTH * self._spec.num_bytes


class RingReceiver:
    """The end that opens the sender's ring."""

    buffer_bytes = 0
    is_ahead = True

    def __init__(self, ports: RingPorts, spec: TensorSpec, what: str, device: torch.device) -> None:
        self._ports = ports
        self._spec = spec
        self._what = what
        self._device = device
        self._slots, self._batches, handles = _exchange(ports.receiver_end.recv, what)
        self._filled_events = _open_events(device, handles)
        self._free_events = _make_events(device)
        self._index = 0
        mine = [event.ipc_handle() for event in self._free_events]
        _exchange(lambda: ports.receiver_end.send(mine), what)

    def expect(self, num_messages: int) -> None:
        """They are in the ring."""

    def receive(self, batch: int) -> Tensor:
        """See :class:`fr_bench.transport.channel.Receiver`."""
        message = self._spec.empty(self._device)
        with waiting_for(f"{self._what}, batch {batch}"):
            self._ports.filled.acquire()
        check_batch(int(self._batches[self._index]), batch, self._what)
        if self._filled_events:
            torch.cuda.current_stream(self._device).wait_event(self._filled_events[self._index])
        message.copy_(self._slots[self._index])
        if self._free_events:
            self._free_events[self._index].record(torch.cuda.current_stream(self._device))
        self._index = (self._index + 1) % DEPTH
        self._ports.free.release()
        return message


def _allocate(spec: TensorSpec, device: torch.device) -> list[Tensor]:
    slots = [spec.empty(device) for _ in range(DEPTH)]
    return [_shared(slot) for slot in slots] if device.type == "cpu" else slots


def _shared(tensor: Tensor) -> Tensor:
    """Moves ``tensor`` to shared memory. The plan has seen that there is room; others may have taken it since."""
    try:
        return tensor.share_memory_()
    except RuntimeError as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise _no_room(error) from error


def _no_room(error: Exception) -> RunFailed:
    return RunFailed(
        f"transport=ipc: {SHARED_MEMORY} is full ({error}); make room there, enlarge it (docker run --shm-size), or "
        "use transport=gloo"
    )


def _make_events(device: torch.device) -> list[torch.cuda.Event]:
    """One inter-process event a slot, recorded once so that the first wait finds it done; none on the CPU."""
    if device.type == "cpu":
        return []
    events = [torch.cuda.Event(interprocess=True) for _ in range(DEPTH)]
    for event in events:
        event.record(torch.cuda.current_stream(device))
    return events


def _open_events(device: torch.device, handles: list[Any]) -> list[torch.cuda.Event]:
    return [torch.cuda.Event.from_ipc_handle(device, handle) for handle in handles]


def _exchange(operation: Callable[[], Any], what: str) -> Any:
    try:
        return operation()
    except (EOFError, OSError) as error:
        raise PeerLost(f"{what}: the neighbour went away while the channel was opened: {error!r}") from error
