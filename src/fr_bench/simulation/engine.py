"""Runs the programs of all devices on simulated clocks.

Every device works through its own list in order, so its clock depends on its own past, on the arrival of the
messages it waits for, and on the room that its neighbours have made. Channels have one sender and one receiver;
therefore the order in which devices are advanced here changes nothing: each goes on until it needs a time that is
not known yet, and is taken up again when a neighbour has made it known. There is no event queue.

    sender     compute | send          | compute ...         goes on at once, unless `depth` messages wait
    link               ^ transfer | latency |                one message at a time, each direction
    receiver   compute ...         wait     | receive | compute ...
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fr_bench.simulation.costs import Link
from fr_bench.simulation.program import Barrier, Channel, Compute, Operation, Pause, Receive, Schedule, Send


class Span(NamedTuple):
    """One stretch of a device's time: seconds since the start, device from 0, names as in measuring.stopwatch."""

    device: int
    name: str
    start_s: float
    end_s: float
    iteration: int


@dataclass
class ChannelLog:
    """When each message of a channel was sent, arrived and was received, in seconds since the start."""

    sent_s: list[float] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    received_s: list[float] = field(default_factory=list)


@dataclass
class Execution:
    """What happened, by device and iteration.

    Attributes:
        ends_s: when the device finished the iteration.
        busy_s: seconds of the iteration in which it computed or copied.
        channels: every message.
        spans: of the traced iterations.
    """

    ends_s: list[list[float]]
    busy_s: list[list[float]]
    channels: dict[Channel, ChannelLog]
    spans: list[Span]


class Deadlock(RuntimeError):
    """A schedule in which devices wait for each other; the message names the operation of each."""


def execute(schedule: Schedule, num_iterations: int, traced: Container[int] = ()) -> Execution:
    """Runs ``num_iterations`` of a schedule; spans are kept of iterations in ``traced``.

    Raises:
        Deadlock: the schedule cannot go on.
        ConfigError: the setup's straggler factors are not one a device.
    """
    run = _Run(schedule, num_iterations, traced)
    run.finish()
    return Execution([device.ends_s for device in run.devices], [d.busy_s for d in run.devices], run.logs, run.spans)


class _Device:
    """Where a device is in its program, and its clock."""

    def __init__(self, index: int, program: Sequence[Operation], factor: float) -> None:
        self.index = index
        self.program = program
        self.factor = factor
        self.position = 0
        self.clock_s = 0.0
        self.iteration_busy_s = 0.0
        self.num_barriers = 0
        self.is_queued = True
        self.iteration = 0
        self.ends_s: list[float] = []
        self.busy_s: list[float] = []

    def end_iteration(self) -> None:
        self.ends_s.append(self.clock_s)
        self.busy_s.append(self.iteration_busy_s)
        self.position, self.iteration_busy_s = 0, 0.0
        self.iteration += 1


