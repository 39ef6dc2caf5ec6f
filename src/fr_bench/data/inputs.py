"""What module 1 is given: images, normalised, or numbers as they are."""

from __future__ import annotations

from typing import Any

import torch

from fr_bench.data.dataset import Dataset, Split
from fr_bench.data.images import EvaluationImages, TrainImages
from fr_bench.data.order import SeededOrder
from fr_bench.data.rows import EvaluationRows, TrainRows


def train_inputs(
    dataset: Dataset,
    order: SeededOrder,
    augmentation: dict[str, Any] | None,
    seed: int,
    rows: slice = slice(None),
    *,
    device: torch.device,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> TrainImages | TrainRows:
    """Batches of the training set, floats in ``dtype``, integers as int64; see :class:`TrainImages`."""
    inputs = dataset.train.images
    if not dataset.has_images:
        return TrainRows(inputs, order, device, rows, **_format(dataset, dtype, memory_format))
    return TrainImages(
        inputs, order, augmentation, dataset.mean, dataset.std, seed, rows,
        device=device, dtype=dtype, memory_format=memory_format,
    )  # fmt: skip


def evaluation_inputs(
    dataset: Dataset,
    split: Split,
    batch_size: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> EvaluationImages | EvaluationRows:
    """Batches of ``split`` of ``dataset``, likewise."""
    if not dataset.has_images:
        return EvaluationRows(split.images, batch_size, device, **_format(dataset, dtype, memory_format))
    return EvaluationImages(
        split.images, dataset.mean, dataset.std, batch_size, device=device, dtype=dtype, memory_format=memory_format
    )


def _format(dataset: Dataset, dtype: torch.dtype, memory_format: torch.memory_format) -> dict[str, Any]:
    """Of a batch that is no images."""
    if dataset.num_values is not None:
        return {"dtype": torch.int64}
    return {
        "dtype": dtype,
        "memory_format": memory_format if len(dataset.input_shape) == 3 else torch.contiguous_format,
    }
