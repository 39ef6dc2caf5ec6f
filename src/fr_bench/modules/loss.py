"""Cross-entropy and errors of a batch.

A sample has one label or several, as one for each token; its loss and error are then means over them, so that both
count by sample, as the batch size does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def loss_sum(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The sum of the samples' losses, a scalar.

    Args:
        logits: [B, *S, classes]; those of bfloat16 are taken to float32.
        labels: int64 [B, *S]; S is () where a sample has one.
        label_smoothing: what of a label's weight is spread evenly over all classes (Szegedy et al., CVPR 2016, section
            7).
    """
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    if labels.dim() == 1:  # no division to launch
        return _sum(logits, labels, label_smoothing)
    return _sum(logits.flatten(0, -2), labels.flatten(), label_smoothing) / labels[0].numel()


def _sum(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    if label_smoothing == 0:
        return F.cross_entropy(logits, labels, reduction="sum")
    # What F.cross_entropy(label_smoothing=...) computes, without the mask of ignored labels that it would save.
    log_p = F.log_softmax(logits, dim=-1)
    of_label = F.nll_loss(log_p, labels, reduction="sum")
    return (1 - label_smoothing) * of_label - label_smoothing * log_p.mean(dim=-1).sum()


def num_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Wrongly classified samples, a scalar; one with several labels counts by the share that is wrong.

    Args:
        logits: [B, *S, classes].
        labels: int64 [B, *S].
    """
    wrong = (logits.argmax(dim=-1) != labels).sum()
    return wrong if labels.dim() == 1 else wrong.double() / labels[0].numel()
