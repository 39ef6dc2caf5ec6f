"""One clock for processes on several machines, whose monotonic clocks began at different moments.

As in NTP (Mills, RFC 5905, section 8): ask, have the other say its time, and take the answer of the shortest round trip
to have been given in its middle. The error is at most half of that round trip.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

NUM_ROUNDS = 16


def offset_ns(rank: int, world_size: int, clock: Callable[[], int] = time.monotonic_ns) -> int:
    """What to add to this process's ``clock`` so that it tells the time of rank 0. All processes call this together.

    Uses the default group.
    """
    if rank == 0:
        for other in range(1, world_size):
            _answer(other, clock)
        return 0
    word = torch.zeros(1, dtype=torch.int64)
    shortest_ns, offset = None, 0
    for _ in range(NUM_ROUNDS):
        asked_ns = clock()
        dist.send(word, 0)
        dist.recv(word, 0)
        round_trip_ns = clock() - asked_ns
        if shortest_ns is None or round_trip_ns < shortest_ns:
            shortest_ns = round_trip_ns
            offset = int(word) - (asked_ns + round_trip_ns // 2)
    return offset


def _answer(other: int, clock: Callable[[], int]) -> None:
    word = torch.zeros(1, dtype=torch.int64)
    for _ in range(NUM_ROUNDS):
        dist.recv(word, other)
        word[0] = clock()
        dist.send(word, other)
