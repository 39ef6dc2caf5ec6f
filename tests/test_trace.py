"""The recorded timeline shows that no module waits for a lock that the method does not have."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from harness import run_processes, tiny_config, train_here
from test_faults import RunDirectory, run_here, wait_until

from fr_bench.measuring.stopwatch import Span
from fr_bench.processes.reporter import Reporter
from fr_bench.records import trace
from fr_bench.records.run_files import naming_file

K = 4


def record(method: str, folder: Path, transport: str = "ipc", trace: int = 20) -> list[dict[str, Any]]:
    model = {"_target_": "tiny_models.residual", "name": "tiny", "width": 32, "depth": 7}
    epochs = -(-(K + trace) // 5)  # of five steps: the pipe fills first
    config = tiny_config(method, K, transport, model=model, trace=trace, epochs=epochs, eval_every=epochs)
    run_processes(config, folder)
    content = json.loads((folder / "trace.json").read_text())
    return [event for event in content["traceEvents"] if event["ph"] == "X"]


def overlaps(events: list[dict[str, Any]]) -> int:
    """How often module 1 begins to play batch t+1 while module K still makes the gradient of batch t. (Its step, and
    what is left of a message that has already arrived, are no lock.)"""
    plays = {e["args"]["batch"]: e["ts"] for e in events if e["tid"] == 1 and e["name"] == "play"}
    ends: dict[int, float] = {}
    for event in events:
        if event["tid"] == K and event["name"] in ("play", "loss", "backward"):
            ends[event["args"]["batch"]] = max(ends.get(event["args"]["batch"], 0), event["ts"] + event["dur"])
    return sum(plays[t + 1] < end for t, end in ends.items() if t + 1 in plays)


def test_fr_plays_ahead_while_module_k_still_works(tmp_path: Path) -> None:
    """And in an iteration of module 1 the replay comes before the wait, and the play before both."""
    events = record("fr", tmp_path)
    assert overlaps(events) >= 10
    lowest = sorted((event for event in events if event["tid"] == 1), key=lambda event: event["ts"])
    one = ["load images", "play", "send features", "replay", "wait gradient", "backward", "step"]
    assert [event["name"] for event in lowest] == one * 20
    assert {event["name"] for event in events if event["cat"] == "wait"} <= {"wait features", "wait gradient"}


def test_bp_never_does(tmp_path: Path) -> None:
    assert overlaps(record("bp", tmp_path)) == 0


@pytest.mark.parametrize("transport", ["serial", "gloo"])
def test_the_trace_has_all_modules_and_as_many_steps_as_asked_for(transport: str, tmp_path: Path) -> None:
    events = record("fr", tmp_path, transport, trace=5)
    for module in range(1, K + 1):
        mine = [event for event in events if event["tid"] == module]
        assert sum(event["name"] == "play" for event in mine) == 5
        assert sum(event["name"] == "backward" for event in mine) == 5
        ordered = sorted(mine, key=lambda event: event["ts"])
        for one, following in itertools.pairwise(ordered):  # a module does one thing at a time
            assert one["ts"] + one["dur"] <= following["ts"] + 1
    assert min(event["ts"] for event in events) == 0


def test_times_are_microseconds_since_the_first_span_and_every_module_has_a_row_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace.write_trace(path, {2: [Span("wait features", 3000, 5500, 7)], 1: [Span("play", 1000, 2000, 7)]})
    names, spans = (
        [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == kind] for kind in "MX"
    )
    assert [(event["tid"], event["args"]["name"]) for event in names] == [(1, "module 1"), (2, "module 2")]
    assert [(event["tid"], event["name"], event["ts"], event["dur"], event["cat"]) for event in spans] == [
        (1, "play", 0, 1, "work"),
        (2, "wait features", 2, 2.5, "wait"),
    ]


def plays(folder: Path) -> dict[int, list[int]]:
    """By module: the batches whose play is in the trace."""
    found: dict[int, list[int]] = {}
    for event in json.loads((folder / "trace.json").read_text())["traceEvents"]:
        if event["name"] == "play":
            found.setdefault(event["tid"], []).append(event["args"]["batch"])
    return found


def test_it_is_there_long_before_the_run_ends(tmp_path: Path) -> None:
    def befall(run: RunDirectory) -> None:
        wait_until((run.run_dir / "trace.json").exists, 60)
        os.kill(run.module(2), signal.SIGKILL)

    run = run_here(tmp_path, "trace=4", meanwhile=befall)
    assert run.end()[0] == 1
    assert plays(run.run_dir) == {1: [2, 3, 4, 5], 2: [2, 3, 4, 5], 3: [2, 3, 4, 5]}


def test_one_that_cannot_be_written_is_told_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path, _: str) -> None:
        with naming_file(path):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(trace, "write_text", fail)
    run = run_processes(tiny_config("fr", 2, "ipc", trace=2), tmp_path)
    assert len(run.losses) == 10
    told = capsys.readouterr().err
    assert told.count("trace.json cannot be written") == 1 and "No space left on device" in told


def test_a_run_that_goes_on_is_traced_from_there_on(tmp_path: Path) -> None:
    config = tiny_config("fr", 3)
    train_here(config, tmp_path / "source", stop_at=4)
    config = tiny_config("fr", 3, "ipc", trace=2, resume=str(tmp_path / "source"))
    run_processes(config, tmp_path / "run")
    assert plays(tmp_path / "run") == {1: [7, 8], 2: [7, 8], 3: [7, 8]}


def test_what_was_traced_is_not_traced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(Reporter, "send_trace", lambda self, module, spans: sent.append(module))
    config = tiny_config("fr", 3, trace=2)
    for has_trace in (True, False):
        train_here(config, tmp_path / str(has_trace), stop_at=7)
        assert sent == [1, 2, 3]
        if has_trace:
            (tmp_path / str(has_trace) / "trace.json").touch()
        sent.clear()
        train_here(config, tmp_path / str(has_trace))
        assert sent == ([] if has_trace else [1, 2, 3])
        sent.clear()
