"""scikit-learn's handwritten digits: 1,797 real images inside a package that is installed anyway."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fr_bench.data.checks import check_integer
from fr_bench.data.dataset import Dataset, Split, channel_statistics
from fr_bench.seeds import derive_seed

NUM_TEST = 360
LARGEST_VALUE = 16  # of a pixel in scikit-learn's copy
ORIGINAL_SIZE = 8


def load(size: int = 16) -> Dataset:
    """Returns 1,437 training and 360 test images, 1 x size x size, the same ones on every machine.

    Mean and standard deviation are computed from the training images.

    Args:
        size: pixels a side, from 8, the original's.

    Raises:
        ConfigError: ``size`` is not an integer, or too small.
    """
    check_integer("size", size, ORIGINAL_SIZE, ", pixels a side")
    from sklearn.datasets import load_digits  # three quarters of a second, for those who want digits

    digits = load_digits()
    images = _resize(torch.from_numpy(digits.images), size)
    labels = torch.from_numpy(digits.target).long()
    # The hash of its number places an image: no random generator, hence no version of one, has a say.
    order = torch.tensor(sorted(range(len(labels)), key=lambda index: derive_seed("digits split", index)))
    complete = Split(images, labels)
    train, test = complete.select(order[NUM_TEST:]), complete.select(order[:NUM_TEST])
    mean, std = channel_statistics(train.images)
    return Dataset(train, test, None, 10, mean, std)


def _resize(images: Tensor, size: int) -> Tensor:
    """[N, 8, 8] with values 0 to 16 -> uint8 [N, 1, size, size] with values 0 to 255.

    In float64 every value is exact for the usual sizes (multiples of 1/256), so rounding is alike everywhere.
    """
    scaled = images.double().unsqueeze(1) * (255 / LARGEST_VALUE)
    resized = F.interpolate(scaled, size=(size, size), mode="bilinear", align_corners=False)
    return resized.round().to(torch.uint8)
