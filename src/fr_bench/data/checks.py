"""Is what the config asks for, and what a loader returned, something that training can use?"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fr_bench.data.augmentation import Augmentation
from fr_bench.data.dataset import Dataset, Split
from fr_bench.errors import ConfigError

LARGEST = torch.finfo(torch.float32).max
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


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
    if not isinstance(dataset.num_classes, Integral) or isinstance(dataset.num_classes, bool):
        raise ConfigError(f"dataset: {target}: num_classes={dataset.num_classes!r} must be an integer.")
    splits = {name: getattr(dataset, name) for name in ("train", "test", "validation")}
    for name, split in splits.items():
        if split is None and name == "validation":
            continue
        if not isinstance(split, Split):
            hint = " Every run is tested: hold some samples out." if split is None and name == "test" else ""
            kind = "None" if split is None else type(split).__name__
            raise ConfigError(f"dataset: {target}: {name} must be a fr_bench.data.Split, not {kind}.{hint}")
        problem = _problem(split, dataset.num_classes)
        if problem:
            raise ConfigError(f"dataset: {target}: the {name} {problem}.")
        for what, own, of_training in (
            ("images", split.images, dataset.train.images),
            ("labels", split.labels, dataset.train.labels),
        ):
            if own.shape[1:] != of_training.shape[1:] or own.dtype != of_training.dtype:
                both = f"{_described(of_training)} and {_described(own)}"
                raise ConfigError(f"dataset: {target}: training and {name} {what} are not alike, {both}.")
    if not dataset.has_images:
        if len(dataset.mean) or len(dataset.std):
            raise ConfigError(
                f"dataset: {target}: mean={dataset.mean} and std={dataset.std} are for images, uint8 [N, C, H, W]; "
                f"{_described(dataset.train.images)} reach the model as they are: leave both out."
            )
        return
    channels = dataset.input_shape[0]
    if len(dataset.mean) != channels or len(dataset.std) != channels or min(dataset.std) <= 0:
        raise ConfigError(
            f"dataset: {target}: mean={dataset.mean} and std={dataset.std} must have a number for each of "
            f"{channels} channels, and std must be above 0."
        )


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _problem(split: Split, num_classes: int) -> str | None:
    images, labels = split.images, split.labels
    for what, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor):
            return f"{what} must be a tensor, not {type(given).__name__}: torch.as_tensor(...) makes one"
    dim = images.dim()
    is_number = images.is_floating_point() or images.dtype in INTEGERS
    if not is_number or dim < 2 or (images.dtype == torch.uint8 and dim not in (2, 4)):
        return (
            "images must be uint8 [N, C, H, W], or uint8 tokens [N, S], other integers or floats [N, ...], not "
            f"{_described(images)}"
        )
    if labels.dtype not in INTEGERS or labels.shape[:1] != images.shape[:1]:
        return f"labels must be integers [{len(images)}, ...], one or several a sample, not {_described(labels)}"
    if not labels.numel() or not images.numel():
        return "images are none at all"
    if images.is_floating_point() and not images.abs().max() <= LARGEST:
        return "images are floats of which some are not finite in float32"
    if not images.is_floating_point() and images.min() < 0:
        smallest = int(images.min())
        return f"images are integers, which stand for tokens and must be 0 or more, not {smallest}; floats may be less"
    smallest, largest = int(labels.min()), int(labels.max())  # numbers of Python: those of uint8 end at 255
    if smallest < 0 or largest >= num_classes:
        return f"labels must be 0 to {num_classes - 1}, not {smallest} to {largest}"
    return None
