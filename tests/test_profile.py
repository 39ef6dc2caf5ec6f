"""profile=N: what is recorded, what is made of it, and that no clock counts it. The device's part is made up here."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import assert_same, comparable, read_records, run_processes, run_serial, tiny_config, train_here
from torch.profiler import ProfilerActivity, profile

from fr_bench.measuring.profiling import DeviceLoad, Recording, device_load, length_of_union, profile_file
from fr_bench.measuring.untimed import UntimedSteps
from fr_bench.records.collector import Collector
from fr_bench.records.console import profile_line
from fr_bench.records.runs import read_run
from fr_bench.records.summary import SummaryBuilder
from fr_bench.report.measures import step_time_s
from fr_bench.training.extent import Extent


def on_device(category: str, start: float, end: float, device: int = 0) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "ts": start, "dur": end - start, "pid": device, "args": {"device": device}}


def test_what_runs_at_the_same_time_counts_once() -> None:
    assert length_of_union([(0, 4), (6, 7), (1, 2), (3, 5)]) == 6
    assert length_of_union([]) == 0


def test_a_device_is_busy_with_kernels_copies_and_fills_and_with_nothing_else() -> None:
    events = [
        on_device("kernel", 0, 10),
        on_device("kernel", 5, 20),  # of another stream
        on_device("gpu_memcpy", 30, 31),
        on_device("gpu_memset", 40, 42),
        on_device("gpu_user_annotation", 0, 1000),
        on_device("cpu_op", 0, 1000),
        {"ph": "s", "cat": "kernel", "ts": 500},
        {"ph": "M", "name": "process_name"},
    ]
    assert device_load(events) == DeviceLoad(23e-6, 2)
    assert device_load(events).over(2) == {"busy_s": 11.5e-6, "num_kernels": 1.0}
    assert device_load([*events, on_device("kernel", 100, 130, device=1)]) == DeviceLoad(30e-6, 3)  # the busiest


def test_without_a_device_nothing_is_known_of_it() -> None:
    assert device_load([on_device("cpu_op", 0, 5)]) == DeviceLoad(None, None)
    assert DeviceLoad().over(3) == {"busy_s": None, "num_kernels": None}


def test_a_file_is_named_by_its_modules() -> None:
    assert [profile_file(numbers) for numbers in ([3], [1, 2, 3, 4])] == ["profile_3.json", "profile_1-4.json"]


def test_a_large_trace_is_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> Path:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            pass
        return Recording(profiler).write(tmp_path / "profile_1.json")[0]

    path = write()
    assert path.name == "profile_1.json" and "traceEvents" in json.loads(path.read_text())
    monkeypatch.setattr("fr_bench.measuring.profiling.LARGEST_PLAIN_BYTES", 1)
    path = write()
    assert [each.name for each in tmp_path.iterdir()] == ["profile_1.json.gz"] == [path.name]
    assert "traceEvents" in json.loads(gzip.decompress(path.read_bytes()))
    monkeypatch.undo()
    assert [write()] == [*tmp_path.iterdir()] == [tmp_path / "profile_1.json"]  # what an earlier attempt left is gone


def test_on_the_cpu_the_profiler_does_not_complain_of_a_gpu() -> None:
    """In a process of its own: what the profiler says of itself is settled once."""
    program = "from fr_bench.measuring.profiling import record_profile\nwith record_profile(on_gpu=False): pass"
    variables = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_untimed_steps_are_counted_where_they_lie() -> None:
    untimed = UntimedSteps([{"step": 7, "iterations": 3}, {"step": 7, "iterations": 3}, {"step": None}])
    assert [untimed.between(*ends) for ends in ((0, 10), (0, 5), (5, 6), (6, 10), (7, 10))] == [3, 1, 1, 1, 0]


@pytest.mark.parametrize(("method", "k"), [("fr", 3), ("bp", 1)])
def test_a_profile_changes_no_number_and_has_as_many_iterations_as_asked_for(
    method: str, k: int, tmp_path: Path
) -> None:
    plain = run_serial(tiny_config(method, k, eval_every=2), tmp_path / "plain")
    profiled = run_serial(tiny_config(method, k, eval_every=2, profile=2), tmp_path / "profiled")
    assert_same(plain, profiled)
    (event,) = profiled.of("profile")
    assert (event["iterations"], event["step"]) == (2, k - 1 + 3 + 2)
    assert event["host"] == socket.gethostname()
    assert (event["module"], event["busy_s"], event["num_kernels"]) == (1, None, None)
    events = json.loads((tmp_path / "profiled" / event["file"]).read_text())["traceEvents"]
    names = [each.get("name") for each in events]
    assert sum(name == "Optimizer.step#SGD.step" for name in names) == 2 * k
    begins, ends = profiled.of("stretch_begin"), profiled.of("stretch_end")
    assert len(begins) == len(ends) == 2  # before and behind it


def test_it_is_not_of_the_iterations_that_are_traced(tmp_path: Path) -> None:
    changes = {"eval_every": 2, "trace": 5, "profile": 2}
    result = run_serial(tiny_config("fr", 2, **changes), tmp_path)
    (event,) = result.of("profile")
    assert (event["iterations"], event["step"]) == (2, 1 + 5 + 2)
    for trace in result.of("trace"):
        assert sum(span[0] == "step" for span in trace["spans"]) == 5


@pytest.mark.parametrize(("changes", "expected"), [({"profile": 30}, 10), ({"profile": 3, "trace": 10}, 0)])
def test_a_run_that_is_too_short_has_fewer_or_none(changes: dict[str, Any], expected: int, tmp_path: Path) -> None:
    found = run_serial(tiny_config("bp", 1, eval_every=2, **changes), tmp_path).of("profile")
    assert sum(event["iterations"] for event in found) == expected


def test_times_are_means_over_the_other_iterations(tmp_path: Path) -> None:
    result = run_processes(tiny_config("fr", 2, "ipc", eval_every=2, profile=2, epochs=4), tmp_path)
    profiles = sorted(result.of("profile"), key=lambda record: record["module"])
    assert [(record["module"], record["iterations"], record["step"]) for record in profiles] == [(1, 2, 6), (2, 2, 6)]
    assert sorted(path.name for path in tmp_path.glob("profile_*")) == ["profile_1.json", "profile_2.json"]
    assert len(result.of("time")) == 2 * 4 and all(record["efficiency"] > 0 for record in result.of("time"))
    assert [record["iterations"] for record in result.of("time") if record["module"] == 2] == [4, 4, 5, 5]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["device_busy_s"] is None and summary["num_kernels"] is None
    assert summary["steps"] == 20
    assert summary["step_time_s"] == pytest.approx(summary["train_time"] / 18)
    assert summary["images_per_s"] == pytest.approx(18 * 8 / summary["train_time"])
    run = read_run(tmp_path, print)
    assert run is not None and step_time_s(run) == pytest.approx(summary["step_time_s"])
    inside = [record for record in result.of("train") if record["step"] in (5, 6)]
    assert len({record["train_time"] for record in inside}) == 1


def test_images_a_second_are_of_what_the_clock_saw() -> None:
    collector = Collector(1, 100, 8, in_parallel=False)
    second = 10**9
    assert collector.add({"event": "stretch_begin", "modules": [1], "time_ns": 0}) == []
    collector.add({"event": "stretch_end", "modules": [1], "time_ns": 4 * second})
    profiled = {"event": "profile", "module": 1, "step": 6, "iterations": 2, "busy_s": None, "num_kernels": None}
    (record,) = collector.add({**profiled, "time_ns": 50 * second})
    assert (record["kind"], record["train_time"]) == ("profile", 4.0)
    collector.add({"event": "stretch_begin", "modules": [1], "time_ns": 60 * second})
    train = {"event": "train", "step": 10, "loss": 1.0, "error": 0.5, "lr": 0.1}
    (record,) = collector.add({**train, "time_ns": 64 * second})
    assert record["images_per_s"] == 8 * (10 - 2) / 8.0


def test_nor_are_images_counted_while_iterations_are_profiled(tmp_path: Path) -> None:
    for log_every in (1, 5):  # in the second the only record of steps 1 to 5 is made within the profile
        changes = {"eval_every": 2, "log_every": log_every, "profile": 3}
        run = run_processes(tiny_config("bp", 1, **changes), tmp_path / str(log_every))
        (profiled,) = run.of("profile")
        assert (profiled["step"], profiled["iterations"]) == (6, 3)
        last_step, last_s = 0, 0.0
        for record in run.of("train"):
            timed = [step for step in range(last_step + 1, record["step"] + 1) if step not in (4, 5, 6)]
            seconds = record["train_time"] - last_s
            expected = 8 * len(timed) / seconds if timed else None
            assert record.get("images_per_s") == (expected and pytest.approx(expected)) and "untimed" not in record
            last_step, last_s = record["step"], record["train_time"]


def profile_record(module: int, device: str, busy_s: float | None, host: str = "one") -> dict[str, Any]:
    position = {"step": 6, "epoch": 0.6, "train_time": 4.0}
    kernels = None if busy_s is None else 100.0
    numbers = {"iterations": 2, "busy_s": busy_s, "num_kernels": kernels, "file": f"profile_{module}.json"}
    return {"kind": "profile", **position, "module": module, "device": device, "host": host, **numbers}


def test_processes_on_one_gpu_keep_it_busy_together() -> None:
    config = tiny_config("fr", 3)
    builder = SummaryBuilder(config, [1, 2], 4)
    assert builder.build("running")["device_busy_s"] is None
    for module, device, busy_s in ((1, "cuda:0", 0.25), (2, "cuda:0", 0.5), (3, "cuda:1", 0.625)):
        builder.add(profile_record(module, device, busy_s))
    summary = builder.build("finished")
    assert (summary["device_busy_s"], summary["num_kernels"]) == (0.75, 300.0)
    assert summary["step_time_s"] == 4.0 / (6 - 2)


def test_the_first_gpus_of_two_machines_are_two() -> None:
    builder = SummaryBuilder(tiny_config("fr", 2), [1], 4)
    for module, host, busy_s in ((1, "one", 0.25), (2, "two", 0.5)):
        builder.add(profile_record(module, "cuda:0", busy_s, host))
    assert builder.build("finished")["device_busy_s"] == 0.5


def test_the_line_for_the_user_says_where_it_is_and_what_the_gpu_did() -> None:
    assert profile_line(profile_record(1, "cpu", None)).endswith("module 1: 2 iterations in profile_1.json")
    assert profile_line(profile_record(2, "cuda:0", 0.5)).endswith(", GPU busy 0.5 s and 100 kernels each")


def test_the_pipe_has_filled_before_anything_is_profiled_also_where_a_run_goes_on() -> None:
    extent = Extent(100, 10, 1, 1, trace=0, profile=2, profile_folder=Path())
    assert extent.to_profile(0, num_modules=4) == range(6, 8)
    assert extent.to_profile(50, num_modules=4) == range(56, 58)
    assert extent.to_profile(97, num_modules=4) == range(98, 100)


def test_a_run_that_goes_on_may_have_another_number(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"eval_every": 2, "deterministic": True}
    train_here(tiny_config("fr", 2, **changes), tmp_path / "alone")
    train_here(tiny_config("fr", 2, **changes), tmp_path / "run", stop_at=3)
    train_here(tiny_config("fr", 2, profile=1, **changes), tmp_path / "run")
    alone, run = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "run")
    )
    assert [record["iterations"] for record in run if record["kind"] == "profile"] == [1]
    assert [record.pop("iterations") for record in run if record["kind"] == "time"] == [5, 5, 4, 4]
    assert [record.pop("iterations") for record in alone if record["kind"] == "time"] == [5, 5, 5, 5]
    assert comparable([record for record in run if record["kind"] != "profile"]) == comparable(alone)


def test_a_run_that_goes_on_is_not_profiled_a_second_time(tmp_path: Path) -> None:
    config = tiny_config("fr", 2, profile=2, checkpoint={"every": 1})
    train_here(config, tmp_path / "alone")
    steps = [record["step"] for record in read_records(tmp_path / "alone") if record["kind"] == "profile"]
    assert len(steps) == 1 and steps[0] < 9
    for stop_at in (steps[0] - 1, steps[0] + 1):  # the checkpoint is of the step that follows
        train_here(config, run := tmp_path / str(stop_at), stop_at=stop_at)
        train_here(config, run)
        assert [record["step"] for record in read_records(run) if record["kind"] == "profile"] == steps
    train_here(config, tmp_path / "early", stop_at=1)
    train_here(config, tmp_path / "early")
    assert [record["kind"] for record in read_records(tmp_path / "early")].count("profile") == 1


def test_one_that_takes_over_has_a_profile_of_its_own(tmp_path: Path) -> None:
    """Exactly so, or with other modules; and, if it goes on itself, no second one."""
    changes: dict[str, Any] = {"profile": 2, "eval_every": 2}
    train_here(tiny_config("fr", 2, max_steps=8, checkpoint={"every": 8}, **changes), tmp_path / "one")
    for method in ("fr", "ddg"):
        other = tmp_path / method
        config = tiny_config(method, 2, epochs=4, resume=str(tmp_path / "one"), checkpoint={"every": 1}, **changes)
        train_here(config, other, stop_at=16)
        train_here(config, other)
        own = [record["step"] for record in read_records(other) if record["kind"] == "profile" and record["step"] > 8]
        assert len(own) == 1 and 8 < own[0] < 16
        assert (other / "profile_1-2.json").exists()


def test_one_that_a_checkpoint_cuts_short_is_of_the_iterations_until_then(tmp_path: Path) -> None:
    train_here(tiny_config("fr", 2, profile=3, eval_every=2, checkpoint={"every": 6}), tmp_path)
    (record,) = (record for record in read_records(tmp_path) if record["kind"] == "profile")
    assert (record["step"], record["iterations"]) == (6, 2)


def test_a_trace_that_cannot_be_written_is_told_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Recording, "write", fail)
    run = run_serial(tiny_config("fr", 2, profile=2, eval_every=2), tmp_path)
    (record,) = run.of("profile")
    assert record["file"] is None and len(run.losses) == 10
    assert profile_line(record).endswith("2 iterations, whose trace cannot be written (No space left on device)")
