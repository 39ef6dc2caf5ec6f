"""Synchronous pipelines: a mini-batch goes through the devices in M micro-batches, and the weights stay until its end.

Their gradient is that of ordinary training; their price is the bubble, in which devices wait for the pipe to fill and
to drain. A pipeline is an order of actions on each device; messages follow from it. Assumptions:

  * a micro-batch takes 1/M of the mini-batch's time and bytes (on a GPU with small batches it takes more);
  * sends are asynchronous and not bounded, as in torch.distributed.pipelining, which posts them all;
  * each device steps as soon as its own last backward is done, and may then begin the next mini-batch;
  * nothing is recomputed, and batch norm sees micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fr_bench.errors import ConfigError
from fr_bench.simulation.costs import Setup
from fr_bench.simulation.program import Channel, Compute, Operation, Receive, Schedule, Send

SETTLING, MEASURED = 3, 3  # iterations; the pipe is emptied in each, so it repeats itself at once


class Action(NamedTuple):
    """``kind`` is F (forward), B (backward), or for a split backward D (gradient of the input) and W (of the weights);
    ``stage`` counts from 0 through the whole network."""

    kind: str
    stage: int


def pipeline(
    name: str,
    setup: Setup,
    orders: Sequence[Sequence[Action]],
    num_microbatches: int,
    weight_share: float = 0.5,
) -> Schedule:
    """A schedule from the order of actions on every device.

    Args:
        name, setup: of the schedule.
        orders: by device. Stage s is on device s modulo their number; its micro-batches go by in one order.
        num_microbatches: M.
        weight_share: of a backward's time, spent on the gradient of the weights, where it is split.
    """
    seconds = [
        {
            "F": times.forward_s / num_microbatches,
            "B": times.backward_s / num_microbatches,
            "D": times.backward_s / num_microbatches * (1 - weight_share),
            "W": times.backward_s / num_microbatches * weight_share,
        }
        for times in setup.modules
    ]
    channels = _Channels(setup, len(orders), num_microbatches)
    programs = []
    for device, order in enumerate(orders):
        program: list[Operation] = []
        for action in order:
            if action.kind == "F" and action.stage == 0:
                program.append(Compute("load images", setup.modules[0].load_s / num_microbatches))
            program += channels.before(action)
            program.append(Compute(_NAMES[action.kind], seconds[action.stage][action.kind]))
            program += channels.after(action)
        step_s = sum(times.step_s for times in setup.modules[device :: len(orders)])
        programs.append((*program, Compute("step", step_s)))
    return Schedule(name, setup, tuple(programs), num_settling=SETTLING, num_measured=MEASURED)


_NAMES = {"F": "play", "B": "backward", "D": "backward", "W": "weights"}


class _Channels:
    """The messages of an action; none between stages on the same device."""

    def __init__(self, setup: Setup, num_devices: int, num_microbatches: int) -> None:
        self._num_stages = setup.num_modules
        self._num_devices = num_devices
        self._bytes = [num_bytes / num_microbatches for num_bytes in setup.message_bytes]

    def before(self, action: Action) -> list[Operation]:
        if action.kind == "F":
            return [Receive(channel) for channel in self._across("features", action.stage)]
        if action.kind in "BD":
            return [Receive(channel) for channel in self._across("gradient", action.stage + 1)]
        return []

    def after(self, action: Action) -> list[Operation]:
        if action.kind == "F":
            return [Send(channel) for channel in self._across("features", action.stage + 1)]
        if action.kind in "BD":
            return [Send(channel) for channel in self._across("gradient", action.stage)]
        return []

    def _across(self, what: str, cut: int) -> list[Channel]:
        """The channel at ``cut`` (between stages cut - 1 and cut), if there is one."""
        below, above = (cut - 1) % self._num_devices, cut % self._num_devices
        if not 0 < cut < self._num_stages or below == above:
            return []
        source, destination = (below, above) if what == "features" else (above, below)
        return [Channel(what, cut, source, destination, self._bytes[cut - 1], depth=None)]


def check_microbatches(num_microbatches: int, multiple_of: int = 1) -> None:
    """Raises ConfigError for a number that the schedule cannot use."""
    if num_microbatches < 1 or num_microbatches % multiple_of:
        allowed = "at least 1" if multiple_of == 1 else f"a positive multiple of the {multiple_of} devices"
        raise ConfigError(f"num_microbatches={num_microbatches}: must be {allowed}")
