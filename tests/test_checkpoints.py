"""Checkpoints of the real program: signals, kills, time limits, full disks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import (
    ListConnection,
    assert_same_run,
    call,
    read_records,
    read_weights,
    run_processes,
    tiny_config,
    train_here,
)
from test_faults import RunDirectory, run_here, wait_until

from fr_bench.checkpoints import checkpointer, snapshot
from fr_bench.checkpoints.checkpointer import Checkpointer, Interval, write
from fr_bench.checkpoints.files import folder_of, read_manifest, state_file, whole_folders, write_file
from fr_bench.errors import Interrupted
from fr_bench.launching.checkpoint_book import CheckpointBook
from fr_bench.launching.launch import run_training
from fr_bench.planning.plan import make_plan
from fr_bench.processes.board import Board
from fr_bench.processes.reporter import Reporter
from fr_bench.records.collector import TrainingClock
from fr_bench.workers.worker import build_modules

# Some hundred steps of a few milliseconds, with epochs that are not evaluated and some that are.
SHORT = ["model=mlp", "model.dropout=0.2", "dataset=digits", "partition=equal", "batch_size=64", "epochs=8"]
SHORT += ["eval_every=6", "log_every=1", "console=off", "wandb.mode=disabled", "threads=1"]


def command(run_dir: Path, *words: str) -> list[str]:
    return ["train", *SHORT, f"run_dir={run_dir}", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def run_until_killed(folder: Path, run_dir: Path, after: int, *words: str) -> tuple[int, str]:
    """Sends SIGKILL once ``after`` more records are there; returns exit code and stderr."""

    def num_records() -> int:
        return len(read_records(run_dir)) if (run_dir / "metrics.jsonl").exists() else 0

    before = num_records()
    program = [sys.executable, "-m", "fr_bench", *command(run_dir, *words)]
    process = subprocess.Popen(program, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment())
    # The resumed run first cuts the file: a file that became shorter counts from there.
    smallest = [before]

    def is_time() -> bool:
        try:
            smallest[0] = min(smallest[0], num_records())
            return process.poll() is not None or num_records() > smallest[0] + after
        except ValueError:  # the last line is being written
            return False

    assert wait_until(is_time, 120)
    process.kill()
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def run_until_stopped(folder: Path, run_dir: Path, after: int, *words: str) -> tuple[int, str]:
    """In this process, which sends itself the signal; see :func:`run_until_killed`."""

    def stop() -> None:
        if wait_until(lambda: (run_dir / "metrics.jsonl").exists() and num_lines() > after, 120):
            os.kill(os.getpid(), signal.SIGTERM)

    def num_lines() -> int:
        return (run_dir / "metrics.jsonl").read_text().count("\n")

    sender = threading.Thread(target=stop)
    sender.start()
    done = call(folder, *command(run_dir, *words))
    sender.join()
    return done.returncode, done.stderr


def test_stopped_and_killed_and_started_again_it_is_the_run_left_alone(tmp_path: Path) -> None:
    """Other methods: test_resume.py in one process, test_torchrun.py, scripts/kill_and_resume.py with many kills. A
    signal to a program of its own: test_faults.py."""
    words = ["method=fr", "k=3", "transport=ipc", "checkpoint.every=20"]
    done = call(tmp_path, *command(tmp_path / "alone", *words))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    code, stderr = run_until_stopped(tmp_path, run, 40, *words)
    assert code == 75 and "stopped by SIGTERM after step " in stderr, stderr
    step = read_manifest(whole_folders(run / "checkpoints")[0])["step"]
    assert f"after step {step}; run_dir={run} goes on after step {step}" in stderr
    assert max(record["step"] for record in read_records(run)) == step
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    code, stderr = run_until_killed(tmp_path, run, 40, *words)
    assert code == -signal.SIGKILL and f"Goes on after step {step} of" in stderr, stderr
    assert json.loads((run / "status.json").read_text())["state"] == "running"
    done = call(tmp_path, *command(run, *words))
    assert done.returncode == 0 and "Goes on after step" in done.stderr, done.stderr
    assert_same_run(tmp_path / "alone", run)


def test_a_second_signal_ends_a_run_that_cannot_finish_its_step(tmp_path: Path) -> None:
    def signal_twice(run: RunDirectory) -> None:
        os.kill(run.module(2), signal.SIGSTOP)  # its neighbours wait for it for ever
        os.kill(os.getpid(), signal.SIGTERM)
        waited.append(not wait_until(lambda: not run.modules(), 2))
        if waited[0]:
            os.kill(os.getpid(), signal.SIGTERM)

    waited: list[bool] = []
    code, stderr = run_here(tmp_path, meanwhile=signal_twice).end()
    assert waited == [True], "one signal was enough"
    assert (code, stderr) == (75, "fr-bench: stopped by SIGTERM; nothing was saved yet\n")


def test_when_the_time_is_up_it_saves_and_ends_and_goes_on_later(tmp_path: Path) -> None:
    """The time is up about when the first step begins: it makes that one, or a few on a busy machine."""
    words = ["method=fr", "k=2", "transport=serial", "epochs=1"]
    done = call(tmp_path, *command(tmp_path / "run", *words, "max_time=0.001"))
    assert done.returncode == 75
    assert re.search(r"stopped by max_time=0.001 \(minutes\) after step 1?\d; run_dir=", done.stderr), done.stderr
    done = call(tmp_path, *command(tmp_path / "run", *words))
    assert done.returncode == 0
    steps = [record["step"] for record in read_records(tmp_path / "run") if record["kind"] == "train"]
    assert steps == list(range(1, 23))


def test_a_launchers_own_handler_is_called_when_all_is_saved(tmp_path: Path) -> None:
    """submitit installs one that puts the job back into the queue."""
    run_dir, found = tmp_path / "run", []

    def requeue(number: int, _: object) -> None:
        found.append((number, json.loads((run_dir / "status.json").read_text())["state"]))

    def send() -> None:
        assert wait_until(lambda: (run_dir / "metrics.jsonl").exists() and read_records(run_dir), 60)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, requeue)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(Interrupted, match="stopped by SIGUSR2 after step"):
            run_training(tiny_config("fr", 1, epochs=100000), run_dir)
    finally:
        sender.join()
        signal.signal(signal.SIGUSR2, before)
    assert found == [(signal.SIGUSR2, "interrupted")] and whole_folders(run_dir / "checkpoints")


def test_a_checkpoint_that_cannot_be_written_does_not_end_training_and_is_told_once(tmp_path: Path) -> None:
    """Files are where two of the folders should be."""
    config = tiny_config("fr", 3, checkpoint={"every": 2, "keep": 9})
    (tmp_path / "checkpoints").mkdir()
    for step in (4, 8):
        folder_of(tmp_path / "checkpoints", step).touch()
    said = train_here(config, tmp_path)
    assert len(said) == 1 and said[0].startswith("the checkpoint after step 4 could not be written (FileExistsError")
    assert read_weights(tmp_path)
    assert [folder.name for folder in whole_folders(tmp_path / "checkpoints")] == ["step_00000010"]


def test_a_full_disk_ends_neither_training_nor_the_checkpoint_before(tmp_path: Path) -> None:
    config = tiny_config("fr", 3, batch_size=40, epochs=6, checkpoint={"every": 1, "keep": 1})
    train_here(config, tmp_path / "alone")
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    # Room for the first, whose history is not yet full, and for the final weights: not for two at once.
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(checkpoints)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        said = train_here(config, tmp_path / "run")
        assert len(said) == 1 and "could not be written" in said[0] and "No space left" in said[0]
        assert_same_run(tmp_path / "alone", tmp_path / "run")
        assert len(whole_folders(checkpoints)) == 1
    finally:
        subprocess.run(["umount", str(checkpoints)], check=True)


@pytest.mark.parametrize("in_processes", [False, True])
def test_the_last_checkpoint_is_whole_or_removed_before_final_weights_are_written(
    in_processes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is too full for it may have room for them."""

    def write_slowly(path: Path, content: bytes | memoryview) -> dict[str, Any]:
        time.sleep(0.05)
        return write_file(path, content)

    monkeypatch.setattr(checkpointer, "write_file", write_slowly)  # in this process
    config = tiny_config("fr", 3, epochs=1, checkpoint={"every": 4, "keep": 1})
    run_processes(config, tmp_path) if in_processes else train_here(config, tmp_path)
    checkpoints = tmp_path / "checkpoints"
    [last] = whole_folders(checkpoints)
    settled_ns = (last / "manifest.json").stat().st_mtime_ns
    weights = sorted((checkpoints / "final").iterdir())
    assert len(weights) == 3 and all(path.stat().st_mtime_ns >= settled_ns for path in weights)


