"""The training clock and the records made from events."""

from __future__ import annotations

from fr_bench.records.collector import Collector, TrainingClock

SECOND = 10**9


def test_the_clock_runs_from_the_first_module_to_the_slowest_and_stands_in_between() -> None:
    clock = TrainingClock(num_modules=2)
    clock.begin(10 * SECOND)
    assert clock.at(11 * SECOND) == 1
    clock.end([2], 14 * SECOND)
    assert clock.at(15 * SECOND) == 5  # module 1 still trains
    clock.end([1], 16 * SECOND)
    assert clock.at(100 * SECOND) == 6
    clock.begin(200 * SECOND)
    clock.end([1], 203 * SECOND)
    clock.end([2], 204 * SECOND)
    assert clock.at(300 * SECOND) == 10


def test_a_stretch_ends_with_its_slowest_module_whichever_is_heard_last() -> None:
    clock = TrainingClock(num_modules=2)
    clock.begin(10 * SECOND)
    clock.end([1], 16 * SECOND)
    clock.end([2], 14 * SECOND)
    assert clock.closed_s == 6


def test_the_end_of_a_stretch_may_be_heard_after_the_next_has_begun() -> None:
    """From another pipe."""
    clock = TrainingClock(num_modules=2)
    clock.begin(10 * SECOND)
    clock.end([1], 14 * SECOND)
    clock.begin(20 * SECOND)
    clock.end([2], 16 * SECOND)
    assert clock.closed_s == 6 and clock.at(21 * SECOND) == 7
    clock.end([1], 24 * SECOND)
    clock.end([2], 25 * SECOND)
    assert clock.closed_s == 11 == clock.at(100 * SECOND)


def test_the_clock_starts_with_module_1_alone() -> None:
    """Each process tells of its begin."""
    collector = Collector(num_modules=2, steps_per_epoch=4, batch_size=8, in_parallel=True)
    for stretch in (0, 100):
        for module in (2, 1):
            collector.add({"event": "stretch_begin", "modules": [module], "time_ns": (stretch + 3 - module) * SECOND})
        for module in (1, 2):
            collector.add({"event": "stretch_end", "modules": [module], "time_ns": (stretch + 7) * SECOND})
    assert collector.clock.closed_s == 10 == collector.clock.at(1000 * SECOND)


def train_event(step: int, time_s: float) -> dict:
    return {"event": "train", "step": step, "time_ns": int(time_s * SECOND), "loss": 1.0, "error": 0.5, "lr": 0.1}


def test_images_per_second_count_training_time_only() -> None:
    collector = Collector(num_modules=1, steps_per_epoch=4, batch_size=8, in_parallel=True)
    collector.add({"event": "stretch_begin", "modules": [1], "time_ns": 0})
    (first,) = collector.add(train_event(2, 1))
    assert first["images_per_s"] == 16 and first["epoch"] == 0.5 and first["train_time"] == 1
    collector.add({"event": "stretch_end", "modules": [1], "time_ns": 2 * SECOND})
    collector.add({"event": "stretch_begin", "modules": [1], "time_ns": 50 * SECOND})
    (second,) = collector.add(train_event(4, 51))
    assert second["train_time"] == 3 and second["images_per_s"] == 8


def test_images_per_second_of_a_run_that_goes_on_are_of_the_steps_since_its_last_record() -> None:
    collector = Collector(num_modules=1, steps_per_epoch=4, batch_size=8, in_parallel=True)
    kept = [{"kind": "train", "step": 2, "train_time": 5.0}, {"kind": "train", "step": 4, "train_time": 10.0}]
    collector.go_on(10.0, kept)
    collector.add({"event": "stretch_begin", "modules": [1], "time_ns": 0})
    (record,) = collector.add(train_event(6, 1))
    assert record["train_time"] == 11 and record["images_per_s"] == 16


