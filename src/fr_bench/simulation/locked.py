"""Backpropagation over K modules: locked, one module works at a time.

K = 3 equal modules, P play, B backward, . wait:

    module 1   P......BBP......BBP......BB
    module 2   .P...BB...P...BB...P...BB..
    module 3   ..PBB......PBB......PBB....
"""

from __future__ import annotations

from fr_bench.simulation.costs import Setup
from fr_bench.simulation.parts import Part, asynchronous
from fr_bench.simulation.program import Operation, Schedule


def locked(setup: Setup, recomputes: bool = False) -> Schedule:
    """BP as in fr_bench.methods.bp. The optimizer steps above module 1 hide behind the backwards below.

    Args:
        setup: costs.
        recomputes: whether activations are checkpointed, so that each backward pays another forward.
    """

    def module(part: Part) -> list[Operation]:
        again = part.replay() if recomputes else []
        play = [*part.receive_features(), *part.play_with_graph()]
        return [*play, *part.receive_gradient(), *again, *part.descend()]

    return asynchronous("bp", setup, module, module)
