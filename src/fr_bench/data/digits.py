"""scikit-learn's handwritten digits: 1,797 real images inside a package that is installed anyway."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fr_bench.data.checks import check_integer
from fr_bench.data.dataset import Dataset, Split, channel_statistics
from fr_bench.seeds import derive_seed

NUM_TEST = 360
LARGEST_VALUE = 16  # of a pixel in scikit-learn's copy
ORIGINAL_SIZE = 8
FILE = "datasets/data/digits.csv.gz"  # in scikit-learn's folder


def load(size: int = 16) -> Dataset:
    """Returns 1,437 training and 360 test images, 1 x size x size, the same ones on every machine.

    Mean and standard deviation are computed from the training images.

    Args:
        size: pixels a side, from 8, the original's.

    Raises:
        ConfigError: ``size`` is not an integer, or too small.
    """
    check_integer("size", size, ORIGINAL_SIZE, ", pixels a side")
    complete, order = _complete(size)
    train, test = complete.select(order[NUM_TEST:]), complete.select(order[:NUM_TEST])
    mean, std = channel_statistics(train.images)
    return Dataset(train, test, None, 10, mean, std)


@lru_cache(maxsize=1)  # each plan of a run asks for them, and would take half as long again
def _complete(size: int) -> tuple[Split, Tensor]:
    """All images, and the order in which they are divided: their numbers, int64 [N]."""
    originals, labels = _read()
    # The hash of its number places an image: no random generator, hence no version of one, has a say.
    order = sorted(range(len(labels)), key=lambda index: derive_seed("digits split", index))
    return Split(_resize(originals, size), labels), torch.tensor(order)


def _read() -> tuple[Tensor, Tensor]:
    """All images, float64 [N, 8, 8], and their labels, int64 [N].

    Out of scikit-learn's file: to import scikit-learn takes most of a second, in every process with images or labels.
    """
    spec = find_spec("sklearn")
    folders = (spec and spec.submodule_search_locations) or []
    for path in (Path(folder, FILE) for folder in folders):
        if path.exists():
            rows = torch.from_numpy(np.loadtxt(path, delimiter=","))
            return rows[:, :-1].view(-1, ORIGINAL_SIZE, ORIGINAL_SIZE), rows[:, -1].long()
    from sklearn.datasets import load_digits  # which knows where a version of its own has them

    digits = load_digits()
    return torch.from_numpy(digits.images), torch.from_numpy(digits.target).long()


def _resize(images: Tensor, size: int) -> Tensor:
    """[N, 8, 8] with values 0 to 16 -> uint8 [N, 1, size, size] with values 0 to 255.

    In float64 every value is exact for the usual sizes (multiples of 1/256), so rounding is alike everywhere.
    """
    scaled = images.double().unsqueeze(1) * (255 / LARGEST_VALUE)
    resized = F.interpolate(scaled, size=(size, size), mode="bilinear", align_corners=False)
    return resized.round().to(torch.uint8)
