"""GPipe (Huang et al., NeurIPS 2019): all forwards, then all backwards.

K = 3 equal stages, M = 4 micro-batches, P forward, B backward, . bubble:

    stage 1   PPPP......BBBBBBBB
    stage 2   .PPPP...BBBBBBBB..
    stage 3   ..PPPPBBBBBBBB....
"""

from __future__ import annotations

from fr_bench.simulation.costs import Setup
from fr_bench.simulation.pipelines import Action, check_microbatches, pipeline
from fr_bench.simulation.program import Schedule


def gpipe(setup: Setup, num_microbatches: int) -> Schedule:
    """With equal stages the bubble is (K - 1) / (M + K - 1) of the step. Keeps the activations of M micro-batches.

    Raises:
        ConfigError: less than one micro-batch.
    """
    check_microbatches(num_microbatches)
    orders = [
        [Action("F", stage)] * num_microbatches + [Action("B", stage)] * num_microbatches
        for stage in range(setup.num_modules)
    ]
    return pipeline("gpipe", setup, orders, num_microbatches)
