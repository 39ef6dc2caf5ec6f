"""Images as uint8 on the device of module 1; a batch is picked, augmented as uint8, then normalised.

Indexing bytes and converting last moves a quarter of the data that float images would.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fr_bench.data.augmentation import Augmentation
from fr_bench.data.order import SeededOrder


class _Normalization:
    """uint8 [B, C, H, W] -> (x / 255 - mean) / std in the wanted type and layout, in torchvision's order."""

    def __init__(
        self,
        shape: torch.Size,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        self._dtype = dtype
        self._memory_format = memory_format
        # One value a pixel and not one a channel: the inner loop is then contiguous in either layout, which makes
        # this three times faster on the CPU than broadcasting over a channels-last image.
        self._mean, self._std = (
            torch.tensor(values, dtype=dtype, device=device)
            .view(1, -1, 1, 1)
            .expand(1, *shape)
            .contiguous(memory_format=memory_format)
            for values in (mean, std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        x = images.to(self._dtype, memory_format=self._memory_format)
        return x.div_(255).sub_(self._mean).div_(self._std)


class TrainImages:
    """The training images, in seeded order and augmented. See :class:`SeededOrder` and :class:`Augmentation`."""

    def __init__(
        self,
        images: Tensor,
        order: SeededOrder,
        augmentation: dict[str, Any] | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int,
        rows: slice = slice(None),
        *,
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        """Moves ``images``, uint8 [N, C, H, W], to ``device``; batches come in ``dtype`` and ``memory_format``.

        Args:
            augmentation: the config's ``dataset.augmentation``; {} or None for none.
            mean, std: one a channel, for pixel values scaled to 0..1.
            seed: of the run.
            rows: of every batch, for a process that sees a part of it: the same images as in the whole batch.
        """
        self._images = images.to(device)
        self._order = order
        self._augmentation = Augmentation.from_config(augmentation)
        self._seed = seed
        self._rows = rows
        self._normalize = _Normalization(images.shape[1:], mean, std, device, dtype, memory_format)

    def batch(self, t: int) -> Tensor:
        """Mini-batch ``t`` (from 0, over all epochs), [B, C, H, W]: the same one whenever it is asked for."""
        device = self._images.device
        indices = self._order.indices(t)
        images = self._images.index_select(0, indices[self._rows].to(device, non_blocking=True))
        if self._augmentation.changes_images:
            draws = self._augmentation.draw(self._seed, t, len(indices))[:, self._rows]
            images = self._augmentation.apply(images, draws.to(device, non_blocking=True))
        return self._normalize(images)


class EvaluationImages:
    """The images of a test or validation set, in their own order, each exactly once."""

    def __init__(
        self,
        images: Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        """The arguments are those of :class:`TrainImages`; ``batch_size`` may be anything from 1."""
        self._images = images.to(device)
        self._batch_size = batch_size
        self._normalize = _Normalization(images.shape[1:], mean, std, device, dtype, memory_format)

    def batch(self, index: int) -> Tensor:
        """Batch ``index`` (from 0), [B, C, H, W]; the last one may be short."""
        return self._normalize(self._images[index * self._batch_size : (index + 1) * self._batch_size])
