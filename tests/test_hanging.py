"""Processes that are stopped: a module for too long, a module for a moment, the parent."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import call
from test_faults import ENDLESS, Run, RunDirectory, run_here, start, wait_until  # noqa: F401  # start is a fixture

from fr_bench.errors import RunFailed
from fr_bench.processes.heartbeat import LONGEST_TURN_S, Silence, Standstill
from fr_bench.waits import Wait, current_wait, waiting_for


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


GREEDY = """
from fr_bench.methods.bp import Backpropagation

class Greedy(Backpropagation):
    def learn_lower(self, t):
        super().learn_lower(t)
        if t == 5:
            self.link.receive_gradient(t)  # which module 2 has not sent yet, and never will
"""


def test_modules_that_wait_for_each_other_for_ever_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over shared memory and in one process; over gloo: test_torchrun.py."""
    (tmp_path / "greedy_here.py").write_text(GREEDY)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "greedy.yaml").write_text("_target_: greedy_here.Greedy\nname: greedy\n")
    words = ["--config-dir", "mine", "method=greedy"]
    run = run_here(tmp_path, *words, "transport=ipc", "hang_timeout=2")
    code, stderr = run.end()
    assert code == 1 and stderr.count("\n") == 1
    assert stderr.startswith("fr-bench: all modules have waited for each other for 2 s: module 1 for gradients from ")
    assert "module 2 for gradients from module 3 to 2, batch 5;" in stderr
    assert "module 3 for features from module 2 to 3, batch 6. " in stderr and "hang_timeout" in stderr
    assert run.status()["state"] == "failed" and len(run.records()) == 6

    done = call(tmp_path, *ENDLESS, "console=off", *words, "transport=serial", f"run_dir={tmp_path / 'serial'}")
    assert (
        done.returncode == 1 and "gradients from module 3 to 2: batch 5 is asked for before it was sent" in done.stderr
    )


DEAF = """
import torch
from fr_bench.methods.bp import Backpropagation


class Deaf(Backpropagation):
    def learn_lower(self, t):
        live, self._live = self._live, None
        self.descend(live, torch.zeros(self.module.output_shape), t)  # it asks the link for no gradient
"""


def test_a_method_whose_gradients_nobody_receives_is_told_what_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deaf_here.py").write_text(DEAF)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "deaf.yaml").write_text("_target_: deaf_here.Deaf\nname: deaf\n")
    words = ["--config-dir", "mine", "method=deaf", "transport=ipc", "hang_timeout=2"]
    code, stderr = run_here(tmp_path, *words).end()
    assert code == 1 and "module 2 for room for gradients from module 2 to 1" in stderr
    assert "sends_gradients = False" in stderr


def test_a_standstill_is_one_of_all_in_one_and_the_same_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    standstill = Standstill(timeout_s=3.0, modules=[1, 2])

    def turn(**waits: Wait | None) -> None:
        for name, wait in waits.items():
            standstill.hear(int(name[-1]) - 1, wait)
        now[0] += LONGEST_TURN_S
        standstill.refuse()

    for _ in range(5):
        turn(of_1=Wait(1, "features"), of_2=None)
    for number in range(5):
        turn(of_1=Wait(1, "features"), of_2=Wait(number, "a gradient"))  # it gets on
    for _ in range(2):
        turn(of_1=Wait(1, "features"), of_2=Wait(9, "a gradient"))
    turn(of_1=Wait(1, "features"), of_2=None)
    turn(of_1=Wait(1, "features"), of_2=Wait(10, "a gradient"))
    now[0] += 1000.0  # the parent's own absence
    for _ in range(10):
        turn(of_1=Wait(1, "features"))  # process 2 is silent: it may be stopped, and in another wait by now
    for _ in range(2):
        turn(of_1=Wait(1, "features"), of_2=Wait(11, "a gradient"))
    turn(of_1=Wait(1, "features"), of_2=Wait(11, "a gradient"))
    with pytest.raises(RunFailed, match=r"for 3 s: module 1 for features; module 2 for a gradient\. "):
        turn(of_1=Wait(1, "features"), of_2=Wait(11, "a gradient"))
    never = Standstill(timeout_s=None, modules=[1])
    for _ in range(2):
        never.hear(0, [1, "features"])
        now[0] += 1000.0
        never.refuse()


def test_a_wait_is_over_when_its_body_is_and_the_next_one_is_another() -> None:
    with waiting_for("features"):
        first = current_wait()
    assert first is not None and first.what == "features" and current_wait() is None
    with pytest.raises(OSError), waiting_for("features"):
        raise OSError
    with waiting_for("features"):
        second = current_wait()
    assert second is not None and second.number == first.number + 2 and current_wait() is None
