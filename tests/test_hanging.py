"""Processes that are stopped: a module for too long, a module for a moment, the parent."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from test_faults import Run, RunDirectory, run_here, start, wait_until  # noqa: F401  # start is a fixture

from fr_bench.processes.heartbeat import LONGEST_TURN_S, Silence


def stop(pid: int, seconds: float) -> None:
    """Stops a process for a while."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def goes_on(run: Run) -> bool:
    before = run.num_records()
    return wait_until(lambda: run.process.poll() is not None or run.num_records() > before + 10, 60) and (
        run.process.poll() is None
    )


def test_a_module_that_hangs_is_named_and_ended(tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop_module_2(run: RunDirectory) -> None:
        stopped.append(run.module(2))
        os.kill(stopped[0], signal.SIGSTOP)

    run = run_here(tmp_path, "hang_timeout=3", meanwhile=stop_module_2)
    code, stderr = run.end()
    assert code == 1 and stderr.count("\n") == 1
    assert stderr.startswith(f"fr-bench: module 2 (process {stopped[0]}) gave no sign of life for 3 s in step ")
    assert "it is stopped, as by SIGSTOP" in stderr and "hang_timeout" in stderr
    status = run.status()
    assert (status["state"], status["module"], status["exit_code"]) == ("failed", 2, 1)
    assert len(run.records()) > 3 and json.loads((run.run_dir / "summary.json").read_text())["state"] == "failed"


def test_a_stop_that_ends_in_time_is_no_hanging_and_a_stopped_parent_blames_nobody(
    start: Callable[..., Run],  # noqa: F811
) -> None:
    run = start("hang_timeout=4")
    for _ in range(2):  # together longer than the limit, each for itself shorter
        stop(run.module(2), 2.5)
        assert goes_on(run)
    stop(run.process.pid, 5.0)
    assert goes_on(run)


def test_silence_counts_from_the_first_event_and_only_while_the_parent_listens(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    silence = Silence(timeout_s=3.0, num_processes=2)

    def turn(seconds: float, *heard: int) -> None:
        now[0] += seconds
        silence.take_turn(set(heard))

    for _ in range(10):
        turn(1.0, 0)  # process 1 imports
    assert not silence.hangs(1)
    turn(0.5, 1)
    turn(1000.0)  # this was the parent's own absence
    assert not silence.hangs(0) and not silence.hangs(1)
    turn(LONGEST_TURN_S, 0)
    turn(LONGEST_TURN_S, 0)
    assert silence.hangs(1) and not silence.hangs(0)
    turn(0.5, 1)
    assert not silence.hangs(1)
