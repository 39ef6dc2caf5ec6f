"""Rows of a tensor as they are, on the device that uses them: labels, and inputs that are no images.

Labels, on the device of module K, are picked by the same seeded order as the images of module 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fr_bench.data.order import SeededOrder


class TrainTensor:
    """Rows of the training set, [N, ...], in seeded order."""

    def __init__(
        self,
        values: Tensor,
        order: SeededOrder,
        device: torch.device,
        rows: slice = slice(None),
        dtype: torch.dtype = torch.int64,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """
        Args:
            rows: of every batch, for a process that sees a part of it.
            dtype, memory_format: of the batches; ``values`` stay as they are stored.
        """
        self._values = values.to(device)
        self._order = order
        self._rows = rows
        self._format: dict[str, Any] = {"dtype": dtype, "memory_format": memory_format}

    def batch(self, t: int) -> Tensor:
        """Those of mini-batch ``t`` (from 0, over all epochs): [B, ...]."""
        indices = self._order.indices(t)[self._rows]
        picked = self._values.index_select(0, indices.to(self._values.device, non_blocking=True))
        return picked.to(**self._format)


class EvaluationTensor:
    """Rows of a test or validation set, [N, ...], in their own order."""

    def __init__(
        self,
        values: Tensor,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.int64,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """The arguments are those of :class:`TrainTensor`; ``batch_size`` may be anything from 1."""
        self._values = values.to(device)
        self._batch_size = batch_size
        self._format: dict[str, Any] = {"dtype": dtype, "memory_format": memory_format}

    def batch(self, index: int) -> Tensor:
        """Those of batch ``index`` (from 0): [B, ...]; the last one may be short."""
        return self._values[index * self._batch_size : (index + 1) * self._batch_size].to(**self._format)
