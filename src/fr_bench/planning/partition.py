"""Blocks to K contiguous modules. Cuts are block indices: cut c ends a module after block c (counted from 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from fr_bench.errors import ConfigError

BALANCED = ("auto", "measured")  # by costs; the other partitions need none
OF_MODULE = Callable[[int, int, int], float]  # (first, last, k): of module k if it is made of blocks[first:last]


def equal_cuts(num_blocks: int, k: int) -> list[int]:
    """Cut i goes after block floor(i n / K + 1/2), for i = 1..K-1; computed in integers."""
    return [(2 * i * num_blocks + k) // (2 * k) for i in range(1, k)]


def check_num_modules(k: int, num_blocks: int) -> None:
    """Raises ConfigError where there are more modules than blocks."""
    if k > num_blocks:
        blocks = f"{num_blocks} block{'s' * (num_blocks > 1)}"
        raise ConfigError(f"k={k}: the model has only {blocks}; k must be 1{f' to {num_blocks}' * (num_blocks > 1)}")


def make_cuts(
    partition: Any,
    num_blocks: int,
    k: int,
    cost: Callable[[], OF_MODULE] | None = None,
    device_bytes: OF_MODULE | None = None,
    limit_bytes: float = math.inf,
) -> list[int]:
    """The K-1 cuts for the config's ``partition``.

    Args:
        partition: ``equal``, explicit cuts, or one of BALANCED.
        num_blocks, k: what is cut into how many modules.
        cost: gives the cost of a module; called for a balanced partition alone.
        device_bytes, limit_bytes: see :func:`balanced_cuts`.

    Raises:
        ConfigError: more modules than blocks, explicit cuts that leave a module empty, or a limit that cannot be kept.
    """
    check_num_modules(k, num_blocks)
    if k == 1 and partition in BALANCED:
        return []
    if partition in BALANCED:
        assert cost is not None, "a balanced partition needs costs"
        return balanced_cuts(cost(), num_blocks, k, device_bytes, limit_bytes)
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


def balanced_cuts(
    cost: OF_MODULE,
    num_blocks: int,
    k: int,
    device_bytes: OF_MODULE | None = None,
    limit_bytes: float = math.inf,
) -> list[int]:
    """The cuts whose slowest module is as fast as can be; exact, by dynamic programming in O(K n^2).

    Of several such, those with the smallest sum of squared costs, then the smallest cuts: the slowest module alone
    would say nothing about the others.

    Args:
        cost: of a module; infinite where it may not be.
        num_blocks, k: what is cut into how many modules.
        device_bytes: memory that its device needs if module k is made so.
        limit_bytes: the most that a device may need.

    Raises:
        ConfigError: no cuts keep the limit, or there are too few blocks with parameters.
    """

    @cache  # asked for twice, and predicting memory is not free
    def allowed_cost(first: int, last: int, module: int) -> float:
        own = cost(first, last, module)
        if device_bytes is not None and own < math.inf and device_bytes(first, last, module) > limit_bytes:
            return math.inf
        return own

    found = _search(allowed_cost, num_blocks, k, max, math.inf)
    if found is None:
        raise _impossible(cost, num_blocks, k, device_bytes, limit_bytes)
    slowest = found[0] * (1 + 1e-9)  # sums in another order may differ in the last bits
    found = _search(allowed_cost, num_blocks, k, lambda below, own: below + own * own, slowest)
    assert found is not None, "the cuts of the first search are allowed in the second"
    return found[1][:-1]


def _search(
    cost: OF_MODULE, num_blocks: int, k: int, join: Callable[[float, float], float], bound: float
) -> tuple[float, list[int]] | None:
    """The smallest value of ``join`` over modules none of which costs more than ``bound``, and their last blocks."""
    best: list[tuple[float, list[int]] | None] = [(0.0, []), *[None] * num_blocks]  # by the number of blocks used
    for module in range(1, k + 1):
        row: list[tuple[float, list[int]] | None] = [None] * (num_blocks + 1)
        for last in range(module, num_blocks - (k - module) + 1):
            for first in range(module - 1, last):
                below, own = best[first], cost(first, last, module)
                if below is None or own > bound or own == math.inf:
                    continue
                value, so_far = join(below[0], own), row[last]
                if so_far is None or value < so_far[0]:
                    row[last] = (value, [*below[1], last])
        best = row
    return best[num_blocks]


def _impossible(
    cost: OF_MODULE, num_blocks: int, k: int, device_bytes: OF_MODULE | None, limit_bytes: float
) -> ConfigError:
    def needed(first: int, last: int, module: int) -> float:
        assert device_bytes is not None
        return math.inf if cost(first, last, module) == math.inf else device_bytes(first, last, module)

    smallest = None if device_bytes is None else _search(needed, num_blocks, k, max, math.inf)
    if smallest is None:
        return ConfigError(f"k={k}: too few of the model's {num_blocks} blocks have parameters to train; choose less")
    smallest_gb = math.ceil(smallest[0] / 2**30 * 1000) / 1000
    return ConfigError(
        f"memory_limit_gb={limit_bytes / 2**30:g}: no cuts into k={k} modules keep it; the smallest limit that some "
        f"do is {smallest_gb:g} (a smaller batch_size or another k needs less)"
    )


def module_slices(cuts: Sequence[int], num_blocks: int) -> list[slice]:
    """The block range of each module."""
    return [slice(low, high) for low, high in pairwise([0, *cuts, num_blocks])]


def module_table(
    ranges: Sequence[slice], block_names: Sequence[str], num_parameters: Sequence[int], shares: Sequence[float]
) -> list[str]:
    """Lines of text: by module its blocks, parameters and expected busy time as a share of the slowest module's."""
    rows = [("module", "blocks", "parameters", "expected busy time")]
    parts = [block_names[part] for part in ranges]
    for k, (names, size, share) in enumerate(zip(parts, num_parameters, shares, strict=True), start=1):
        span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)})"
        rows.append((str(k), span, f"{size:,}", f"{100 * share:.0f} %"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        f"{row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}" for row in rows
    ]
