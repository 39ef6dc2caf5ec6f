"""Cross-entropy and errors of a batch whose samples have one label each, or several, such as a token's at each place.

Of several a sample's loss is the mean, and so is its error: both are then by sample, as the batch size counts them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of the samples' losses.

    Args:
        logits: [B, *S, classes]; those of bfloat16 are taken to float32.
        labels: int64 [B, *S]; S is () where a sample has one.
    """
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    if labels.dim() == 1:
        return F.cross_entropy(logits, labels, reduction="sum")
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum") / labels[0].numel()


def num_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """How many samples have their largest logit elsewhere than at the label: a scalar, with fractions where samples
    have several labels."""
    wrong = (logits.argmax(dim=-1) != labels).sum()
    return wrong if labels.dim() == 1 else wrong.double() / labels[0].numel()
