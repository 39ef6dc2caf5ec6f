"""Spans by the host's clock, and by a device's events; those are made up here (on a real GPU: tests/gpu)."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from harness import run_serial, tiny_config

from fr_bench.measuring.device_stopwatch import FURTHEST_MS, LOOK_EVERY, DeviceStopwatch, make_stopwatch
from fr_bench.measuring.stopwatch import Stopwatch
from fr_bench.workers.worker import shares_gpu


class FakeDevice:
    """A stream: what is queued on it lies at ``queued_ms`` of its time, and it has come to ``reached_ms``."""

    def __init__(self) -> None:
        self.queued_ms = 1e9  # its clock is not the host's
        self.reached_ms = 1e9
        self.events: list[FakeEvent] = []
        self.num_waits = 0

    def make_event(self) -> FakeEvent:
        self.events.append(FakeEvent(self))
        return self.events[-1]

    def work(self, ms: float) -> None:
        """Queues a kernel."""
        self.queued_ms += ms

    def run(self) -> None:
        """Does all that is queued."""
        self.reached_ms = self.queued_ms


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.at_ms: float | None = None

    def record(self, stream: Any = None) -> None:
        assert stream is None
        self.at_ms = self.device.queued_ms

    def query(self) -> bool:
        assert self.at_ms is not None
        return self.at_ms <= self.device.reached_ms

    def synchronize(self) -> None:
        assert self.at_ms is not None
        self.device.num_waits += 1
        self.device.reached_ms = max(self.device.reached_ms, self.at_ms)

    def elapsed_time(self, end_event: FakeEvent, /) -> float:
        assert self.at_ms is not None and end_event.at_ms is not None
        assert self.query() and end_event.query(), "CUDA refuses events that were not reached"
        return float(np.float32(end_event.at_ms - self.at_ms))


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def watch(device: FakeDevice) -> DeviceStopwatch:
    made = DeviceStopwatch(torch.device("cuda"), device.make_event)
    made.begin()
    device.num_waits = 0
    return made


def work(watch: DeviceStopwatch, device: FakeDevice, name: str, ms: float, batch: int = 0) -> None:
    with watch.span(name, batch):
        device.work(ms)


def test_a_module_is_timed_by_where_it_is() -> None:
    assert type(make_stopwatch(torch.device("cpu"))) is Stopwatch
    assert type(make_stopwatch(torch.device("cuda:1"))) is DeviceStopwatch


def test_times_are_the_devices_and_asked_for_once(watch: DeviceStopwatch, device: FakeDevice) -> None:
    work(watch, device, "wait features", 4)
    work(watch, device, "play", 10)
    device.work(7)  # between spans
    work(watch, device, "backward", 20)
    work(watch, device, "step", 5)
    work(watch, device, "send gradient", 1)
    assert device.num_waits == 0
    assert watch.take() == pytest.approx({"wait_s": 0.004, "play_s": 0.01, "learn_s": 0.025, "send_s": 0.001})
    assert device.num_waits == 1
    assert set(watch.take().values()) == {0.0} and device.num_waits == 1


def test_events_are_used_again_and_never_pile_up_where_the_device_keeps_pace(
    watch: DeviceStopwatch, device: FakeDevice
) -> None:
    for _ in range(100):
        for _ in range(50):
            work(watch, device, "play", 0.1)
            device.run()
    assert device.num_waits == 0
    assert len(device.events) <= 2 * LOOK_EVERY + 2  # one set, the base, the last one's end
    assert watch.take()["play_s"] == pytest.approx(0.5)


def test_a_device_that_lags_behind_is_not_waited_for(watch: DeviceStopwatch, device: FakeDevice) -> None:
    for _ in range(3 * LOOK_EVERY):
        work(watch, device, "play", 1)
    assert device.num_waits == 0 and len(device.events) <= 6 * LOOK_EVERY + 1
    device.run()
    for _ in range(LOOK_EVERY):  # at the end of which it looks, and has all of them back
        work(watch, device, "play", 1)
        device.run()
    for _ in range(3 * LOOK_EVERY):
        work(watch, device, "play", 1)
    assert device.num_waits == 0 and len(device.events) <= 8 * LOOK_EVERY + 1
    assert watch.take()["play_s"] == pytest.approx(7 * LOOK_EVERY / 1000)


def test_what_another_stream_has_to_do_is_waited_for_too(device: FakeDevice) -> None:
    other = FakeDevice()
    streams = iter([device, device, other, device, device])  # of the base, and of begin and end of two spans
    watch = DeviceStopwatch(torch.device("cuda"), lambda: next(streams).make_event())
    with watch.span("play", 0):
        device.work(10)
        other.work(10)
    work(watch, device, "step", 5)
    assert watch.take() == pytest.approx({"play_s": 0.01, "learn_s": 0.005, "wait_s": 0.0, "send_s": 0.0})


def test_what_is_paused_is_not_timed_even_within_a_pause(watch: DeviceStopwatch, device: FakeDevice) -> None:
    work(watch, device, "play", 1)
    with watch.paused():
        work(watch, device, "play", 2)
        with watch.paused():
            pass
        work(watch, device, "play", 4)
    work(watch, device, "play", 8)
    assert watch.take()["play_s"] == pytest.approx(0.009)


def test_the_rest_is_what_no_span_covers(watch: DeviceStopwatch, device: FakeDevice) -> None:
    with watch.rest("wait neighbours", 0):
        device.work(1)
        work(watch, device, "play", 10)
        device.work(2)
        work(watch, device, "backward", 20)
        device.work(4)
    device.work(100)
    work(watch, device, "step", 5)
    assert watch.take() == pytest.approx({"wait_s": 0.007, "play_s": 0.01, "learn_s": 0.025, "send_s": 0.0})


def test_only_spans_that_were_made_while_tracing_are_kept_with_the_hosts_time(
    watch: DeviceStopwatch, device: FakeDevice
) -> None:
    work(watch, device, "play", 1, batch=0)
    watch.tracing = True
    work(watch, device, "play", 10, batch=1)
    device.work(3)
    work(watch, device, "step", 2, batch=1)
    watch.tracing = False
    work(watch, device, "play", 1, batch=2)
    play, step = watch.take_spans()
    assert [(span.name, span.batch) for span in (play, step)] == [("play", 1), ("step", 1)]
    assert (play.end_ns - play.start_ns, step.start_ns - play.end_ns) == pytest.approx((10**7, 3 * 10**6), abs=100)
    assert abs(play.start_ns - time.monotonic_ns()) < 60 * 10**9
    assert device.num_waits == 1
    watch.tracing = True
    work(watch, device, "replay", 1, batch=3)
    assert [span.name for span in watch.take_spans()] == ["replay"] and watch.take_spans() == []


def test_every_stretch_sets_the_clock_anew(watch: DeviceStopwatch, device: FakeDevice) -> None:
    watch.tracing = True
    work(watch, device, "play", 1, batch=0)
    device.work(10**7)  # hours, of which the host knows nothing: its clock is the one that counts
    watch.begin()
    work(watch, device, "play", 1, batch=1)
    first, second = watch.take_spans()
    assert abs(second.start_ns - first.end_ns) < 60 * 10**9
    assert watch.take()["play_s"] == pytest.approx(0.002)


def test_a_long_stretch_is_as_exact_at_its_end_as_at_its_start(watch: DeviceStopwatch, device: FakeDevice) -> None:
    """Ten hours in float32 milliseconds are known to 4 ms."""
    watch.tracing = True
    for batch in range(36_000):
        device.work(FURTHEST_MS * 2)
        work(watch, device, "play", 0.125, batch)
        device.run()
    spans = watch.take_spans()
    assert all(abs(span.end_ns - span.start_ns - 125_000) < 200 for span in spans[-100:])
    whole_ns = 35_999 * (FURTHEST_MS * 2 + 0.125) * 1e6
    assert spans[-1].start_ns - spans[0].start_ns == pytest.approx(whole_ns, abs=1e6)


def test_what_a_checkpoint_holds_is_complete(watch: DeviceStopwatch, device: FakeDevice) -> None:
    work(watch, device, "play", 10)
    state = watch.state_dict()
    assert state == {"play": pytest.approx(10**7, abs=100)}
    work(watch, device, "play", 1)  # forgotten, as by a process that is no more
    watch.load_state_dict(state)
    work(watch, device, "play", 5)
    assert watch.take()["play_s"] == pytest.approx(0.015)


def test_the_hosts_stopwatch_has_the_same_rest_and_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [0]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns[0])
    watch = Stopwatch()
    watch.tracing = True

    def later(ms: int) -> None:
        now_ns[0] += ms * 10**6

    watch.begin()
    with watch.rest("wait neighbours", 3):
        later(1)
        with watch.span("play", 3):
            later(10)
        later(2)
    with watch.paused(), watch.span("play", 4):
        later(100)
    assert [(span.name, span.end_ns - span.start_ns) for span in watch.take_spans()] == [
        ("wait neighbours", 10**6),
        ("play", 10**7),
        ("wait neighbours", 2 * 10**6),
    ]
    assert watch.take() == {"play_s": 0.01, "learn_s": 0.0, "wait_s": 0.003, "send_s": 0.0}


def test_what_counts_as_playing_learning_waiting_and_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [0]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns[0])
    watch = Stopwatch()
    kinds = {
        "play_s": ["load images", "play"],
        "learn_s": ["replay", "loss", "backward", "synthesize", "step"],
        "wait_s": ["wait features", "wait gradient", "wait neighbours", "wait replicas"],
        "send_s": ["send features", "send gradient"],
    }
    for kind, names in kinds.items():
        for name in names:
            with watch.span(name, 0):
                now_ns[0] += 10**9
        assert {key: seconds for key, seconds in watch.take().items() if seconds} == {kind: len(names)}


class HostEvent:
    """An event of a device that does everything at once."""

    def record(self, stream: Any = None) -> None:
        self.at_ns = time.monotonic_ns()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end_event: HostEvent, /) -> float:
        return (end_event.at_ns - self.at_ns) / 1e6


def test_a_time_record_is_a_mean_over_the_iterations_since_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stopwatch, "take", lambda _: dict.fromkeys(("play_s", "learn_s", "wait_s", "send_s"), 10.0))
    times = run_serial(tiny_config("bp", 1, max_steps=14, epochs=3), tmp_path).of("time")
    assert [record["play_s"] for record in times] == [2.0, 2.0, 2.5]


def test_epochs_between_two_evaluations_have_each_their_own_time(tmp_path: Path) -> None:
    run = run_serial(tiny_config("bp", 1, eval_every=4, epochs=4), tmp_path)
    (begin,), (end,) = run.of("stretch_begin"), run.of("stretch_end")
    epochs_s = [5 * record["wall_s"] for record in run.of("time")]
    assert len(epochs_s) == 4
    assert sum(epochs_s) == pytest.approx((end["time_ns"] - begin["time_ns"]) / 1e9, rel=0.5)


@pytest.mark.parametrize(("method", "k"), [("bp", 1), ("fr", 3)])
def test_a_whole_run_is_timed_by_events_as_by_the_host(
    method: str, k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fr_bench.workers.worker.make_stopwatch", lambda device: DeviceStopwatch(device, HostEvent))
    run = run_serial(tiny_config(method, k, trace=3, profile=2, eval_every=2, epochs=4), tmp_path)
    times = run.of("time")
    assert len(times) == 4 * k
    for step in {record["step"] for record in times}:  # one after the other
        records = [record for record in times if record["step"] == step]
        spans_s = sum(record[name] for record in records for name in ("play_s", "learn_s", "send_s", "wait_s"))
        assert 0.1 * records[0]["wall_s"] < spans_s <= records[0]["wall_s"]
    for trace in run.of("trace"):
        assert sum(span[0] == "step" for span in trace["spans"]) == 3
        starts = [span[1] for span in trace["spans"]]
        assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("devices", "modules", "rank", "expected"),
    [
        (["cpu", "cpu"], [1], None, False),
        (["cuda:0"], [1], None, False),
        (["cuda:0", "cuda:0"], [2], None, True),
        (["cuda:0", "cuda:1"], [2], None, False),
        (["cuda:0", "cuda:1", "cuda:0"], [2], None, False),
        (["cuda:0", "cuda:1", "cuda:0"], [3], None, True),
        (["cuda:0", "cuda:0"], [1, 2], None, True),  # serial
        (["cuda:0", "cuda:1"] * 2, [3], 2, False),  # on the second of two machines
        (["cuda:0", "cuda:0"] * 2, [3], 2, True),
    ],
)
def test_a_gpu_is_shared_if_another_module_of_the_machine_is_on_it(
    devices: list[str], modules: list[int], rank: int | None, expected: bool
) -> None:
    launch = None if rank is None else SimpleNamespace(rank=rank, local_world_size=2)
    task = SimpleNamespace(plan=SimpleNamespace(devices=devices), modules=modules, launch=launch)
    assert shares_gpu(task) is expected  # type: ignore[arg-type]


def test_where_modules_share_a_gpu_nobody_says_how_long_they_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one of them computes for the other takes as long in all its spans."""
    for shared in (False, True):
        monkeypatch.setattr("fr_bench.workers.worker.shares_gpu", lambda _, shared=shared: shared)
        times = run_serial(tiny_config("fr", 2), tmp_path / str(shared)).of("time")
        assert len(times) == 4 and all(("wait_s" in record) is not shared for record in times)
