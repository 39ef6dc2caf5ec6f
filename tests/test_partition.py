"""Cuts: where `equal` puts them, and which explicit ones are refused."""

from __future__ import annotations

import math

import pytest

from fr_bench.errors import ConfigError
from fr_bench.partition import equal_cuts, make_cuts, module_slices


@pytest.mark.parametrize("num_blocks", [4, 9, 56])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_equal_puts_cut_i_after_block_floor_of_i_n_over_k_and_a_half(num_blocks: int, k: int) -> None:
    assert equal_cuts(num_blocks, k) == [math.floor(i * num_blocks / k + 0.5) for i in range(1, k)]


def test_slices_cover_every_block_once() -> None:
    blocks = list(range(10))
    assert [blocks[part] for part in module_slices([2, 7], 10)] == [[0, 1], [2, 3, 4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize("cuts", [[3, 3, 5], [5, 3, 7], [0, 2, 4], [2, 4, 10]])
def test_empty_or_falling_cuts_are_refused(cuts: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"partition=.*must rise strictly and lie within 1\.\.9"):
        make_cuts(cuts, 10, 4)


def test_the_number_of_cuts_must_fit_k() -> None:
    with pytest.raises(ConfigError, match="k=4 modules need 3 cuts, not 2"):
        make_cuts([2, 4], 10, 4)


def test_more_modules_than_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="k=7: the model has only 6 blocks"):
        make_cuts("equal", 6, 7)
