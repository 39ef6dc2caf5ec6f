"""Made-up images of any shape, for tests and for measuring speed: a coarse pattern a class, plus noise."""

from __future__ import annotations

import torch
from torch import Tensor

from fr_bench.data.checks import check_integer
from fr_bench.data.dataset import Dataset, Split, channel_statistics
from fr_bench.seeds import derive_seed

PATTERN_SIZE = 4  # cells a side of a class's pattern; coarse, so that a shift by some pixels leaves it recognisable
DARKEST, BRIGHTEST = 64, 192  # of a pattern
NOISE = 64  # largest, either way: no pixel value is clipped


def load(channels: int, height: int, width: int, num_classes: int, num_train: int, num_test: int) -> Dataset:
    """Returns images that a network can learn to tell apart, the same ones on every machine.

    Classes are equally frequent. Everything is drawn as integers from fixed seeds; mean and standard deviation
    are computed from the training images.

    Args:
        channels, height, width: shape of an image.
        num_classes: number of patterns.
        num_train, num_test: number of images.

    Raises:
        ConfigError: an argument that is not an integer from 1.
    """
    sizes = {"channels": channels, "height": height, "width": width, "num_classes": num_classes}
    for key, value in {**sizes, "num_train": num_train, "num_test": num_test}.items():
        check_integer(key, value, 1)
    cells = (num_classes, channels, PATTERN_SIZE, PATTERN_SIZE)
    patterns = torch.randint(DARKEST, BRIGHTEST, cells, generator=_generator("patterns"), dtype=torch.int16)
    rows = torch.arange(height) * PATTERN_SIZE // height
    columns = torch.arange(width) * PATTERN_SIZE // width
    prototypes = patterns[:, :, rows][:, :, :, columns]
    train = _draw(prototypes, num_train, _generator("train"))
    test = _draw(prototypes, num_test, _generator("test"))
    mean, std = channel_statistics(train.images)
    return Dataset(train, test, None, num_classes, mean, std)


def _draw(prototypes: Tensor, num_images: int, generator: torch.Generator) -> Split:
    labels = torch.arange(num_images) % len(prototypes)
    images = prototypes[labels]
    images += torch.randint(-NOISE, NOISE, images.shape, generator=generator, dtype=torch.int16)
    return Split(images.to(torch.uint8), labels)


def _generator(purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed("synthetic data", purpose))
