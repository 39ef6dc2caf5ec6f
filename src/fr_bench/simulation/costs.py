"""What a simulation is told: seconds of every module, bytes of every message, the links, and who is slow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fr_bench.errors import ConfigError

CHANNEL_DEPTH = 2  # messages that a channel of fr_bench.transport holds before its sender waits


@dataclass(frozen=True)
class ModuleTimes:
    """Seconds that one module computes for one mini-batch, measured while all modules are busy.

    Attributes:
        play_s: a forward without a graph.
        forward_s: a forward that builds a graph (in FR the replay).
        backward_s: through that graph; in module K with the loss.
        step_s: of the optimizer.
        load_s: making the images; module 1 pays it.
        synthesize_s: training the synthesizer and predicting with it, or training the auxiliary network; modules below
            the top pay it, DNI's and DGL's.
    """

    play_s: float
    forward_s: float
    backward_s: float
    step_s: float = 0.0
    load_s: float = 0.0
    synthesize_s: float = 0.0


@dataclass(frozen=True)
class Link:
    """Both directions between two neighbours; each carries one message at a time.

    Attributes:
        latency_s: from the last byte's departure to its arrival; the link is free meanwhile.
        bandwidth_bytes_per_s: of each direction.
        copy_bytes_per_s: of the copies that a module makes itself, one to send and one to receive, as in shared
            memory on the CPU. Infinite where something else copies while the module computes.

    Raises:
        ConfigError: a latency below 0 or a rate that is not positive.
    """

    latency_s: float = 0.0
    bandwidth_bytes_per_s: float = math.inf
    copy_bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.latency_s < math.inf:
            raise ConfigError(f"simulate.latency_us={self.latency_s * 1e6:g}: must be 0 or more")
        if not self.bandwidth_bytes_per_s > 0:
            raise ConfigError(f"simulate.bandwidth_gb_s={self.bandwidth_bytes_per_s / 1e9:g}: must be positive")
        if not self.copy_bytes_per_s > 0:
            raise ConfigError(f"copy_bytes_per_s={self.copy_bytes_per_s:g}: must be positive")


@dataclass(frozen=True)
class Setup:
    """A network cut into modules, on one device each, linked to their neighbours.

    Attributes:
        modules: times of modules 1..K (of K v stages for a schedule with v chunks a device).
        message_bytes: at cuts 1..K-1: size of the features of a mini-batch, and of their gradient.
        link: between neighbours.
        straggler: factors on the compute times of devices 1..K; empty for none.
        channel_depth: messages that a channel of a method holds before its sender waits; None for no bound. Two never
            hold a method back, because neighbours wait for each other's last message in every iteration; in DGL, where
            nobody waits for a module above, they hold a faster one back.

    Raises:
        ValueError: sizes that do not fit together, or negative times.
        ConfigError: a straggler factor out of range, naming its key.
    """

    modules: tuple[ModuleTimes, ...]
    message_bytes: tuple[float, ...] = ()
    link: Link = Link()
    straggler: tuple[float, ...] = ()
    channel_depth: int | None = CHANNEL_DEPTH

    def __post_init__(self) -> None:
        if not self.modules or len(self.message_bytes) != len(self.modules) - 1:
            raise ValueError(f"{len(self.modules)} modules with {len(self.message_bytes)} cuts: K modules have K - 1")
        if any(seconds < 0 for times in self.modules for seconds in vars(times).values()):
            raise ValueError(f"modules={self.modules}: seconds cannot be negative")
        if any(factor <= 0 for factor in self.straggler):
            raise ConfigError(f"simulate.straggler={list(self.straggler)}: factors on compute time must be positive")
        if self.channel_depth is not None and self.channel_depth < 1:
            raise ValueError(f"channel_depth={self.channel_depth}: a channel holds at least one message")

    @property
    def num_modules(self) -> int:
        """K."""
        return len(self.modules)

    def factors(self, num_devices: int) -> tuple[float, ...]:
        """Factors on compute time, by device.

        Raises:
            ConfigError: ``straggler`` has another number of devices.
        """
        if self.straggler and len(self.straggler) != num_devices:
            raise ConfigError(
                f"simulate.straggler={list(self.straggler)}: has {len(self.straggler)} factors for {num_devices} "
                "devices; give one for each, 1 for those that are not slow"
            )
        return self.straggler or (1.0,) * num_devices


@dataclass(frozen=True)
class BlockTimes:
    """Seconds of one block for one mini-batch (see ModuleTimes), and the bytes of its output.

    ``synthesize_s`` counts where a module below the top ends with the block.
    """

    play_s: float
    forward_s: float
    backward_s: float
    step_s: float
    output_bytes: float
    synthesize_s: float = 0.0


def group_blocks(
    blocks: Sequence[BlockTimes], cuts: Sequence[int], load_s: float = 0.0
) -> tuple[tuple[ModuleTimes, ...], tuple[float, ...]]:
    """Adds measured block costs up to modules; returns ``modules`` and ``message_bytes`` of a :class:`Setup`.

    Args:
        blocks: in order.
        cuts: block indices where modules 2..K begin, as in a plan.
        load_s: seconds to make a mini-batch of images, paid by module 1.
    """
    bounds = [0, *cuts, len(blocks)]
    modules = [
        ModuleTimes(
            play_s=sum(block.play_s for block in blocks[start:end]),
            forward_s=sum(block.forward_s for block in blocks[start:end]),
            backward_s=sum(block.backward_s for block in blocks[start:end]),
            step_s=sum(block.step_s for block in blocks[start:end]),
            load_s=load_s if start == 0 else 0.0,
            synthesize_s=blocks[end - 1].synthesize_s if end < len(blocks) else 0.0,
        )
        for start, end in itertools.pairwise(bounds)
    ]
    return tuple(modules), tuple(blocks[cut - 1].output_bytes for cut in cuts)