def test_when_a_checkpoint_is_due() -> None:
    interval = Interval(every=10, minutes=2.0, num_steps=95)
    assert [step for step in range(1, 96) if interval.is_due(step, step - 1, 0.0)] == [*range(10, 91, 10), 95]
    assert interval.is_due(14, last_step=9, seconds_since=0.0)  # where not every step has a pause
    assert interval.is_due(20, last_step=10, seconds_since=0.0, is_writing=True)
    assert not interval.is_due(19, last_step=14, seconds_since=119.0)
    assert interval.is_due(19, last_step=14, seconds_since=120.0)
    assert not interval.is_due(19, last_step=14, seconds_since=120.0, is_writing=True)
    assert Interval(every=None, minutes=2.0, num_steps=95).is_due(95, last_step=94, seconds_since=0.0)
    off = Interval(every=None, minutes=None, num_steps=95)
    assert not any(off.is_due(step, 0, 1e9) for step in range(1, 96))


def test_a_checkpoint_has_the_training_time_of_its_step_though_it_is_written_later(tmp_path: Path) -> None:
    (metrics := tmp_path / "metrics.jsonl").touch()
    clock, plan = TrainingClock(2), make_plan(tiny_config("fr", 2))
    book = CheckpointBook(plan, tmp_path, metrics, Board(), clock, print)

    def train(from_ns: int, to_ns: int) -> None:
        clock.begin(from_ns)
        clock.end([1, 2], to_ns)

    folder_of(tmp_path, 4).mkdir(parents=True)
    train(0, 3_000_000_000)
    book.add({"event": "checkpoint_taken", "step": 4, "modules": [1, 2]})
    train(5_000_000_000, 9_000_000_000)
    written = [{"module": k, "files": {}} for k in (1, 2)]
    book.add({"event": "checkpoint_written", "step": 4, "written": written})
    assert json.loads((folder_of(tmp_path, 4) / "manifest.json").read_text())["train_time"] == 3.0
    assert clock.closed_s == 7.0


