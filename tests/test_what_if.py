"""More devices than there are: speed-ups against closed forms, cuts under each method's costs, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from fr_bench.costs import BlockCost
from fr_bench.errors import ConfigError
from fr_bench.limits import balanced_limit
from fr_bench.simulation import Link
from fr_bench.simulation.settings import make_simulate_settings
from fr_bench.simulation.what_if import MeasuredNetwork, WhatIf, what_if


def network(num_blocks: int, **changes: Any) -> MeasuredNetwork:
    """Equal blocks whose backward takes two forwards, a second each."""
    settings: dict[str, Any] = {
        "blocks": [BlockCost(1.0, 1.0, 2.0)] * num_blocks,
        "output_bytes": [1.0] * num_blocks,
        "trains": [True] * num_blocks,
        "parameter_bytes": 0.0,
        "batch_size": 64,
    }
    return MeasuredNetwork(**(settings | changes))


def one(method: str, k: int, num_blocks: int, link: Link = Link(), **changes: Any) -> WhatIf:  # noqa: B008
    straggler = changes.pop("straggler", ())
    [row] = what_if(network(num_blocks, **changes), [k], [method], link, straggler)
    return row


# --- speed


@pytest.mark.parametrize(("k", "num_blocks", "limit"), [(2, 7, 1.75), (3, 10, 2.5), (4, 13, 3.25), (8, 25, 6.25)])
def test_fr_reaches_its_limit_with_cuts_balanced_under_its_own_costs(k: int, num_blocks: int, limit: float) -> None:
    row = one("fr", k, num_blocks)
    assert row.cuts == [3 * i for i in range(1, k)]  # module K, which does not replay, has four blocks
    assert row.speedup_vs_locked == row.speedup_vs_single == pytest.approx(limit)
    assert limit == pytest.approx(balanced_limit("fr", k) or 0)
    assert row.efficiency == pytest.approx(1) and row.waiting_share == pytest.approx([0.0] * k)
    assert row.images_per_s == pytest.approx(64 / (row.step_time_s or 0))


@pytest.mark.parametrize("k", [2, 4, 8])
def test_ddg_is_k_times_as_fast_and_locked_backpropagation_not_at_all(k: int) -> None:
    assert one("ddg", k, 16).speedup_vs_single == pytest.approx(k)
    locked = one("bp", k, 16)
    assert locked.speedup_vs_single == pytest.approx(1) and locked.speedup_vs_locked == 1
    assert locked.waiting_share == pytest.approx([1 - 1 / k] * k)


def test_fr_hides_messages_that_locked_backpropagation_waits_for() -> None:
    """Messages of 0.4 of a module's forward, as in the table of limits: no loss against the sum of all work."""
    link = Link(latency_s=0.0, bandwidth_bytes_per_s=1 / 1.2)  # 1.2 s a message, modules of three blocks
    row = one("fr", 4, 13, link)
    assert row.speedup_vs_single == pytest.approx(3.25)
    assert row.speedup_vs_locked is not None and row.speedup_vs_locked > 3.25


@pytest.mark.parametrize("method", ["gpipe", "1f1b"])
def test_a_pipeline_has_its_bubble_and_takes_the_best_number_of_micro_batches(method: str) -> None:
    row = one(method, 4, 16)
    assert row.num_microbatches == 32  # the most that were tried: eight a device
    assert row.speedup_vs_single == pytest.approx(4 * 32 / (32 + 3))
    assert one(method, 4, 16, batch_size=8).num_microbatches == 8


def test_data_parallelism_needs_no_cuts_and_waits_for_its_all_reduce() -> None:
    row = one("ddp", 32, 4)
    assert row.cuts == [] and row.speedup_vs_single == pytest.approx(32)
    assert row.speedup_vs_locked is None  # four blocks cannot be cut into 32 modules
    slow = one("ddp", 32, 4, Link(latency_s=1.0))
    assert slow.step_time_s is not None and slow.step_time_s >= 62


