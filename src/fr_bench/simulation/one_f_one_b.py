"""1F1B (PipeDream-Flush, Narayanan et al., ICML 2021): a backward as soon as there is one, then a forward.

K = 3 equal stages, M = 4 micro-batches, P forward, B backward, . bubble:

    stage 1   PPP....BBPBB.BB.BB
    stage 2   .PP..BBPBBPBB.BB..
    stage 3   ..PBBPBBPBBPBB....
"""

from __future__ import annotations

from fr_bench.simulation.costs import Setup
from fr_bench.simulation.pipelines import Action, check_microbatches, pipeline
from fr_bench.simulation.program import Schedule


def one_f_one_b(setup: Setup, num_microbatches: int) -> Schedule:
    """With equal stages the same time as GPipe, but stage k keeps the activations of K - k + 1 micro-batches only.

    Raises:
        ConfigError: less than one micro-batch.
    """
    check_microbatches(num_microbatches)
    orders = []
    for stage in range(setup.num_modules):
        num_ahead = min(num_microbatches, setup.num_modules - 1 - stage)
        forward, backward = Action("F", stage), Action("B", stage)
        steady = [forward, backward] * (num_microbatches - num_ahead)
        orders.append([forward] * num_ahead + steady + [backward] * num_ahead)
    return pipeline("1f1b", setup, orders, num_microbatches)