class _Run:
    def __init__(self, schedule: Schedule, num_iterations: int, traced: Container[int]) -> None:
        factors = schedule.setup.factors(len(schedule.programs))
        self.devices = [_Device(i, program, factors[i]) for i, program in enumerate(schedule.programs)]
        channels = {o.channel for program in schedule.programs for o in program if isinstance(o, Send | Receive)}
        self.logs = {channel: ChannelLog() for channel in channels}
        self.spans: list[Span] = []
        self._name = schedule.name
        self._num_iterations = num_iterations
        self._traced = traced
        self._link: Link = schedule.setup.link
        self._link_free_s: dict[tuple[int, int], float] = {}
        self._barriers: list[dict[int, float]] = []  # of each barrier, the arrivals by device
        self._runnable = deque(self.devices)

    def finish(self) -> None:
        """Advances devices until all have finished."""
        while self._runnable:
            device = self._runnable.popleft()
            device.is_queued = False
            self._advance(device)
        blocked = [device for device in self.devices if device.iteration < self._num_iterations]
        if blocked:
            where = "; ".join(f"device {d.index + 1} at {d.program[d.position]}" for d in blocked)
            raise Deadlock(f"{self._name}: {where}")

    def _advance(self, device: _Device) -> None:
        """Runs ``device`` until it needs something that has not happened yet."""
        while device.iteration < self._num_iterations:
            if device.position == len(device.program):
                device.end_iteration()
                continue
            operation = device.program[device.position]
            if device.iteration >= operation.first_iteration and not self._perform(device, operation):
                return
            device.position += 1

    def _perform(self, device: _Device, operation: Operation) -> bool:
        """Returns False if ``device`` has to wait for another device to be advanced."""
        if isinstance(operation, Compute):
            self._spend(device, operation.name, operation.seconds * device.factor)
            return True
        if isinstance(operation, Receive):
            return self._receive(device, operation.channel)
        if isinstance(operation, Send):
            return self._send(device, operation.channel)
        if isinstance(operation, Pause):
            self._wait_until(device, operation.name, device.clock_s + operation.seconds)
            return True
        assert isinstance(operation, Barrier)
        return self._meet(device)

    def _send(self, device: _Device, channel: Channel) -> bool:
        log = self.logs[channel]
        num_sent = len(log.sent_s)
        if channel.depth is not None and num_sent >= channel.depth:
            makes_room = num_sent - channel.depth
            if makes_room >= len(log.received_s):
                return False
            self._wait_until(device, f"wait to send {channel.what}", log.received_s[makes_room])
        self._spend(device, f"send {channel.what}", channel.num_bytes / self._link.copy_bytes_per_s)
        wire = (channel.source, channel.destination)
        departed_s = max(device.clock_s, self._link_free_s.get(wire, -math.inf))
        departed_s += channel.num_bytes / self._link.bandwidth_bytes_per_s
        self._link_free_s[wire] = departed_s
        log.sent_s.append(device.clock_s)
        log.arrived_s.append(departed_s + self._link.latency_s)
        self._wake(channel.destination)
        return True

    def _receive(self, device: _Device, channel: Channel) -> bool:
        log = self.logs[channel]
        num_received = len(log.received_s)
        if num_received >= len(log.arrived_s):
            return False
        self._wait_until(device, f"wait {channel.what}", log.arrived_s[num_received])
        self._spend(device, f"receive {channel.what}", channel.num_bytes / self._link.copy_bytes_per_s)
        log.received_s.append(device.clock_s)
        self._wake(channel.source)
        return True

    def _meet(self, device: _Device) -> bool:
        if device.num_barriers == len(self._barriers):
            self._barriers.append({})
        arrivals_s = self._barriers[device.num_barriers]
        is_last = device.index not in arrivals_s and len(arrivals_s) == len(self.devices) - 1
        arrivals_s[device.index] = device.clock_s
        if len(arrivals_s) < len(self.devices):
            return False
        device.num_barriers += 1
        self._wait_until(device, "wait barrier", max(arrivals_s.values()))
        if is_last:
            for index in arrivals_s.keys() - {device.index}:
                self._wake(index)
        return True

    def _wake(self, index: int) -> None:
        """Takes a device up again; one that still cannot go on just stays where it is."""
        device = self.devices[index]
        if not device.is_queued:
            device.is_queued = True
            self._runnable.append(device)

    def _spend(self, device: _Device, name: str, seconds: float) -> None:
        device.iteration_busy_s += seconds
        self._pass(device, name, device.clock_s + seconds)

    def _wait_until(self, device: _Device, name: str, time_s: float) -> None:
        if time_s > device.clock_s:
            self._pass(device, name, time_s)

    def _pass(self, device: _Device, name: str, end_s: float) -> None:
        if device.iteration in self._traced and end_s > device.clock_s:
            self.spans.append(Span(device.index, name, device.clock_s, end_s, device.iteration))
        device.clock_s = end_s
