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


def unlinked_locked_step_s(setup: Setup) -> float:
    """Step time of BP whose messages take no time: the work of all modules, which limits and speed-ups refer to.

    Module 1 loads the images and takes the last step; other modules' steps hide. Without stragglers and jitter.
    """
    first = setup.modules[0]
    return first.load_s + first.step_s + sum(times.forward_s + times.backward_s for times in setup.modules)
