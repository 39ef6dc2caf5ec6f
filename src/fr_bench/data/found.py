"""Which data sets are on this machine, and what to do about those that are not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fr_bench.data import fashion_mnist


def found_datasets() -> dict[str, dict[str, Any]]:
    """By name: ``found``, and ``detail``, where it is or what to do. Nothing is downloaded or written."""
    root = os.environ.get("FR_BENCH_DATA", "data")  # as in conf/dataset/*.yaml
    from torchvision.datasets import CIFAR10, CIFAR100

    return {
        "cifar10": _cifar(CIFAR10, "cifar10", root),
        "cifar100": _cifar(CIFAR100, "cifar100", root),
        "fashion_mnist": _fashion_mnist(root),
        "digits": {"found": True, "detail": "inside scikit-learn"},
        "synthetic": {"found": True, "detail": "made when a run starts"},
        "text": {"found": True, "detail": "any file: dataset.path=FILE"},
    }


def _cifar(source: Any, name: str, root: str) -> dict[str, Any]:
    from fr_bench.data.cifar import find_fault

    folder = Path(root).expanduser().absolute()
    archive = folder / source.filename
    if find_fault(source, folder) is None:
        return {"found": True, "detail": str(folder / source.base_folder)}
    if archive.exists():
        return {"found": True, "detail": f"{archive}, which the first run unpacks"}
    return _missing(name, f"put {source.url} at {archive}")


def _fashion_mnist(root: str) -> dict[str, Any]:
    paths = fashion_mnist.find(root)
    if paths is not None:
        return {"found": True, "detail": str(paths[0].parent)}
    folder = fashion_mnist.raw_folder(root)
    return _missing("fashion_mnist", f"put its .gz files into {folder} or install Debian's dataset-fashion-mnist")


def _missing(name: str, remedy: str) -> dict[str, Any]:
    detail = f"not here: the first run with dataset={name} downloads it; without a network {remedy}"
    return {"found": False, "detail": detail}
