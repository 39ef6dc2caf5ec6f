"""The normalisation of a model, ``model.norm``: what stands where batch norm does.

batch  statistics of the batch: an image's output depends on its neighbours, and on how a batch is shared out
group  statistics of one image, over groups of channels (Wu and He, ECCV 2018)
none   nothing. A residual branch ends in a learned factor that starts small (SkipInit, De and Smith, NeurIPS 2020),
       so that features do not grow with depth; convolutions get the shift that the norm had, as a bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fr_bench.errors import ConfigError, nearest
from fr_bench.models import Blocks, initialize

NORMS = ("batch", "group", "none")
CHANNELS_PER_GROUP = 8  # 2 groups in the narrowest layers here, of 16 channels, and Wu and He's 32 in those of 256


def check_norm(norm: str, choices: Sequence[str] = NORMS) -> None:
    """Raises a ConfigError for a ``norm`` that is not among ``choices``."""
    if norm not in choices:
        raise ConfigError(f"model.norm={norm}: must be one of {', '.join(choices)}.{nearest(str(norm), choices)}")


def norm2d(norm: str, channels: int) -> nn.Module:
    """The layer for images of ``channels`` channels."""
    kinds: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": group_norm, "none": no_norm}
    return kinds[norm](channels)


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of CHANNELS_PER_GROUP channels.

    Raises:
        ConfigError: ``channels`` is not a multiple of it.
    """
    num_groups, rest = divmod(channels, CHANNELS_PER_GROUP)
    if rest:
        raise ConfigError(f"model.norm=group: {channels} units are no multiple of the {CHANNELS_PER_GROUP} of a group.")
    return nn.GroupNorm(num_groups, channels)


def no_norm(channels: int) -> nn.Identity:
    """Nothing, for any number of ``channels``."""
    return nn.Identity()


def norm_relu(norm: nn.Module, x: Tensor) -> Tensor:
    """ReLU behind ``norm``, in place on what the norm returned, but never on ``x``, which the history may hold."""
    return torch.relu(x) if isinstance(norm, nn.Identity) else norm(x).relu_()


class Residual(nn.Module):
    """What the residual blocks have in common: the factor of the branch in a network without norms."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(())) if norm == "none" else None

    def join(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """The sum, in place on the end of the branch, where no backward needs it."""
        return (branch if self.factor is None else branch * self.factor).add_(shortcut)


def start(blocks: Blocks, norm: str) -> Blocks:
    """Gives a residual network its initial weights and returns ``blocks``.

    With norms convolutions keep the size of gradients (fan-out). Without they keep that of features (fan-in), and the
    factors of n residual blocks start at 1 / sqrt(n), so that together they make the variance less than threefold. From
    0, which SkipInit allows too, a ResNet-20 of basic blocks learned nothing for the first hundred steps.
    """
    residual = [block for _, block in blocks if isinstance(block, Residual)]
    for block in residual:
        if block.factor is not None:
            nn.init.constant_(block.factor, len(residual) ** -0.5)
    return initialize(blocks, "fan_in" if norm == "none" else "fan_out")
