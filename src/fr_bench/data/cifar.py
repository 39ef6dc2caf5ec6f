"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images, 3 x 32 x 32."""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from fr_bench.data.dataset import Dataset, Split
from fr_bench.data.download import fetch, obtain, refuse
from fr_bench.data.outline import Outline
from fr_bench.data.sample import SampleSpec
from fr_bench.errors import ConfigError

# Over all pixels of the training images. (0.2023, 0.1994, 0.2010), which is often seen for CIFAR-10, is the mean of
# the deviations of single images.
MEAN_10, STD_10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MEAN_100, STD_100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def load_cifar10(root: str, download: bool = True) -> Dataset:
    """Reads CIFAR-10 from ``root``; ``download`` is for :func:`prepare_cifar10`, here nothing is downloaded.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    return _load(CIFAR10, root, 10, MEAN_10, STD_10)


def load_cifar100(root: str, download: bool = True) -> Dataset:
    """Reads CIFAR-100 with its 100 fine labels. See :func:`load_cifar10`."""
    return _load(CIFAR100, root, 100, MEAN_100, STD_100)


def prepare_cifar10(root: str, download: bool = True) -> None:
    """Unpacks the archive in ``root``, and fetches it first if it is not there and ``download`` allows that.

    Raises:
        ConfigError: it cannot be had; says what to put where.
    """
    _prepare(CIFAR10, "CIFAR-10", root, download)


def prepare_cifar100(root: str, download: bool = True) -> None:
    """See :func:`prepare_cifar10`."""
    _prepare(CIFAR100, "CIFAR-100", root, download)


load_cifar10.prepare = prepare_cifar10  # type: ignore[attr-defined]
load_cifar100.prepare = prepare_cifar100  # type: ignore[attr-defined]
load_cifar10.outline = Outline(SampleSpec((3, 32, 32), 10), 50_000, 10_000)  # type: ignore[attr-defined]
load_cifar100.outline = Outline(SampleSpec((3, 32, 32), 100), 50_000, 10_000)  # type: ignore[attr-defined]


def find_fault(source: type[CIFAR10], folder: Path) -> str | None:
    """Names the first unpacked file under ``folder`` that is missing or has a wrong MD5; None if all are right."""
    for name, md5 in source.train_list + source.test_list:
        path = folder / source.base_folder / name
        if not check_integrity(path, md5):
            return f"{path} is damaged" if path.exists() else f"{path} is missing"
    return None


def _prepare(source: type[CIFAR10], title: str, root: str, download: bool) -> None:
    folder = Path(root).expanduser().absolute()
    fault = find_fault(source, folder)
    if fault is None:  # asked before the lock, which a shared, read-only folder would refuse
        return
    archive = folder / source.filename
    remedy = f"Put {source.url} at {archive}"
    if not download and not check_integrity(archive, source.tgz_md5):
        raise refuse(title, fault, remedy)

    def fill() -> None:
        if find_fault(source, folder) is None:
            return
        if not check_integrity(archive, source.tgz_md5):
            fetch(source.url, archive, source.tgz_md5)
        unpack(source, archive, folder)

    obtain(title, folder, fill, remedy)


def unpack(source: type[CIFAR10], archive: Path, folder: Path) -> None:
    """Takes the files of the data set out of ``archive``, and nothing else: whatever names are in it, they go nowhere.

    Raises:
        OSError, TarError, RuntimeError: the archive is damaged, or lacks one of them.
    """
    into = folder / source.base_folder
    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as opened:
        for name, _ in source.train_list + source.test_list:
            try:
                member = opened.extractfile(f"{source.base_folder}/{name}")
            except KeyError as error:
                raise RuntimeError(f"{archive} has no {source.base_folder}/{name}") from error
            if member is None:
                raise RuntimeError(f"{archive}: {source.base_folder}/{name} is not a file")
            part = into / f"{name}.part"
            part.write_bytes(member.read())
            os.replace(part, into / name)


def _load(source: Any, root: str, num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Dataset:
    folder = Path(root).expanduser().absolute() / source.base_folder
    return Dataset(_read(folder, source.train_list), _read(folder, source.test_list), None, num_classes, mean, std)


def _read(folder: Path, files: list[list[str]]) -> Split:
    """Reads ``files``, pairs of name and MD5. A pickle is opened only if its MD5 says that it is the known one."""
    images, labels = [], []
    for name, md5 in files:
        content = (folder / name).read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise ConfigError(
                f"dataset.root={folder.parent}: {folder / name} is damaged (wrong MD5); delete it, and the next run "
                "unpacks or downloads it again."
            )
        entry = pickle.loads(content, encoding="latin1")
        images.append(entry["data"])
        labels += entry["labels"] if "labels" in entry else entry["fine_labels"]
    return Split(torch.from_numpy(np.concatenate(images).reshape(-1, 3, 32, 32)), torch.tensor(labels))
