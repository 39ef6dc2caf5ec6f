"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 60,000 training and 10,000 test images of clothes, 1 x 28 x 28."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fr_bench.data.dataset import Dataset, Split
from fr_bench.data.download import WITHOUT_DOWNLOAD, fetch, obtain, refuse
from fr_bench.data.outline import Outline
from fr_bench.data.sample import SampleSpec
from fr_bench.errors import ConfigError

# Over all pixels of the training images.
MEAN, STD = (0.2860,), (0.3530,)
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
# Where `apt install dataset-fashion-mnist` puts the four files, compressed.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
UNSIGNED_BYTES = 8  # type code of an idx file


def load(root: str, download: bool = True) -> Dataset:
    """Reads the idx files, plain or .gz, from torchvision's folder under ``root``, or else from Debian's package.

    Args:
        root: holds ``FashionMNIST/raw/``.
        download: for :func:`prepare`; here nothing is downloaded.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    paths = find(root)
    if paths is None:
        raise ConfigError(
            f"dataset.root={root}: no Fashion-MNIST in {raw_folder(root)}. {_remedy(root)}; {WITHOUT_DOWNLOAD}"
        )
    train_images, train_labels, test_images, test_labels = (_read_idx(path) for path in paths)
    train = Split(train_images.unsqueeze(1), train_labels.long())
    test = Split(test_images.unsqueeze(1), test_labels.long())
    return Dataset(train, test, None, 10, MEAN, STD)


def prepare(root: str, download: bool = True) -> None:
    """Downloads the four files if they are not there and ``download`` allows it.

    Raises:
        ConfigError: they cannot be had; says what to put where.
    """
    if find(root) is not None:
        return
    folder = raw_folder(root)
    if not download:
        raise refuse("Fashion-MNIST", f"no files in {folder}", _remedy(root))
    from torchvision.datasets import FashionMNIST  # a second of imports, wanted for a download only

    def fill() -> None:
        for name, md5 in FashionMNIST.resources:
            if not (folder / name).exists():
                fetch(FashionMNIST.mirrors[0] + name, folder / name, md5)

    obtain("Fashion-MNIST", folder, fill, _remedy(root))


load.prepare = prepare  # type: ignore[attr-defined]
load.outline = Outline(SampleSpec((1, 28, 28), 10), 60_000, 10_000)  # type: ignore[attr-defined]


def raw_folder(root: str) -> Path:
    """Where torchvision keeps the files, too."""
    return Path(root).expanduser().absolute() / "FashionMNIST" / "raw"


def find(root: str) -> list[Path] | None:
    """The paths of FILES, all from one folder, or None."""
    for folder in (raw_folder(root), DEBIAN_FOLDER):
        candidates = [(folder / name, folder / f"{name}.gz") for name in FILES]
        paths = [next((path for path in pair if path.exists()), None) for pair in candidates]
        found = [path for path in paths if path is not None]
        if len(found) == len(FILES):
            return found
    return None


def _remedy(root: str) -> str:
    names = ", ".join(f"{name}.gz" for name in FILES)
    return f"Put {names} into {raw_folder(root)}, or install Debian's package dataset-fashion-mnist"


def _read_idx(path: Path) -> Tensor:
    """Reads an idx file: two zero bytes, type, number of dimensions, their sizes (big-endian), the values.

    Returns:
        uint8, as many dimensions as the file's name says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    num_dimensions = int(path.name.partition("idx")[2][0])
    start = 4 + 4 * num_dimensions
    if len(content) < start or content[:4] != bytes((0, 0, UNSIGNED_BYTES, num_dimensions)):
        raise _damaged(path, f"not an idx file of bytes in {num_dimensions} dimensions")
    shape = np.frombuffer(content, ">u4", num_dimensions, offset=4).tolist()
    if len(content) != start + math.prod(shape):
        raise _damaged(path, f"{len(content)} bytes, {start + math.prod(shape)} expected")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"dataset: {path} is damaged ({reason}); delete it, and the next run downloads it again.")
