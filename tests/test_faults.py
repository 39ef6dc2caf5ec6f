"""Bad days, with the real thing done to the real program: what it says, how it exits, and that nothing stays alive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import run_serial, tiny_config

from fr_bench.errors import Diverged

# A run that would go on for hours: three modules, each in its own process.
ENDLESS = ["train", "model=mlp", "dataset=synthetic", "k=3", "batch_size=64", "epochs=1000000"]
ENDLESS += ["wandb.mode=disabled", "partition=equal"]
AT_MOST_S = 5.0


class Run:
    """The program in a process group of its own, past its first logged step."""

    def __init__(self, folder: Path, *words: str, nohup: bool = False) -> None:
        self.run_dir = folder / "run"
        command = [sys.executable, "-m", "fr_bench", *ENDLESS, f"run_dir={self.run_dir}", "log_every=1", *words]
        # What a shell does for `nohup ... &` in a script: both signals ignored, and inherited.
        ignore = (lambda: [signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGHUP)]) if nohup else None
        self.process = subprocess.Popen(
            command, cwd=folder, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}, preexec_fn=ignore,
        )  # fmt: skip
        wait_until(lambda: self.process.poll() is not None or self.num_records() > 3, 60)

    def num_records(self) -> int:
        path = self.run_dir / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def group(self) -> list[int]:
        """Every process of the program that is alive."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.process.pid and fields[0] != "Z":  # session, state
                    found.append(int(entry.name))
        return found

    def module(self, k: int) -> int:
        """The process of module ``k``: the one that writes rank_<k>.log."""
        log = self.run_dir / f"rank_{k}.log"
        return next(pid for pid in self.group() if Path(f"/proc/{pid}/fd/1").resolve() == log.resolve())

    def end(self) -> tuple[int, str]:
        """Exit code and stderr; fails if the program takes too long, or leaves a process behind."""
        _, stderr = self.process.communicate(timeout=AT_MOST_S)
        assert wait_until(lambda: not self.group(), AT_MOST_S), "processes are left alive"
        return self.process.returncode, stderr

    def status(self) -> dict:
        return json.loads((self.run_dir / "status.json").read_text())

    def records(self) -> list[dict]:
        return [json.loads(line) for line in (self.run_dir / "metrics.jsonl").read_text().splitlines()]


