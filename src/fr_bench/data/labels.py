"""Labels on the device of module K, picked by the same seeded order as the images of module 1."""

from __future__ import annotations

import torch
from torch import Tensor

from fr_bench.data.order import SeededOrder


class TrainLabels:
    """The labels of the training set, int64 [N], in seeded order."""

    def __init__(self, labels: Tensor, order: SeededOrder, device: torch.device, rows: slice = slice(None)) -> None:
        """``rows``: of every batch, for a process that sees a part of it."""
        self._labels = labels.to(device)
        self._order = order
        self._rows = rows

    def batch(self, t: int) -> Tensor:
        """Labels of mini-batch ``t`` (from 0, over all epochs): int64 [B]."""
        indices = self._order.indices(t)[self._rows]
        return self._labels.index_select(0, indices.to(self._labels.device, non_blocking=True))


class EvaluationLabels:
    """The labels of a test or validation set, int64 [N], in their own order."""

    def __init__(self, labels: Tensor, batch_size: int, device: torch.device) -> None:
        self._labels = labels.to(device)
        self._batch_size = batch_size

    def batch(self, index: int) -> Tensor:
        """Labels of batch ``index`` (from 0): int64 [B]; the last one may be short."""
        return self._labels[index * self._batch_size : (index + 1) * self._batch_size]
