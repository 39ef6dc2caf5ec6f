"""ZB-H1 (Qi, Wan, Huang, Lin, ICLR 2024): 1F1B whose backward is split in two.

K = 3 equal stages, M = 4 micro-batches, P forward, B gradient of the input, W gradient of the weights, . bubble:

    stage 1   PPP..BWPBWBWBW
    stage 2   .PP.BPBWPBWBWW
    stage 3   ..PBPBPBWPBWWW

The stage below waits for the gradient of the input (B here, D in the code, to tell it from a whole backward); that of
the weights can wait, and fills bubbles. Stage k puts its first k - 1 W's off, so that no stage keeps more than the
first one of 1F1B.
"""

from __future__ import annotations

from fr_bench.errors import ConfigError
from fr_bench.simulation.costs import Setup
from fr_bench.simulation.pipelines import Action, check_microbatches, pipeline
from fr_bench.simulation.program import Schedule


def zero_bubble(setup: Setup, num_microbatches: int, weight_share: float = 0.5) -> Schedule:
    """With equal stages and M >= K the bubble is (K - 1) (F + D - W) / M: a third of 1F1B's if all three are alike.

    Args:
        setup: costs.
        num_microbatches: M.
        weight_share: of a backward's time, spent on W. Splitting is taken to cost nothing, and module 1, which needs
            no gradient of the images, to pay D like the others.

    Raises:
        ConfigError: less than one micro-batch, or a share outside 0..1.
    """
    check_microbatches(num_microbatches)
    if not 0 <= weight_share <= 1:
        raise ConfigError(f"weight_share={weight_share}: must be from 0 to 1")
    orders = [_order(stage, setup.num_modules, num_microbatches) for stage in range(setup.num_modules)]
    return pipeline("zero bubble (ZB-H1)", setup, orders, num_microbatches, weight_share)


def _order(stage: int, num_stages: int, num_microbatches: int) -> list[Action]:
    num_ahead = min(num_microbatches, num_stages - 1 - stage)
    order = [Action("F", stage)] * num_ahead
    num_weights = 0
    for index in range(num_microbatches):
        if index + num_ahead < num_microbatches:
            order.append(Action("F", stage))
        order.append(Action("D", stage))
        if index >= stage:
            order.append(Action("W", stage))
            num_weights += 1
    return order + [Action("W", stage)] * (num_microbatches - num_weights)
