"""What a loader returns: images and labels as they are stored, and how the images are normalised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images and the labels that belong to them.

    Attributes:
        images: uint8 [N, C, H, W], pixel values 0 to 255.
        labels: int64 [N], class numbers from 0.
    """

    images: Tensor
    labels: Tensor

    def select(self, indices: Tensor) -> Split:
        """The images with these numbers (int64 [M]), copied."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """A data set in main memory.

    Attributes:
        validation: images held out of the training set, or None.
        num_classes: labels are 0 to num_classes - 1.
        mean, std: one a channel, for pixel values scaled to 0..1.
    """

    train: Split
    test: Split
    validation: Split | None
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image: (channels, height, width)."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W], in units of 0..1.

    Both come from counts of the 256 pixel values, which are integers, so that they do not depend on the order in
    which a machine sums.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = float((share * values).sum())
        means.append(mean)
        # A channel with one value only has no spread: it is shifted, not scaled.
        deviations.append(float((share * (values - mean) ** 2).sum().sqrt()) or 1.0)
    return tuple(means), tuple(deviations)
