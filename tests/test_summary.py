"""summary.json, built from records."""

from __future__ import annotations

from typing import Any

import pytest

from fr_bench.records.summary import SummaryBuilder

CONFIG: dict[str, Any] = {
    "method": {"name": "fr"},
    "model": {"name": "resnet20"},
    "dataset": {"name": "digits"},
    "k": 2,
    "seed": 7,
    "batch_size": 8,
}


def builder(*records: dict[str, Any]) -> SummaryBuilder:
    summary = SummaryBuilder(CONFIG, cuts=[4], num_blocks=9)
    for record in records:
        summary.add(record)
    return summary


def record(kind: str, step: int, **fields: Any) -> dict[str, Any]:
    """Ten steps an epoch, half a second a step."""
    return {"kind": kind, "step": step, "epoch": step / 10, "train_time": step / 2, **fields}


def evaluation(step: int, test_error: float, **fields: float) -> dict[str, Any]:
    return record("eval", step, train_loss=1.0, train_error=0.5, test_loss=1.0, test_error=test_error, **fields)


def timing(step: int, module: int, wait_s: float, busy_s: float = 0.1, efficiency: float = 0.5) -> dict[str, Any]:
    seconds = {"play_s": busy_s, "learn_s": busy_s, "send_s": busy_s, "wait_s": wait_s}
    return record("time", step, module=module, efficiency=efficiency, **seconds)


def test_it_names_the_run() -> None:
    summary = builder().build("failed")
    named = {key: summary[key] for key in ("state", "method", "model", "dataset", "k", "seed", "cuts", "num_blocks")}
    assert named == {
        "state": "failed",
        "method": "fr",
        "model": "resnet20",
        "dataset": "digits",
        "k": 2,
        "seed": 7,
        "cuts": [4],
        "num_blocks": 9,
    }


def test_times_are_weighted_by_the_iterations_that_they_are_means_of() -> None:
    """Not by those that lie between: some may have been profiled."""
    summary = builder()
    summary.add(timing(10, 1, wait_s=0.0) | {"iterations": 2})
    summary.add(timing(20, 1, wait_s=0.0, busy_s=0.3, efficiency=0.9) | {"iterations": 6})
    built = summary.build("finished")
    assert built["efficiency"] == pytest.approx((2 * 0.5 + 6 * 0.9) / 8)
    assert built["busy_s"][0] == pytest.approx(2 * (2 * 0.1 + 6 * 0.3) / 8)  # play and learn


def test_what_no_record_has_told_is_none() -> None:
    summary = builder().build("failed")
    for key in ("best_test_error", "last_test_error", "best_epoch", "images_per_s", "step_time_s", "efficiency"):
        assert summary[key] is None
    assert summary["peak_memory"] == summary["waiting_share"] == summary["devices"] == [None, None]
    assert summary["steps"] == 0


def test_best_and_last_test_error_are_told_apart_and_the_first_best_counts() -> None:
    summary = builder(evaluation(10, 0.3), evaluation(20, 0.0), evaluation(30, 0.0), evaluation(40, 0.2)).build(
        "finished"
    )
    assert (summary["best_test_error"], summary["best_epoch"], summary["last_test_error"]) == (0.0, 2.0, 0.2)


def test_with_a_validation_set_the_best_epoch_is_chosen_on_it() -> None:
    summary = builder(evaluation(10, 0.30, validation_error=0.20), evaluation(20, 0.10, validation_error=0.25)).build(
        "finished"
    )
    assert (summary["best_test_error"], summary["best_epoch"], summary["best_validation_error"]) == (0.30, 1.0, 0.20)
    assert summary["last_test_error"] == 0.10


def test_speed_is_the_mean_over_the_run() -> None:
    summary = builder(record("train", 15, loss=1.0), evaluation(20, 0.5)).build("finished")
    assert (summary["steps"], summary["train_time"], summary["epochs"]) == (20, 10.0, 2.0)
    assert (summary["step_time_s"], summary["epoch_time_s"], summary["images_per_s"]) == (0.5, 5.0, 16.0)


def test_a_record_that_comes_late_takes_nothing_back() -> None:
    """Of the slowest module, while others are some steps ahead."""
    summary = builder(record("train", 12, loss=1.0), timing(10, 1, wait_s=0.1)).build("failed")
    assert (summary["steps"], summary["epochs"], summary["train_time"]) == (12, 1.2, 6.0)


def test_busy_time_is_the_mean_over_the_steps_of_the_run() -> None:
    records = [timing(10, 1, wait_s=0.1, busy_s=0.3), timing(40, 1, wait_s=0.1, busy_s=0.1), timing(40, 2, wait_s=0.2)]
    summary = builder(*records).build("finished")
    assert summary["busy_s"] == [pytest.approx(2 * (10 * 0.3 + 30 * 0.1) / 40), pytest.approx(0.2)]  # play and learn
    unseen = record("time", 50, module=1, play_s=0.1, learn_s=0.1, send_s=0.1)
    assert builder(*records, unseen).build("finished")["busy_s"] == [None, None]


