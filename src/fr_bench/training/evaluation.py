"""Evaluation: a forward pipeline of its own over exactly the images of a split, outside the training clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fr_bench.modules.loss import loss_sum, num_errors
from fr_bench.modules.module import Module
from fr_bench.training.lockstep import input_of
from fr_bench.transport.link import Batches
from fr_bench.transport.side import SideChannel


@dataclass(frozen=True)
class EvaluationSet:
    """A split as this process sees it: images where module 1 is, labels where module K is."""

    name: str
    num_batches: int
    images: Batches | None
    labels: Batches | None


@torch.no_grad()
def evaluate(modules: Sequence[Module], sides: Sequence[SideChannel], split: EvaluationSet) -> dict[str, float] | None:
    """Mean loss and error (a fraction) over ``split`` with the current weights.

    Returns:
        ``{"<name>_loss", "<name>_error"}`` where module K lives, None elsewhere. The last batch may be
        short; no sample is padded or counted twice.
    """
    loss, errors, num_samples = 0.0, 0.0, 0
    for module in modules:
        module.network.eval()
    for index in range(split.num_batches):
        for module, side in zip(modules, sides, strict=True):
            x = input_of(module, side, split.images, index)
            with module.autocast():
                h = module.network(x, index)
            if not module.is_top:
                side.send_up(h)
                continue
            assert split.labels is not None
            targets = split.labels.batch(index)
            loss += loss_sum(h, targets).item()
            errors += num_errors(h, targets).item()
            num_samples += len(targets)
    for module in modules:
        module.network.train()
    if not modules[-1].is_top:
        return None
    return {f"{split.name}_loss": loss / num_samples, f"{split.name}_error": errors / num_samples}
