"""The bytes of a file, for a language model: at each position of a sample the label is the byte that follows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fr_bench.data.checks import check_integer
from fr_bench.data.dataset import Dataset, Split
from fr_bench.errors import ConfigError

NUM_BYTES = 256  # different ones
TEST_SHARE = 10  # a tenth


def load(path: str | None, length: int = 64) -> Dataset:
    """Cuts the file into samples of ``length`` bytes, uint8 [N, length]; the last tenth of them is the test set.

    A test error is then the share of bytes that are predicted wrongly, a loss is in nats a byte.

    Args:
        path: of any file.
        length: bytes a sample.

    Raises:
        ConfigError: no file is named, it cannot be read, or is too short for a sample in each set.
    """
    if not path:
        named = "null" if path is None else ""
        raise ConfigError(f"dataset.path={named}: name a file whose text is to be learned: dataset.path=FILE.")
    check_integer("length", length, 1, ", bytes a sample")
    file = Path(path).expanduser().absolute()
    try:
        text = torch.from_numpy(np.fromfile(file, dtype=np.uint8))
    except OSError as error:
        raise ConfigError(f"dataset.path={path}: {error.strerror or error} ({file}).") from error
    num_samples = (len(text) - 1) // length
    num_test = num_samples // TEST_SHARE
    if num_test < 1:
        raise ConfigError(
            f"dataset.path={path}: has {len(text)} bytes, and {TEST_SHARE} samples of dataset.length={length}, one of "
            f"them for the test set, take {TEST_SHARE * length + 1}."
        )
    inputs, labels = (part[: num_samples * length].view(num_samples, length) for part in (text, text[1:]))
    train, test = slice(num_samples - num_test), slice(num_samples - num_test, None)
    return Dataset(Split(inputs[train], labels[train]), Split(inputs[test], labels[test]), None, NUM_BYTES)
