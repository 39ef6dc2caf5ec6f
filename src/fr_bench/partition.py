"""Blocks to K contiguous modules. Cuts are block indices: cut c ends a module after block c (counted from 1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from fr_bench.errors import ConfigError


def equal_cuts(num_blocks: int, k: int) -> list[int]:
    """Cut i goes after block floor(i n / K + 1/2), for i = 1..K-1; computed in integers."""
    return [(2 * i * num_blocks + k) // (2 * k) for i in range(1, k)]


def make_cuts(partition: Any, num_blocks: int, k: int) -> list[int]:
    """The K-1 cuts for the config's ``partition``.

    Raises:
        ConfigError: more modules than blocks, or explicit cuts that leave a module empty.
    """
    if k > num_blocks:
        raise ConfigError(f"k={k}: the model has only {num_blocks} blocks; k must be 1 to {num_blocks}")
    if partition == "equal":
        return equal_cuts(num_blocks, k)
    cuts = [int(cut) for cut in partition]
    if len(cuts) != k - 1:
        raise ConfigError(f"partition={cuts}: k={k} modules need {k - 1} cuts, not {len(cuts)}")
    if any(low >= high for low, high in pairwise([0, *cuts, num_blocks])):
        raise ConfigError(
            f"partition={cuts}: cuts must rise strictly and lie within 1..{num_blocks - 1}, "
            f"so that no module is empty (the model has {num_blocks} blocks)"
        )
    return cuts


def module_slices(cuts: Sequence[int], num_blocks: int) -> list[slice]:
    """The block range of each module."""
    return [slice(low, high) for low, high in pairwise([0, *cuts, num_blocks])]
