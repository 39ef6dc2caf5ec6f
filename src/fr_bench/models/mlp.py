"""A multilayer perceptron: small enough for tests and for a first look at a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from fr_bench.models import Blocks
from fr_bench.models.norms import check_norm, group_norm, no_norm
from fr_bench.models.sizes import check_dropout, check_sizes


def mlp(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 64,
    depth: int = 4,
    dropout: float = 0.0,
    norm: str = "batch",
) -> Blocks:
    """``depth`` hidden layers of ``width`` units with a norm and ReLU, then a linear layer: depth + 1 blocks.

    Args:
        input_shape: of one input; it is flattened.
        num_classes: length of the output.
        width: units of a hidden layer.
        depth: hidden layers.
        dropout: probability of dropping a unit after each hidden layer.
        norm: batch, group or none: a plain perceptron, whose layers have a bias instead.

    Raises:
        ConfigError: a size below 1, a probability outside [0, 1), another norm, or a width without whole groups.
    """
    check_sizes(width=width, depth=depth)
    check_dropout(dropout)
    check_norm(norm)
    kinds: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "group": group_norm, "none": no_norm}
    blocks: Blocks = []
    num_inputs = math.prod(input_shape)
    for number in range(1, depth + 1):
        layers: list[nn.Module] = [nn.Flatten()] if number == 1 else []
        linear = nn.Linear(num_inputs, width, bias=norm == "none")
        if norm == "none":  # torch's own initial weights shrink the features with every layer
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, kinds[norm](width), nn.ReLU(inplace=True)]
        if dropout:
            layers.append(nn.Dropout(dropout))
        blocks.append((f"hidden{number}", nn.Sequential(*layers)))
        num_inputs = width
    return [*blocks, ("output", nn.Linear(num_inputs, num_classes))]
