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
        if module.k == 1:
            assert images is not None
            x = images.batch(t)
        else:
            x = side.receive_from_below()
        with module.beside_training():
            live = play(index, x)
        if not module.is_top:
            side.send_up(live.h)
        passes.append(live)
    return passes
