"""The operations of module k of K, from which the asynchronous schedules are put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fr_bench.simulation.costs import Setup
from fr_bench.simulation.program import Channel, Compute, Operation, Receive, Schedule, Send


class Part:
    """Module k; its messages are left out where it has no neighbour. ``index`` counts from 0."""

    def __init__(self, setup: Setup, index: int) -> None:
        self._setup = setup
        self._index = index
        self._times = setup.modules[index]
        self.delay = setup.num_modules - 1 - index
        self.is_top = self.delay == 0

    def receive_features(self) -> list[Operation]:
        """h_{k-1}^t; module 1 makes the images instead."""
        if self._index == 0:
            return [Compute("load images", self._times.load_s)]
        return [Receive(self._channel("features", self._index))]

    def play(self) -> list[Operation]:
        """A forward without a graph, sent up."""
        return [Compute("play", self._times.play_s), *self._send_features()]

    def play_with_graph(self) -> list[Operation]:
        """A forward with a graph, sent up."""
        return [Compute("play", self._times.forward_s), *self._send_features()]

    def replay(self) -> list[Operation]:
        """A forward with a graph of features that were kept."""
        return [Compute("replay", self._times.forward_s)]

    def synthesize(self) -> list[Operation]:
        """Trains the synthesizer and predicts with it; in DGL trains the auxiliary network."""
        return [Compute("synthesize", self._times.synthesize_s)]

    def receive_gradient(self) -> list[Operation]:
        """The next d_k, from above."""
        return [] if self.is_top else [Receive(self._channel("gradient", self._index + 1))]

    def backward(self) -> list[Operation]:
        """Through the graph at hand."""
        return [Compute("backward", self._times.backward_s)]

    def send_gradient(self) -> list[Operation]:
        """d_{k-1}, down."""
        return [] if self._index == 0 else [Send(self._channel("gradient", self._index))]

    def step(self) -> list[Operation]:
        """The optimizer's."""
        return [Compute("step", self._times.step_s)]

    def descend(self) -> list[Operation]:
        """Backward, gradient down, step: in this order, because the module below waits for it and nobody for us."""
        return [*self.backward(), *self.send_gradient(), *self.step()]

    def _send_features(self) -> list[Operation]:
        return [] if self.is_top else [Send(self._channel("features", self._index + 1))]

    def _channel(self, what: str, cut: int) -> Channel:
        below, above = cut - 1, cut
        source, destination = (below, above) if what == "features" else (above, below)
        num_bytes = self._setup.message_bytes[cut - 1]
        return Channel(what, cut, source, destination, num_bytes, self._setup.channel_depth)


def asynchronous(
    name: str, setup: Setup, top: Callable[[Part], list[Operation]], lower: Callable[[Part], list[Operation]]
) -> Schedule:
    """A schedule without barriers from the operations of module K and of a module below it.

    Its modules drift apart until the pipe is full. Then it repeats itself after as many iterations as a cycle of
    messages takes, which may be any number up to K: several of those are measured.
    """
    parts = [Part(setup, index) for index in range(setup.num_modules)]
    programs = tuple(tuple((top if part.is_top else lower)(part)) for part in parts)
    enough = max(96, 4 * setup.num_modules)
    return Schedule(name, setup, programs, num_settling=enough, num_measured=enough)


def delayed(name: str, setup: Setup, lower: Callable[[Part], tuple[list[Operation], list[Operation]]]) -> Schedule:
    """A method with delayed gradients.

    Args:
        name, setup: of the schedule.
        lower: what module k < K does in every iteration, and what it does besides once it learns, from
            iteration K - k on.
    """

    def from_the_first_gradient(part: Part) -> list[Operation]:
        always, learning = lower(part)
        return [*always, *starting_at(part.delay, learning)]

    return asynchronous(name, setup, learn_from_the_loss, from_the_first_gradient)


def learn_from_the_loss(part: Part) -> list[Operation]:
    """Module K, the same in all methods."""
    return [*part.receive_features(), *part.play_with_graph(), *part.descend()]


def starting_at(first_iteration: int, operations: Sequence[Operation]) -> list[Operation]:
    """The operations, skipped before ``first_iteration``."""
    return [replace(operation, first_iteration=first_iteration) for operation in operations]
