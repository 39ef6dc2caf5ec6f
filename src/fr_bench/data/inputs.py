"""What module 1 is given: images, normalised, or numbers as they are."""

from __future__ import annotations

from typing import Any

import torch

from fr_bench.data.dataset import Dataset, Split
from fr_bench.data.images import EvaluationImages, TrainImages
from fr_bench.data.order import SeededOrder
from fr_bench.data.tensors import EvaluationTensor, TrainTensor


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
) -> TrainImages | TrainTensor:
    """Batches of the training set, floats in ``dtype``, integers as int64; see :class:`TrainImages`."""
    inputs = dataset.train.images
    if not dataset.has_images:
        return TrainTensor(inputs, order, device, rows, **dataset.sample.input_format(dtype, memory_format))
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
) -> EvaluationImages | EvaluationTensor:
    """Batches of ``split`` of ``dataset``, likewise."""
    if not dataset.has_images:
        return EvaluationTensor(split.images, batch_size, device, **dataset.sample.input_format(dtype, memory_format))
    return EvaluationImages(
        split.images, dataset.mean, dataset.std, batch_size, device=device, dtype=dtype, memory_format=memory_format
    )
