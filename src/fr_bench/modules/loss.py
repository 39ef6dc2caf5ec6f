"""Cross-entropy and errors of a batch.

A sample has one label or several, as one for each token; its loss and error are then means over them, so that both
count by sample, as the batch size does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of the samples' losses, a scalar.

    Args:
        logits: [B, *S, classes]; those of bfloat16 are taken to float32.
        labels: int64 [B, *S]; S is () where a sample has one.
    """
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    if labels.dim() == 1:  # no division to launch
        return F.cross_entropy(logits, labels, reduction="sum")
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum") / labels[0].numel()


def num_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Wrongly classified samples, a scalar; one with several labels counts by the share that is wrong.

    Args:
        logits: [B, *S, classes].
        labels: int64 [B, *S].
    """
    wrong = (logits.argmax(dim=-1) != labels).sum()
    return wrong if labels.dim() == 1 else wrong.double() / labels[0].numel()
