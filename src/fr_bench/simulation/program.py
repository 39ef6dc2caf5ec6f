"""A schedule as data: for every device the list of operations that it repeats in each iteration, in order.

    device 1   load images | play | send features | replay | wait gradient | backward | step
    device 2   wait features | play | ...

Channels are first in, first out, so the n-th receive on a channel gets the n-th message sent on it; which batch
that is follows from the iteration in which sending and receiving begin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from fr_bench.simulation.costs import Setup


@dataclass(frozen=True)
class Channel:
    """Messages of one kind from one device to another. All channels between the two, in this direction, share a
    link, which carries one message at a time.

    Attributes:
        what: ``features`` or ``gradient``.
        cut: the number of the cut that they cross, from 1.
        source, destination: devices, from 0.
        num_bytes: of a message.
        depth: messages held before the sender waits; None for no bound.
    """

    what: str
    cut: int
    source: int
    destination: int
    num_bytes: float
    depth: int | None


@dataclass(frozen=True)
class Compute:
    """Keeps the device busy for ``seconds``, times its factor."""

    name: str
    seconds: float
    first_iteration: int = 0


@dataclass(frozen=True)
class Pause:
    """Passes ``seconds`` in which the device has nothing to compute: a collective that all take part in."""

    name: str
    seconds: float
    first_iteration: int = 0


@dataclass(frozen=True)
class Send:
    """Hands a message to the channel, once it has room, and goes on at once."""

    channel: Channel
    first_iteration: int = 0


@dataclass(frozen=True)
class Receive:
    """Waits until the channel's next message has arrived, and makes room for another."""

    channel: Channel
    first_iteration: int = 0


@dataclass(frozen=True)
class Barrier:
    """Waits until every device is here."""

    first_iteration: int = 0


Operation: TypeAlias = Compute | Pause | Send | Receive | Barrier


@dataclass(frozen=True)
class Schedule:
    """What :func:`fr_bench.simulation.simulate` runs.

    Attributes:
        name: as in bench.json.
        setup: costs that the operations were made from.
        programs: by device, the operations of an iteration.
        num_settling: iterations after which the schedule repeats itself.
        num_measured: iterations to take the step time from.
    """

    name: str
    setup: Setup
    programs: tuple[tuple[Operation, ...], ...]
    num_settling: int
    num_measured: int
