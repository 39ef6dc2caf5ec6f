"""A multilayer perceptron: small enough for tests and for a first look at a method."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from fr_bench.errors import ConfigError
from fr_bench.models import Blocks


def mlp(
    input_shape: Sequence[int], num_classes: int, *, width: int = 64, depth: int = 4, dropout: float = 0.0
) -> Blocks:
    """``depth`` hidden layers of ``width`` units with batch norm and ReLU, then a linear layer: depth + 1 blocks.

    Args:
        input_shape: of one image; it is flattened.
        num_classes: length of the output.
        width: units of a hidden layer.
        depth: hidden layers.
        dropout: probability of dropping a unit after each hidden layer.

    Raises:
        ConfigError: a size below 1, or a probability outside [0, 1).
    """
    for key, value in (("width", width), ("depth", depth)):
        if value < 1:
            raise ConfigError(f"model.{key}={value}: must be an integer of at least 1.")
    if not 0 <= dropout < 1:
        raise ConfigError(f"model.dropout={dropout}: must be at least 0 and below 1.")
    blocks: Blocks = []
    num_inputs = math.prod(input_shape)
    for number in range(1, depth + 1):
        layers: list[nn.Module] = [nn.Flatten()] if number == 1 else []
        layers += [nn.Linear(num_inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        if dropout:
            layers.append(nn.Dropout(dropout))
        blocks.append((f"hidden{number}", nn.Sequential(*layers)))
        num_inputs = width
    return [*blocks, ("output", nn.Linear(num_inputs, num_classes))]
