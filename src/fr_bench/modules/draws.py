"""Random numbers of blocks and methods: keyed by what they are for, never by the order of calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

import torch
from torch import Tensor

from fr_bench.modules.random_ops import RandomOps
from fr_bench.seeds import derive_seed, host_streams


class Draws(Enum):
    """From where a block draws random numbers."""

    NOWHERE = "nowhere"
    TORCH = "torch's default generators"
    ANYWHERE = "those, and Python's or numpy's"


class KeyedDraws:
    """Runs blocks so that what they draw depends on (seed, block, batch) alone, and a replay repeats the play.
    A block's first pass shows from where it draws."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._found: dict[str, Draws] = {}

    @property
    def drawing_blocks(self) -> list[str]:
        """Names of those that draw random numbers, as far as passes have shown."""
        return [name for name, draws in self._found.items() if draws != Draws.NOWHERE]

    def run(self, name: str, block: Callable[[Tensor], Tensor], x: Tensor, batch: int) -> Tensor:
        """What the block of this name makes of ``x``.

        Raises:
            TypeError: it is no tensor.
        """
        draws = self._found.get(name)
        if draws is Draws.NOWHERE and x.is_cuda and torch.cuda.is_current_stream_capturing():
            return block(x)  # a generator cannot be seeded there
        seed = derive_seed(self._seed, "stochastic block", name, batch)
        generators = seed_generators(x.device, seed)
        if draws in (Draws.NOWHERE, Draws.TORCH):  # who has drawn nothing may begin to, as dropout whose p grows from 0
            return block(x)
        with host_streams(seed) as has_drawn:
            if draws is Draws.ANYWHERE:
                return block(x)
            h, uses_torch = _run_and_see(block, x, generators)
            if not isinstance(h, Tensor):
                raise TypeError(
                    f"block '{name}' returns a {type(h).__name__}; every block takes one tensor and returns one"
                )
            self._found[name] = Draws.ANYWHERE if has_drawn() else Draws.TORCH if uses_torch else Draws.NOWHERE
            return h


def seed_generators(device: torch.device, seed: int) -> list[torch.Generator]:
    """Seeds torch's default generators, and returns them: that of the host, from which may be drawn wherever a block
    computes, and that of ``device``; none where shapes alone are."""
    if device.type == "meta":
        return []
    found = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        found.append(torch.cuda.default_generators[index])
    for generator in found:
        generator.manual_seed(seed)
    return found


def _run_and_see(
    block: Callable[[Tensor], Tensor], x: Tensor, generators: Sequence[torch.Generator]
) -> tuple[Tensor, bool]:
    """What ``block`` makes of ``x``, and whether it drew from ``generators``, or would have where shapes alone are."""
    if x.device.type == "meta":
        with RandomOps() as random_ops:
            h = block(x)
        return h, random_ops.seen
    before = [generator.get_state() for generator in generators]
    h = block(x)
    return h, not all(map(torch.equal, before, [generator.get_state() for generator in generators]))
