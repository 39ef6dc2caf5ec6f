"""What a loader returns: images, or other inputs, and labels as they are stored; how images are normalised."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fr_bench.data.sample import SampleSpec


@dataclass(frozen=True)
class Split:
    """Images and the labels that belong to them.

    Attributes:
        images: uint8 [N, C, H, W], pixel values 0 to 255. Or what is no image, and reaches the model as it is: floats
            [N, ...], in the run's precision, or integers from 0 [N, ...], such as those of tokens (of uint8 [N, S]), as
            int64.
        labels: integers, class numbers from 0: [N], or [N, ...] where a sample has several, such as the next token
            at each of S positions.
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
        mean, std: one a channel, for pixel values scaled to 0..1; none where there are no images.
    """

    train: Split
    test: Split
    validation: Split | None
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def has_images(self) -> bool:
        """Whether inputs are images, to be normalised."""
        return self.train.images.dtype == torch.uint8 and self.train.images.dim() == 4

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input; of an image (channels, height, width)."""
        return tuple(self.train.images.shape[1:])

    @cached_property
    def label_digest(self) -> str:
        """Alike for two data sets of which the samples have the same labels in the same order."""
        digest = hashlib.sha256()
        for split in (self.train, self.test, self.validation):
            if split is not None:
                for part in split.labels.split(2**16):  # a view may be of less memory than a copy of it all
                    digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()

    @cached_property
    def sample(self) -> SampleSpec:
        """What one sample is like."""
        splits = [split for split in (self.train, self.test, self.validation) if split is not None]
        are_tokens = not self.has_images and not self.train.images.is_floating_point()
        return SampleSpec(
            input_shape=self.input_shape,
            num_classes=self.num_classes,
            vocab_size=1 + max(int(split.images.max()) for split in splits) if are_tokens else None,
            label_shape=tuple(self.train.labels.shape[1:]),
            is_image=self.has_images,
        )


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