def test_what_was_copied_stays_while_it_is_written() -> None:
    """Momentum goes on in place meanwhile."""
    (module,) = build_modules(make_plan(tiny_config("bp", 1)), [1])
    x = torch.ones(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        live = module.play(x, 0)
        module.backward(live, loss=live.h.sum())
        module.step(0)

    def momenta(state: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {name: of_one["momentum_buffer"] for name, of_one in state["optimizer"].items()}

    step()
    others: Any = SimpleNamespace(state_dict=dict)
    taken = snapshot.take(module, others, others, None, {})
    before = {name: momentum.clone() for name, momentum in momenta(taken.state).items()}
    step()
    now = momenta(snapshot.take(module, others, others, None, {}).state)
    for name, momentum in momenta(taken.state).items():
        assert torch.equal(momentum, before[name]) and not torch.equal(momentum, now[name])


def test_minutes_count_from_the_last_checkpoint_and_the_next_waits_until_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Iterations of 25 s, a checkpoint a minute; that of step 6 is not written before step 9 is done."""
    now_s, found = [0.0], []
    monkeypatch.setattr("fr_bench.checkpoints.checkpointer.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    board, reporter = Board(), Reporter(ListConnection(), [-1])  # type: ignore[arg-type]
    checkpointer = Checkpointer(board, Interval(None, 1.0, 100), tmp_path, reporter, 0, leads=True)
    for t in range(12):
        now_s[0] += 25
        if t == 9:
            board.settle(6)
        checkpointer.begin(t)
        if checkpointer.pauses_at(t + 1):
            found.append(t + 1)
            if t + 1 != 6:
                board.settle(t + 1)
    assert found == [3, 6, 10]


def test_without_a_thread_to_spare_training_waits_for_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_thread = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("checkpoint"):
            raise RuntimeError("can't start new thread")
        start_thread(thread)

    config = tiny_config("fr", 2, checkpoint={"every": 3})
    train_here(config, tmp_path / "alone")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    train_here(config, tmp_path / "run", cut_off_at=8)
    assert read_manifest(whole_folders(tmp_path / "run" / "checkpoints")[0])["step"] == 6
    train_here(config, tmp_path / "run")
    assert_same_run(tmp_path / "alone", tmp_path / "run")


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_checkpoints_are_kept(keep: int, tmp_path: Path) -> None:
    train_here(tiny_config("fr", 2, checkpoint={"every": 1, "keep": keep}), tmp_path, cut_off_at=9)
    found = [folder.name for folder in whole_folders(tmp_path / "checkpoints")]
    assert found == [f"step_{step:08d}" for step in range(8, 8 - keep, -1)]


def test_all_checkpoints_are_kept_at_the_end_too_where_asked_for(tmp_path: Path) -> None:
    train_here(tiny_config("fr", 2, checkpoint={"every": 3, "keep": None}), tmp_path)
    assert [folder.name[-2:] for folder in whole_folders(tmp_path / "checkpoints")] == ["10", "09", "06", "03"]


@pytest.mark.parametrize("transport", ["serial", "ipc"])
def test_all_that_are_asked_for_by_steps_are_taken_however_slow_the_disk(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("fr", 3, transport, checkpoint={"every": 1, "keep": None})
    if transport == "serial":
        monkeypatch.setattr("fr_bench.checkpoints.checkpointer.sync_folder", lambda folder: time.sleep(0.05))
        train_here(config, tmp_path)
    else:
        run_processes(config, tmp_path)
    assert [read_manifest(folder)["step"] for folder in whole_folders(tmp_path / "checkpoints")] == [*range(10, 0, -1)]


def test_no_gradient_is_kept_for_longer_than_its_checkpoint(tmp_path: Path) -> None:
    train_here(tiny_config("fr", 2, checkpoint={"every": 2, "keep": 9}), tmp_path, cut_off_at=9)
    for step in (2, 4, 6, 8):
        path = folder_of(tmp_path / "checkpoints", step) / state_file(2)
        gradients = torch.load(path, weights_only=True)["gradients"]
        assert [batch for batch, _ in gradients["kept"]] == [step - 1] and gradients["num_sent"] == step


class GoneParent:
    def send(self, event: dict[str, Any]) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize("folder", ["checkpoints", "no/folder"])
def test_a_parent_that_is_gone_meanwhile_makes_no_error_of_a_checkpoint(folder: str, tmp_path: Path) -> None:
    write(tmp_path / folder / "step_00000002", 2, {}, {}, Reporter(GoneParent(), [-1]))


def test_a_module_that_is_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    words = ["checkpoint.every=50", "checkpoint.keep=1"]
    checkpoints = tmp_path / "run" / "checkpoints"
    blocked: list[Path] = []

    def kill_in_a_checkpoint(run: RunDirectory) -> None:
        assert wait_until(lambda: len(whole_folders(checkpoints)) > 0, 60)
        # Whoever opens a pipe for writing waits for a reader: so module 2 hangs in the middle of the next but one.
        first = (run.num_records() // 50 + 2) * 50
        blocked.extend(folder_of(checkpoints, step) for step in range(first, first + 50))
        temporary = f".module_2.safetensors.{run.module(2)}"  # see fr_bench.atomic
        for folder in blocked:
            folder.mkdir()
            os.mkfifo(folder / temporary)
        assert wait_until(lambda: any((folder / "module_3.state.pt").exists() for folder in blocked), 60)
        os.kill(run.module(2), signal.SIGKILL)

    code, stderr = run_here(tmp_path, *words, meanwhile=kill_in_a_checkpoint).end()
    assert code == 1 and stderr.startswith("fr-bench: module 2 was killed by SIGKILL")
    (before,) = whole_folders(checkpoints)
    assert before not in blocked
    step = read_manifest(before)["step"]
    code, stderr = run_here(tmp_path, *words, "max_time=0.001").end()
    assert code == 75 and f"Goes on after step {step} of " in stderr and f"after step {step + 1}; run_dir=" in stderr
    assert [folder.name for folder in checkpoints.iterdir() if folder.is_dir()] == [f"step_{step + 1:08d}"]