def wait_until(condition: Callable[[], object], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start_one(*words: str, nohup: bool = False) -> Run:
        runs.append(Run(tmp_path, *words, nohup=nohup))
        return runs[-1]

    yield start_one
    for run in runs:
        for pid in run.group():
            os.kill(pid, signal.SIGKILL)
        run.process.wait()


def bad_day(folder: Path, what: str) -> list[str]:
    """The words for a run whose module 2 has a bad day in its 20th forward or soon after; see tiny_models.BadDay."""
    (folder / "mine" / "model").mkdir(parents=True)
    model = f"_target_: tiny_models.bad_day\nname: bad_day\nwhat: {what}\nat: 20\n"
    (folder / "mine" / "model" / "bad_day.yaml").write_text(model)
    return ["--config-dir", "mine", "model=bad_day", "partition=[1,2]"]


@pytest.mark.parametrize(
    ("k", "transport", "when"),
    [(1, "ipc", None), (2, "ipc", "play"), (2, "gloo", "learn"), (2, "ipc", "evaluation")],
)
def test_a_module_that_is_killed_ends_the_run_and_is_named(
    start: Callable[..., Run], tmp_path: Path, k: int, transport: str, when: str | None
) -> None:
    run = start(f"transport={transport}", *(bad_day(tmp_path, f"killed in {when}") if when else ()))
    if when is None:
        os.kill(run.module(k), signal.SIGKILL)
    else:
        run.process.wait(60)  # it does it itself, a few steps on
    code, stderr = run.end()
    assert code == 1
    assert stderr.startswith(f"fr-bench: module {k} was killed by SIGKILL") and "in step" in stderr
    assert "Traceback" not in stderr and stderr.count("\n") == 1
    status = run.status()
    assert (status["state"], status["module"], status["exit_code"]) == ("failed", k, 1)
    assert len(run.records()) > 3 and json.loads((run.run_dir / "summary.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(
    ("kill", "number", "code"),
    [
        (os.killpg, signal.SIGINT, 130),  # Ctrl-C reaches the whole group
        (os.kill, signal.SIGINT, 130),
        (os.kill, signal.SIGTERM, 75),
        (os.kill, signal.SIGHUP, 75),
    ],
)
def test_a_signal_ends_the_run_cleanly(start: Callable[..., Run], kill: Callable, number: int, code: int) -> None:
    run = start()
    kill(run.process.pid, number)
    exit_code, stderr = run.end()
    assert exit_code == code and "Traceback" not in stderr
    stopped = f"fr-bench: stopped by {signal.Signals(number).name} after step "
    assert stderr.startswith(stopped) and f"; run_dir={run.run_dir} goes on after step " in stderr
    assert stderr.count("\n") == 1
    assert (run.status()["state"], run.status()["exit_code"]) == ("interrupted", code)
    assert len(run.records()) > 3


def test_nohup_survives_the_end_of_the_terminal_and_can_be_stopped_too(start: Callable[..., Run]) -> None:
    """Both signals were ignored when it started."""
    run = start(nohup=True)
    before = len(run.records())
    os.kill(run.process.pid, signal.SIGHUP)
    assert wait_until(lambda: len(run.records()) > before + 20, 20) and run.process.poll() is None
    os.kill(run.process.pid, signal.SIGINT)
    assert run.end()[0] == 130


def test_no_module_outlives_a_parent_that_is_killed(start: Callable[..., Run]) -> None:
    """Not even where the signals are ignored with which a library would end it."""
    run = start(nohup=True)
    assert len(run.group()) >= 4
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(AT_MOST_S)
    assert wait_until(lambda: not run.group(), AT_MOST_S)
    assert len(run.records()) > 3  # every line is whole


def test_an_exception_in_a_module_is_the_first_cause_not_its_neighbours_broken_pipes(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    model = "_target_: tiny_models.faulty\nname: faulty\nat: 20\n"
    (tmp_path / "mine" / "model" / "faulty.yaml").write_text(model)
    run = start("--config-dir", "mine", "model=faulty", "transport=gloo", "method=bp")
    code, stderr = run.end()
    assert code == 1
    assert stderr.startswith("fr-bench: module 2 failed in step 18: ArithmeticError: the bug in block 'faulty'")
    assert stderr.count("\n") == 1
    assert "Traceback" in (run.run_dir / "rank_2.log").read_text()  # where whoever wants more finds it


def test_a_run_that_diverges_says_where_and_keeps_what_was_logged(start: Callable[..., Run]) -> None:
    run = start("optimizer.lr=1e30", "method=fr", "log_every=2", "max_steps=1000")
    code, stderr = run.end()
    assert code == 1
    assert stderr.startswith("fr-bench: diverged at step ") and " in module " in stderr and stderr.count("\n") == 1
    status = run.status()
    assert status["state"] == "failed" and status["error"].startswith("diverged at step")
    assert f"in module {status['module']}" in status["error"]


def test_a_gradient_that_is_not_a_number_is_found_where_and_when_it_came_up(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    """Not in the modules below, to which it spreads, and not when it was looked for."""
    run = start("log_every=7", *bad_day(tmp_path, "gradient"))
    run.process.wait(60)
    code, stderr = run.end()
    assert code == 1 and stderr.count("\n") == 1
    # Two forwards of the rehearsal, one of step 1, two of each that follows.
    assert stderr.startswith("fr-bench: diverged at step 10 in module 2: its loss or gradient is not finite")
    assert run.status()["module"] == 2
    assert [record["step"] for record in run.records()] == [7]


def test_a_module_without_memory_is_told_with_the_table_and_what_lowers_it(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    run = start("method=ddg", *bad_day(tmp_path, "torch"))
    run.process.wait(60)
    code, stderr = run.end()
    first, title, header, *rows, last = stderr.splitlines()
    assert code == 1 and "Traceback" not in stderr
    assert first.startswith("fr-bench: module 2 ran out of memory in step 18, on cpu: ")
    assert "DefaultCPUAllocator: can't allocate memory" in first
    assert title == "predicted with a full pipe, MiB:" and header.split()[:3] == ["module", "device", "parameters"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "all"]
    for remedy in ("a batch_size below 64", "more modules than k=3", "method=fr", "memory_limit_gb"):
        assert remedy in last
    status = run.status()
    assert (status["state"], status["module"]) == ("failed", 2) and status["error"] in stderr
    assert "Traceback" in (run.run_dir / "rank_2.log").read_text()


def test_in_one_process_too_the_first_module_that_diverged_is_named_not_those_below_it(tmp_path: Path) -> None:
    model = {"_target_": "tiny_models.bad_day", "name": "bad_day", "what": "gradient", "at": 8}
    with pytest.raises(Diverged) as caught:
        run_serial(tiny_config("fr", 3, model=model, log_every=7), tmp_path)
    assert (caught.value.step, caught.value.module) == (4, 2)
