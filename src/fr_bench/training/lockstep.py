"""A forward through all modules outside the training clock, over the side channel, one module after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fr_bench.modules.module import Module
from fr_bench.modules.passes import Pass
from fr_bench.transport.link import Batches
from fr_bench.transport.side import SideChannel


def play_in_lockstep(
    modules: Sequence[Module],
    sides: Sequence[SideChannel],
    images: Batches | None,
    t: int,
    play: Callable[[int, Tensor], Pass],
) -> list[Pass]:
    """Plays batch ``t`` through this process's modules (ascending); their neighbours must do the same.

    Args:
        modules, sides: of this process.
        images: where module 1 is.
        t: the batch.
        play: (index into ``modules``, input) -> pass; stopwatches stand still meanwhile.
    """
    passes = []
    for index, (module, side) in enumerate(zip(modules, sides, strict=True)):
        x = input_of(module, side, images, t)
        with module.beside_training():
            live = play(index, x)
        if not module.is_top:
            side.send_up(live.h)
        passes.append(live)
    return passes


def input_of(module: Module, side: SideChannel, images: Batches | None, t: int) -> Tensor:
    """Batch ``t`` as ``module`` sees it: in module 1 the ``images``, else what the one below sends."""
    if module.k > 1:
        return side.receive_from_below()
    assert images is not None
    return images.batch(t)
