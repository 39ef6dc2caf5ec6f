"""Cuts: where `equal` puts them, which explicit ones are refused, and that balanced ones are the best there are."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from harness import tiny_config

from fr_bench.errors import ConfigError
from fr_bench.modules.network import Network
from fr_bench.planning import costs
from fr_bench.planning.partition import balanced_cuts, equal_cuts, make_cuts, module_slices, module_table
from fr_bench.planning.plan import make_plan


def modules_of(cuts, num_blocks):
    return [(part.start, part.stop, k) for k, part in enumerate(module_slices(cuts, num_blocks), start=1)]


def random_sums(generator, num_blocks, k):
    """A value for every (first, last, k): sums of values drawn for each block and position."""
    by_position = [[generator.uniform(0.1, 3.0) for _ in range(num_blocks)] for _ in range(k)]
    return lambda first, last, module: sum(by_position[module - 1][first:last])


def all_cuts(num_blocks, k):
    return map(list, itertools.combinations(range(1, num_blocks), k - 1))


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


@pytest.mark.parametrize("partition", ["equal", "auto", "measured"])
def test_more_modules_than_blocks_are_refused(partition: str) -> None:
    with pytest.raises(ConfigError, match="k=7: the model has only 6 blocks"):
        make_cuts(partition, 6, 7)


def test_one_module_needs_neither_cuts_nor_costs() -> None:
    assert make_cuts("auto", 6, 1) == make_cuts("measured", 6, 1) == []


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("seed", range(6))
def test_balanced_cuts_have_the_fastest_slowest_module_and_then_the_smallest_squares(k: int, seed: int) -> None:
    cost = random_sums(random.Random(seed), 9, k)
    costs = {tuple(cuts): [cost(*module) for module in modules_of(cuts, 9)] for cuts in all_cuts(9, k)}
    slowest = min(max(each) for each in costs.values())
    squares = min(sum(c * c for c in each) for each in costs.values() if max(each) <= slowest * (1 + 1e-9))
    found = costs[tuple(balanced_cuts(cost, 9, k))]
    assert max(found) == pytest.approx(slowest, rel=1e-12)
    assert sum(c * c for c in found) == pytest.approx(squares, rel=1e-9)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_under_a_memory_limit_they_are_the_best_of_those_that_keep_it(k: int, seed: int) -> None:
    generator = random.Random(seed)
    cost, memory = random_sums(generator, 8, k), random_sums(generator, 8, k)
    costs, needed = {}, {}
    for cuts in all_cuts(8, k):
        costs[tuple(cuts)] = max(cost(*module) for module in modules_of(cuts, 8))
        needed[tuple(cuts)] = max(memory(*module) for module in modules_of(cuts, 8))
    for limit in sorted(needed.values())[:: max(1, len(needed) // 7)]:
        found = tuple(balanced_cuts(cost, 8, k, memory, limit))
        assert needed[found] <= limit
        assert costs[found] == pytest.approx(min(costs[cuts] for cuts in costs if needed[cuts] <= limit))


def test_a_limit_that_cannot_be_kept_is_refused_with_the_smallest_that_can() -> None:
    def gigabytes(first: int, last: int, k: int) -> float:
        return (last - first) * 2**30

    cost = random_sums(random.Random(0), 8, 3)
    with pytest.raises(ConfigError, match=r"memory_limit_gb=2\.5: no cuts into k=3 .* the smallest .* is 3 "):
        balanced_cuts(cost, 8, 3, gigabytes, 2.5 * 2**30)
    slices = module_slices(balanced_cuts(cost, 8, 3, gigabytes, 3 * 2**30), 8)
    assert max(part.stop - part.start for part in slices) == 3


def test_ties_go_to_the_smallest_cuts() -> None:
    assert balanced_cuts(lambda first, last, k: last - first, 5, 2) == [2]
    assert balanced_cuts(lambda first, last, k: last - first, 5, 3) == [1, 3]


def test_of_cuts_with_the_same_slowest_module_the_most_even_ones_are_taken() -> None:
    """2, 2 and 3 blocks, not 1, 3 and 3, whose first cut is smaller."""
    assert balanced_cuts(lambda first, last, k: last - first, 7, 3) == [2, 4]


def test_a_module_that_may_not_be_is_never_made() -> None:
    """Block 1 has nothing to train: a module of it alone would cost nothing, and be refused."""
    cost = lambda first, last, k: math.inf if last == 1 else float(last - first)  # noqa: E731
    assert balanced_cuts(cost, 3, 2) == [2]
    with pytest.raises(ConfigError, match="k=3: too few of the model's 3 blocks have parameters"):
        balanced_cuts(cost, 3, 3)


@pytest.mark.parametrize("of", ["torch", "python", "numpy"])
def test_cuts_do_not_depend_on_what_blocks_draw(of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the memory that is predicted; each block has half of the batches skip it."""
    model = {"_target_": "tiny_models.layer_drop", "name": "drop", "of": of}
    plans = []
    for seed in range(8):  # as another process, which begins with other draws and has counted nothing yet
        monkeypatch.setattr(costs, "_COUNTED", {})
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        plans.append(make_plan(tiny_config("fr", 3, model=model, partition="auto")))
    assert all((plan.cuts, plan.predicted_memory) == (plans[0].cuts, plans[0].predicted_memory) for plan in plans)


def test_the_table_has_a_line_for_each_module() -> None:
    lines = module_table(module_slices([1, 3], 4), ["stem", "a", "b", "head"], [10, 2000, 5], [0.5, 1.0, 0.25])
    assert [line.split() for line in lines[1:]] == [
        ["1", "stem", "10", "50", "%"],
        ["2", "a", "to", "b", "(2)", "2,000", "100", "%"],
        ["3", "head", "5", "25", "%"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_a_weight_of_two_modules_is_refused() -> None:
    """Each would train one of its own, from the same beginning."""
    model = {"_target_": "tiny_models.shared", "name": "shared"}
    with pytest.raises(ConfigError, match=r"blocks 'block1' and 'again' share a parameter, and are in modules 1 and 2"):
        make_plan(tiny_config("bp", 2, model=model, partition=[2]))
    assert make_plan(tiny_config("bp", 2, model=model, partition=[3])).cuts == [3]


def test_a_block_that_is_there_twice_runs_twice() -> None:
    torch.manual_seed(0)
    block, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    network = Network([("once", block), ("again", block)], seed=0)
    assert torch.equal(network(x, 0), block(block(x))) and torch.equal(network.eval()(x, 0), block(block(x)))
