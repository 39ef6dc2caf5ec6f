"""A causal transformer, which predicts the next token at each position: torch's own layers, norms first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fr_bench.errors import ConfigError
from fr_bench.models import Blocks
from fr_bench.models.sizes import check_dropout, check_sizes

POSITION_STD = 0.02  # of the initial weights, as GPT-2's


def causal(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 128,
    depth: int = 6,
    heads: int = 4,
    dropout: float = 0.0,
) -> Blocks:
    """An embedding of tokens and positions, ``depth`` layers and a head: depth + 2 blocks.

    int64 tokens [B, S] from 0 to num_classes - 1 in, logits [B, S, num_classes] out.

    Args:
        input_shape: of one sample, (S,).
        num_classes: different tokens.
        width: of the features [B, S, width]; the hidden layer of a feed-forward network has four times as many.
        depth: layers, each of self-attention and a feed-forward network.
        heads: of the attention.
        dropout: probability, as in torch.nn.TransformerEncoderLayer.

    Raises:
        ConfigError: what is no sequence of tokens, a size below 1, heads that do not divide the width, or a probability
            outside [0, 1).
    """
    if len(input_shape) != 1:
        raise ConfigError(
            f"model=transformer: takes tokens [N, S], as those of dataset=text, not samples of {list(input_shape)}."
        )
    check_sizes(width=width, depth=depth, heads=heads)
    check_dropout(dropout)
    if width % heads:
        raise ConfigError(f"model.heads={heads}: must divide model.width={width}.")
    (length,) = input_shape
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))
    layers = [(f"layer{number}", CausalLayer(width, heads, dropout)) for number in range(1, depth + 1)]
    return [("embedding", Embedding(length, num_classes, width)), *layers, ("head", head)]


class Embedding(nn.Module):
    """int64 tokens [B, S] -> [B, S, width]: that of the token and that of its position, both learned."""

    def __init__(self, length: int, num_tokens: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(num_tokens, width)
        self.position = nn.Parameter(POSITION_STD * torch.randn(length, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return self.token(tokens) + self.position


class CausalLayer(nn.Module):
    """[B, S, width] -> [B, S, width]; no position sees a later one."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], x.device, x.dtype)
        return self.layer(x, mask, is_causal=True)