def test_peak_memory_is_the_largest_of_each_module() -> None:
    records = [
        record("memory", step, module=module, device=f"cuda:{module}", peak=peak)
        for step, module, peak in [(10, 1, 500), (10, 2, 100), (20, 1, 400), (20, 2, 300)]
    ]
    summary = builder(*records).build("finished")
    assert summary["peak_memory"] == [500, 300]
    assert summary["devices"] == ["cuda:1", "cuda:2"]


def test_modules_of_replicas_are_numbered_through() -> None:
    summary = SummaryBuilder(CONFIG | {"replicas": 2}, cuts=[4], num_blocks=9)
    for module in (1, 2, 3, 4):
        summary.add(record("memory", 10, module=module, device="cpu", peak=100 * module))
    assert summary.build("finished")["peak_memory"] == [100, 200, 300, 400]


def test_the_memory_account_is_the_last_of_each_module() -> None:
    records = [
        record("memory", step, module=module, device="cpu", peak=1, activations=step * module, predicted=7, epoch_s=3)
        for step in (10, 20)
        for module in (1, 2)
    ]
    expected = [{"activations": 20, "predicted": 7}, {"activations": 40, "predicted": 7}]
    assert builder(*records).build("finished")["memory"] == expected


def test_the_waiting_share_weighs_every_iteration_the_same() -> None:
    # Module 1: 10 iterations waiting 0.1 of 0.4 s, then 30 waiting 0.7 of 1.0 s: 22 of 34 s.
    records = [timing(10, 1, 0.1), timing(10, 2, 0.0), timing(40, 1, 0.7), timing(40, 2, 0.0, efficiency=0.8)]
    summary = builder(*records).build("finished")
    assert abs(summary["waiting_share"][0] - 22 / 34) < 1e-12
    assert summary["waiting_share"][1] == 0.0
    assert abs(summary["efficiency"] - (10 * 0.5 + 30 * (0.5 + 0.8) / 2) / 40) < 1e-12


def test_the_speed_of_a_run_that_took_over_is_that_of_its_own_steps() -> None:
    origin = {"step": 20, "epoch": 2.0, "train_time": 100.0}
    summary = SummaryBuilder(CONFIG, cuts=[4], num_blocks=9, origin=origin)
    for each in (
        record("train", 20, loss=1.0) | {"train_time": 100.0},
        timing(20, 1, wait_s=9.0, busy_s=9.0, efficiency=0.1) | {"train_time": 100.0, "iterations": 10},
        timing(30, 1, wait_s=0.1) | {"train_time": 105.0},
        evaluation(30, 0.5) | {"train_time": 105.0},
    ):
        summary.add(each)
    built = summary.build("finished")
    assert (built["steps"], built["train_time"]) == (30, 105.0)
    assert (built["step_time_s"], built["epoch_time_s"], built["images_per_s"]) == (0.5, 5.0, 16.0)
    assert built["efficiency"] == 0.5 and abs(built["waiting_share"][0] - 0.25) < 1e-12


@pytest.mark.parametrize(
    ("origin", "best"),
    [({"step": 20}, 0.4), ({"step": 20, "in_one_piece": False}, 0.4), ({"step": 20, "in_one_piece": True}, 0.1)],
)
def test_the_errors_of_a_run_that_took_over_are_of_weights_that_it_trained(origin: dict[str, Any], best: float) -> None:
    """Or would have trained itself."""
    summary = SummaryBuilder(CONFIG, cuts=[4], num_blocks=9, origin=origin)
    for step, error in ((10, 0.1), (20, 0.2)):
        summary.add(evaluation(step, error))
    assert summary.build("running")["last_test_error"] == (0.2 if best == 0.1 else None)
    for step, error in ((30, 0.4), (40, 0.5)):
        summary.add(evaluation(step, error))
    built = summary.build("finished")
    assert (built["best_test_error"], built["last_test_error"]) == (best, 0.5)


def test_profiled_steps_are_neither_timed_nor_counted() -> None:
    """Of 20 steps in 8 seconds four were profiled; two of the run before do not matter."""
    profiles = [record("profile", step, module=1, iterations=iterations) for step, iterations in ((6, 2), (16, 4))]
    records = [each | {"train_time": each["step"] / 2.5} for each in (*profiles, evaluation(20, 0.5))]
    built = builder(*records[1:]).build("finished")
    assert (built["step_time_s"], built["epoch_time_s"], built["images_per_s"]) == (0.5, 5.0, 16.0)
    summary = SummaryBuilder(CONFIG, cuts=[4], num_blocks=9, origin={"step": 10, "epoch": 1.0, "train_time": 5.0})
    for each in records:
        summary.add(each)
    built = summary.build("finished")
    assert (built["step_time_s"], built["epoch_time_s"], built["images_per_s"]) == (0.5, 5.0, 16.0)


def test_where_waiting_counts_as_computing_neither_is_told() -> None:
    timings = [timing(10, module, wait_s=0.0) for module in (1, 2)]
    for each in timings:
        del each["wait_s"]
    summary = builder(*timings, timing(20, 1, wait_s=0.1), timing(20, 2, wait_s=0.1)).build("finished")
    assert summary["busy_s"] == summary["waiting_share"] == [None, None]
