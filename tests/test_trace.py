"""The recorded timeline shows that no module waits for a lock that the method does not have."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from harness import run_processes, tiny_config

K = 4


def record(method: str, folder: Path, transport: str = "ipc", trace: int = 20) -> list[dict[str, Any]]:
    model = {"_target_": "tiny_models.residual", "name": "tiny", "width": 32, "depth": 7}
    config = tiny_config(method, K, transport, model=model, trace=trace, epochs=8, eval_every=8)
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
    events = record("fr", tmp_path)
    assert overlaps(events) >= 10
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


def test_in_an_iteration_of_fr_the_replay_comes_before_the_wait_and_the_play_before_both(tmp_path: Path) -> None:
    events = [event for event in record("fr", tmp_path, trace=4) if event["tid"] == 1]
    names = [event["name"] for event in sorted(events, key=lambda event: event["ts"])]
    one = ["load images", "play", "send features", "replay", "wait gradient", "backward", "step"]
    assert names == one * 4
