"""The limits of speed-up: the published-style table, and the formula against a count by hand."""

from __future__ import annotations

import pytest

from fr_bench.planning.limits import balanced_limit, balanced_shares, speedup_limit


@pytest.mark.parametrize(
    ("backward", "by_k"),
    [
        (2.0, {1: 1.0, 2: 1.75, 3: 2.50, 4: 3.25, 8: 6.25}),
        (1.5, {1: 1.0, 2: 1.71, 3: 2.43, 4: 3.14, 8: 6.00}),
    ],
)
def test_features_replay_with_balanced_modules(backward, by_k):
    assert {k: round(balanced_limit("fr", k, backward), 2) for k in by_k} == by_k


def test_features_replay_with_equal_cuts():
    limits = {k: speedup_limit([1] * k, 2.0, replays=True) for k in (2, 3, 4, 8)}
    assert limits == pytest.approx({2: 1.50, 3: 2.25, 4: 3.00, 8: 6.00})


@pytest.mark.parametrize("method", ["ddg", "dni", "cdni"])
def test_methods_that_keep_their_graphs_can_reach_k(method):
    assert [balanced_limit(method, k) for k in (1, 2, 4, 8)] == pytest.approx([1, 2, 4, 8])


def test_module_k_gets_four_thirds_of_the_others_work():
    *below, top = balanced_shares(4, 2.0, replays=True)
    assert [top / share for share in below] == pytest.approx([4 / 3] * 3)


def test_the_busiest_module_sets_the_pace():
    # 10 layers, 5 + 3 + 2, b = 2: the modules pay 5 * 4, 3 * 4, 2 * 3; locked backpropagation 10 * 3.
    assert speedup_limit([5, 3, 2], 2.0, replays=True) == pytest.approx(30 / 20)
    assert speedup_limit([5, 3, 2], 2.0, replays=False) == pytest.approx(30 / 15)


def test_nothing_is_claimed_for_a_method_of_unknown_cost():
    assert balanced_limit("mine", 4) is None and balanced_limit("bp", 4) is None
