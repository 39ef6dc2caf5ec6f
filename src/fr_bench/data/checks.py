"""Is what the config asks for, and what a loader returned, something that training can use?"""

from __future__ import annotations

from typing import Any

import torch

from fr_bench.data.augmentation import Augmentation
from fr_bench.data.dataset import Dataset, Split
from fr_bench.errors import ConfigError


def check_integer(key: str, value: Any, smallest: int, alternative: str = "") -> None:
    """Raises ConfigError unless ``value`` is an integer of at least ``smallest``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        raise ConfigError(f"dataset.{key}={value}: must be an integer of at least {smallest}{alternative}.")


def check_common(config: dict[str, Any]) -> None:
    """Checks the keys that every data set has, as far as that needs no images.

    Raises:
        ConfigError: names the key, its value and what is allowed.
    """
    if config.get("limit") is not None:
        check_integer("limit", config["limit"], 1, ", the number of training images to keep, or null for all")
    check_integer("validation", config.get("validation", 0), 0, ", the number of training images to hold out")
    Augmentation.from_config(config.get("augmentation"))


def check_dataset(dataset: Any, target: str) -> None:
    """Checks what the loader ``target`` returned.

    Raises:
        ConfigError: it is no Dataset, or its tensors are not what :class:`Split` says.
    """
    if not isinstance(dataset, Dataset):
        raise ConfigError(f"dataset: {target} must return a fr_bench.data.Dataset, not {type(dataset).__name__}.")
    splits = {name: getattr(dataset, name) for name in ("train", "test", "validation")}
    for name, split in splits.items():
        if split is None and name == "validation":
            continue
        problem = _problem(split, dataset.num_classes)
        if problem:
            raise ConfigError(f"dataset: {target}: the {name} {problem}.")
        if split.images.shape[1:] != dataset.input_shape:
            shapes = f"{dataset.input_shape} and {tuple(split.images.shape[1:])}"
            raise ConfigError(f"dataset: {target}: training and {name} images have different shapes, {shapes}.")
    channels = dataset.input_shape[0]
    if len(dataset.mean) != channels or len(dataset.std) != channels or min(dataset.std) <= 0:
        raise ConfigError(
            f"dataset: {target}: mean={dataset.mean} and std={dataset.std} must have a number for each of "
            f"{channels} channels, and std must be above 0."
        )


def _problem(split: Split, num_classes: int) -> str | None:
    images, labels = split.images, split.labels
    if images.dtype != torch.uint8 or images.dim() != 4:
        return f"images must be uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}"
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        return f"labels must be int64 [{len(images)}], one an image, not {labels.dtype} {list(labels.shape)}"
    if not len(labels):
        return "images are none at all"
    if labels.min() < 0 or labels.max() >= num_classes:
        return f"labels must be 0 to {num_classes - 1}, not {int(labels.min())} to {int(labels.max())}"
    return None
