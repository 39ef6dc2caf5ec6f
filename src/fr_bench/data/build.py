"""From the config's ``dataset`` node to images and labels: fetched, loaded, checked, split."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from fr_bench.components import bind, refusing
from fr_bench.data.augmentation import Augmentation
from fr_bench.data.checks import check_common, check_dataset
from fr_bench.data.dataset import Dataset
from fr_bench.data.outline import Outline, num_kept
from fr_bench.errors import ConfigError
from fr_bench.seeds import derive_seed, streams_of

# The keys of a data set that are not arguments of its loader.
COMMON_KEYS = ("limit", "validation", "augmentation")


def prepare_dataset(config: dict[str, Any]) -> None:
    """Makes sure that the files of the data set are there. For the parent, before any process exists.

    Args:
        config: the ``dataset`` node, resolved and plain.

    Raises:
        ConfigError: a wrong value, or files that are missing and cannot be had; says which to put where.
    """
    check_common(config)
    load = _bound_loader(config)
    prepare = getattr(load.func, "prepare", None)
    if prepare is None:
        return
    try:
        with refusing("dataset", config):
            prepare(*load.args, **load.keywords)
    except OSError as error:  # its text names the file
        raise ConfigError(f"dataset: {config['_target_']}: {error}.") from error


def build_dataset(config: dict[str, Any]) -> Dataset:
    """Loads the data set, holds ``validation`` images out of training and keeps ``limit`` of the others. A validation
    set that the data set brings stays, unless others are held out.

    Which images these are does not depend on the run's seed: runs with different seeds are compared on the
    same data. Nothing is downloaded.

    Args:
        config: the ``dataset`` node, resolved and plain.

    Raises:
        ConfigError: a wrong value; files that are missing, unreadable or damaged; a loader that returned
            something else than a Dataset.
    """
    check_common(config)
    try:
        # Every process loads for itself, and what a loader shuffles is to be the same in all of them.
        with streams_of(derive_seed("data set")), refusing("dataset", config):
            dataset = _bound_loader(config)()
    except OSError as error:
        raise ConfigError(f"dataset: {config['_target_']}: {error}.") from error
    check_dataset(dataset, config["_target_"])
    if Augmentation.from_config(config.get("augmentation")).changes_images:
        _check_augmented(dataset, config)
    return _hold_out(dataset, config.get("limit"), config.get("validation", 0))


def _check_augmented(dataset: Dataset, config: dict[str, Any]) -> None:
    """Raises ConfigError where images are none, or have labels that would have to move with their pixels."""
    sizes = dataset.sample
    if not sizes.is_image:
        problem = f"is for images, uint8 [N, C, H, W], and the inputs of {config['_target_']} are none"
    elif sizes.label_shape[-2:] == sizes.input_shape[-2:]:
        problem = "moves pixels, and the labels that belong to them stay where they are"
    else:
        return
    raise ConfigError(f"dataset.augmentation={config['augmentation']}: {problem}; use null.")


def outline_dataset(config: dict[str, Any]) -> Outline | None:
    """What is left, with the keys that all data sets have, of the sizes that the loader declares as its attribute
    ``outline``; None if it has none. Nothing is read.

    Args:
        config: the ``dataset`` node, resolved and plain.

    Raises:
        ConfigError: a wrong value of one of these keys; more images held out, or asked for, than there are.
    """
    whole: Outline | None = getattr(_bound_loader(config).func, "outline", None)
    if whole is None:
        return None
    check_common(config)
    num_held_out = config.get("validation", 0)
    num_train = num_kept(whole.num_train, config.get("limit"), num_held_out)
    return dataclasses.replace(whole, num_train=num_train, num_validation=num_held_out or whole.num_validation)


def _bound_loader(config: dict[str, Any]) -> Any:
    """The loader as a ``functools.partial`` with its own keys as arguments."""
    return bind({key: value for key, value in config.items() if key not in COMMON_KEYS})


def _hold_out(dataset: Dataset, limit: int | None, num_validation: int) -> Dataset:
    num_train = len(dataset.train.labels)
    num_kept(num_train, limit, num_validation)
    if limit is None and num_validation == 0:
        return dataset
    order = _fixed_order(num_train)
    # The validation images come first, so that a different limit leaves them as they are.
    held_out, kept = order[:num_validation], order[num_validation:][:limit]
    return dataclasses.replace(
        dataset,
        train=dataset.train.select(kept.sort().values),
        validation=dataset.train.select(held_out.sort().values) if num_validation else dataset.validation,
    )


def _fixed_order(num_images: int) -> Tensor:
    """A permutation, int64 [num_images], that is the same on every machine and with every version of torch."""
    keys = [derive_seed("data set subset", index) for index in range(num_images)]
    return torch.tensor(sorted(range(num_images), key=keys.__getitem__))
