"""Small data sets for tests that are no images, reached by `_target_` as a user's own would be."""

from __future__ import annotations

import torch
from torch import Tensor

from fr_bench.data import Dataset, Split


def draw(*shape: int, high: int) -> Tensor:
    """Integers that are the same every time, whatever was drawn before."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(5))


def tokens(
    length: int = 6,
    num_tokens: int = 7,
    num_train: int = 44,
    num_test: int = 22,
    dtype: str = "int64",
    num_classes: int | None = None,
) -> Dataset:
    """Steps of one size through the tokens, from a random one on; the label at each position is the next token, modulo
    ``num_classes`` if there are less."""
    starts, step = draw(num_train + num_test, 1, high=num_tokens), 3
    sequence = (starts + step * torch.arange(length + 1)) % num_tokens
    num_classes = num_classes or num_tokens
    inputs, labels = sequence[:, :-1].to(getattr(torch, dtype)), sequence[:, 1:] % num_classes
    splits = [Split(inputs[part], labels[part]) for part in (slice(num_train), slice(num_train, None))]
    return Dataset(splits[0], splits[1], None, num_classes)


def floats(
    num_features: int = 5, num_train: int = 44, num_test: int = 22, dtype: str = "float64", labelled: str = "int64"
) -> Dataset:
    """Points in two clouds."""
    labels = draw(num_train + num_test, high=2).to(getattr(torch, labelled))
    noise = torch.randn(len(labels), num_features, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    points = (noise + 2 * labels.view(-1, 1)).to(getattr(torch, dtype))
    splits = [Split(points[part], labels[part]) for part in (slice(num_train), slice(num_train, None))]
    return Dataset(splits[0], splits[1], None, 2)


def volumes(num_train: int = 44, num_test: int = 22) -> Dataset:
    """Noise in three dimensions, one channel, brighter in one of two classes."""
    labels = draw(num_train + num_test, high=2)
    noise = torch.randn(len(labels), 1, 4, 4, 4, generator=torch.Generator().manual_seed(6))
    inputs = noise + labels.view(-1, 1, 1, 1, 1)
    splits = [Split(inputs[part], labels[part]) for part in (slice(num_train), slice(num_train, None))]
    return Dataset(splits[0], splits[1], None, 2)


def maps(size: int = 4, num_train: int = 44, num_test: int = 22, num_labels: int | None = None) -> Dataset:
    """Images, with a label at each pixel: whether it is bright. Or with those of the first pixels alone."""
    images = draw(num_train + num_test, 1, size, size, high=256).to(torch.uint8)
    labels = (images[:, 0] > 127).long()
    if num_labels is not None:
        labels = labels.flatten(1)[:, :num_labels]
    splits = [Split(images[part], labels[part]) for part in (slice(num_train), slice(num_train, None))]
    return Dataset(splits[0], splits[1], None, 2, mean=(0.5,), std=(0.3,))


def wrong(what: str) -> Dataset:
    """Tokens with a mistake."""
    good = tokens()
    inputs, labels = good.train.images, good.train.labels
    values = inputs.double()
    split = {
        "array": Split(inputs.numpy(), labels),  # type: ignore[arg-type]
        "labels of numpy": Split(inputs, labels.numpy()),  # type: ignore[arg-type]
        "nan": Split(torch.where(inputs == 3, torch.nan, values), labels),
        "huge": Split(torch.where(inputs == 3, 1e200, values), labels),
        "negative": Split(inputs - 1, labels),
        "bool": Split(inputs > 2, labels),
        "uint16": Split(inputs.to(torch.uint16), labels),
        "bytes": Split(inputs.to(torch.uint8).unsqueeze(1), labels),  # images without a channel, more likely
        "too few labels": Split(inputs, labels[:-1]),
        "float labels": Split(inputs, labels.float()),
    }.get(what, good.train)
    test = Split(good.test.images, good.test.labels[:, :1]) if what == "other labels" else good.test
    return Dataset(split, test, None, good.num_classes, mean=(0.5,) if what == "mean" else ())