def test_a_straggler_sets_the_pace_and_those_not_named_are_not_slow() -> None:
    row = one("ddg", 4, 16, straggler=(1.0, 3.0))
    assert row.speedup_vs_single == pytest.approx(4 / 3)
    assert row.waiting_share == pytest.approx([2 / 3, 0, 2 / 3, 2 / 3])


def test_synthesizers_cost_what_they_cost_and_are_not_made_up() -> None:
    assert one("dni", 2, 8).reason == "what its synthesizer costs was not measured"
    free, costly = (one("dni", 2, 8, companions={"dni": [seconds] * 8}) for seconds in (0.0, 4.0))
    assert (free.cuts, free.speedup_vs_single) == ([4], pytest.approx(2))
    assert costly.step_time_s == pytest.approx(min(max(3 * n + 4.0, 3 * (8 - n)) for n in range(1, 8)))


# --- what cannot be


@pytest.mark.parametrize(
    ("method", "k", "changes", "reason"),
    [
        ("fr", 9, {}, "needs 9 stages, and the model has 8 blocks"),
        ("interleaved", 8, {}, "needs 16 stages"),
        ("1f1b", 3, {}, "needs 3, 6, 12, 24 micro-batches, which do not divide a batch of 64"),
        ("ddp", 3, {}, "needs equal shares, and 3 does not divide a batch of 64"),
        ("ddg", 3, {"trains": [True, True] + [False] * 6}, "too few of the model's 8 blocks have parameters"),
    ],
)
def test_what_cannot_be_has_a_row_with_the_reason(method: str, k: int, changes: dict[str, Any], reason: str) -> None:
    row = one(method, k, 8, **changes)
    assert row.reason is not None and reason in row.reason
    assert row.step_time_s is None and row.cuts is None and row.predicted_memory is None


def test_an_unknown_method_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="no schedule is called 'frr'"):
        one("frr", 2, 8)


# --- memory


def test_memory_is_asked_for_with_the_cuts_of_the_method_and_not_for_peers() -> None:
    asked: list[tuple[str, list[int]]] = []

    def memory_of(method: str, cuts: Any) -> list[int]:
        asked.append((method, list(cuts)))
        return [10 * (len(cuts) + 1)]

    rows = what_if(network(7), [2], ["fr", "gpipe", "ddp"], Link(), memory_of=memory_of)
    assert asked == [("fr", [3])]
    assert [row.predicted_memory for row in rows] == [[20], None, None]


# --- settings


def test_settings_become_a_link() -> None:
    link = make_simulate_settings({"k": [8, 16], "bandwidth_gb_s": 12.5, "latency_us": 20}).link()
    assert (link.latency_s, link.bandwidth_bytes_per_s) == pytest.approx((20e-6, 12.5e9))
    assert make_simulate_settings({}).k is None and make_simulate_settings({}).link() == Link()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"k": [0]}, r"simulate\.k=\[0\]"),
        ({"k": 8}, r"simulate\.k=8"),
        ({"k": [2], "bandwidth_gb_s": 0}, r"simulate\.bandwidth_gb_s=0"),
        ({"k": [2], "latency_us": -1}, r"simulate\.latency_us=-1"),
        ({"k": [2], "straggler": [0]}, r"simulate\.straggler=\[0\]"),
        ({"k": [8, 2], "straggler": [1, 1, 2]}, r"simulate\.straggler=\[1, 1, 2\]: has 3 factors"),
        ({"k": [2], "methods": ["frr"]}, r"simulate\.methods=frr: .*Did you mean 'fr'"),
        ({"latency_us": 5}, r"simulate\.latency_us=5: has no effect without simulate\.k"),
        ({"bandwith_gb_s": 5}, r"simulate\.bandwith_gb_s: unknown.*bandwidth_gb_s"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_simulate_settings(values)
