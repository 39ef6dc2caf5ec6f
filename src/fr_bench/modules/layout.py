"""The memory format of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Gives parameters and buffers of four dimensions ``memory_format``, in place. ``network.to`` would also ask it of
    those of five, as of volumes or videos, which have no channels_last."""

    def laid_out(tensor: Tensor) -> Tensor:
        return tensor.to(memory_format=memory_format) if tensor.dim() == 4 else tensor

    network._apply(laid_out)