def time_event(module: int, busy_s: float, wall_s: float) -> dict:
    rest_s = (wall_s - busy_s) / 2
    fields = {"play_s": busy_s / 3, "learn_s": busy_s * 2 / 3, "wait_s": rest_s, "send_s": rest_s}
    return {"event": "time", "step": 4, "module": module, "time_ns": module, "wall_s": wall_s, **fields}


def test_efficiency_is_the_busiest_modules_work_over_the_step_time() -> None:
    collector = Collector(num_modules=2, steps_per_epoch=4, batch_size=8, in_parallel=True)
    assert collector.add(time_event(2, busy_s=1.5, wall_s=2.0)) == []
    records = collector.add(time_event(1, busy_s=1.8, wall_s=2.0))
    assert [record["module"] for record in records] == [1, 2]
    assert all(abs(record["efficiency"] - 0.9) < 1e-9 for record in records)


def test_the_step_time_of_an_efficiency_is_that_of_the_slowest_module() -> None:
    collector = Collector(num_modules=2, steps_per_epoch=4, batch_size=8, in_parallel=True)
    collector.add(time_event(1, busy_s=1.8, wall_s=2.0))
    records = collector.add(time_event(2, busy_s=1.5, wall_s=3.0))
    assert all(abs(record["efficiency"] - 1.8 / 3.0) < 1e-9 for record in records)


def test_records_by_module_are_of_the_moment_at_which_the_last_one_tells() -> None:
    collector = Collector(num_modules=2, steps_per_epoch=4, batch_size=8, in_parallel=True)
    collector.add({"event": "stretch_begin", "modules": [1], "time_ns": 0})
    collector.add(time_event(2, busy_s=1.0, wall_s=2.0) | {"time_ns": 7 * SECOND})
    records = collector.add(time_event(1, busy_s=1.0, wall_s=2.0) | {"time_ns": 9 * SECOND})
    assert [record["train_time"] for record in records] == [9, 9]


def test_what_methods_measure_comes_in_the_order_of_the_modules_and_of_those_alone_that_do() -> None:
    collector = Collector(num_modules=3, steps_per_epoch=4, batch_size=8, in_parallel=True)
    event = {"event": "method", "step": 2, "time_ns": 0}
    assert collector.add({**event, "module": 2, "loss": 0.5}) == [] == collector.add({**event, "module": 3})
    at = {"kind": "method", "step": 2, "epoch": 0.5, "train_time": 0.0}
    records = collector.add({**event, "module": 1, "loss": 0.25})
    assert records == [{**at, "module": 1, "loss": 0.25}, {**at, "module": 2, "loss": 0.5}]


def test_modules_that_take_turns_have_no_pipeline_efficiency() -> None:
    collector = Collector(num_modules=1, steps_per_epoch=4, batch_size=8, in_parallel=False)
    (record,) = collector.add(time_event(1, busy_s=1.0, wall_s=2.0))
    assert "efficiency" not in record and record["kind"] == "time"


def test_where_waiting_counts_as_computing_there_is_no_pipeline_efficiency() -> None:
    collector = Collector(num_modules=2, steps_per_epoch=4, batch_size=8, in_parallel=True)
    for module in (1, 2):
        event = time_event(module, busy_s=1.0, wall_s=2.0)
        if module == 2:
            del event["wait_s"]
        records = collector.add(event)
    assert len(records) == 2 and not any("efficiency" in record for record in records)


def test_sigma_of_the_whole_network_sums_the_products_of_the_modules() -> None:
    collector = Collector(num_modules=2, steps_per_epoch=4, batch_size=8, in_parallel=True)
    event = {"event": "direction", "step": 4, "time_ns": 0}
    collector.add({**event, "module": 1, "dot": 1.0, "true": 4.0, "used": 1.0})
    records = collector.add({**event, "module": 2, "dot": 12.0, "true": 12.0, "used": 12.0})
    assert [(record["module"], record["sigma"]) for record in records] == [(0, 13 / 16), (1, 0.25), (2, 1.0)]
    assert records[1]["cosine"] == 0.5 and records[1]["norm_ratio"] == 0.5
