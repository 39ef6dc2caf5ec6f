"""A run directory without room left; checkpoints are in test_checkpoints.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from harness import read_records, tiny_config
from test_faults import run_here

from fr_bench.errors import RunFailed
from fr_bench.launching.launch import run_training
from fr_bench.measuring.profiling import record_profile
from fr_bench.records.sinks import JsonLinesSink
from fr_bench.sweeps.outcomes import Outcome, OutcomeLog


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with these options and returns its folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    mounted = []

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("a tmpfs cannot be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for each in mounted:
        subprocess.run(["umount", "--lazy", str(each)], check=True)


def test_a_disk_that_fills_up_ends_the_run_with_what_was_logged_readable(
    small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = small_disk("size=64k")
    run = run_here(tmp_path)
    code, stderr = run.end()
    assert code == 1 and stderr.count("\n") == 1
    assert stderr.startswith(f"fr-bench: {folder / 'metrics.jsonl'}: cannot be written (No space left on device). ")
    assert len(run.records()) > 50  # all of them whole
    status = run.status()
    assert (status["state"], status["exit_code"]) == ("failed", 1) and "No space left" in status["error"]


def test_a_summary_that_cannot_be_written_fails_a_run_that_was_trained(small_disk: Callable[[str], Path]) -> None:
    # The folder, status, config, environment, metrics, log, two folders and the final weights: not one file more.
    folder = small_disk("nr_inodes=9")
    with pytest.raises(RunFailed, match=rf"{folder / 'summary.json'}: cannot be written \(No space left on device\)"):
        run_training(tiny_config("bp", 1), folder)
    assert [record["step"] for record in read_records(folder) if record["kind"] == "train"] == list(range(1, 11))
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 1) and "summary.json" in status["error"]


def test_final_weights_that_cannot_be_written_are_named(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("nr_inodes=8")  # one less
    path = folder / "checkpoints" / "final" / "module_1.safetensors"
    with pytest.raises(
        RunFailed, match=rf"{path}: cannot be written \(No space left on device\). Training is complete"
    ):
        run_training(tiny_config("bp", 1), folder)
    assert json.loads((folder / "status.json").read_text())["module"] == 1


def test_what_is_no_want_of_room_is_not_told_as_one(tmp_path: Path) -> None:
    """A file stands where the folder is to be."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "final").touch()
    path = tmp_path / "run" / "checkpoints" / "final" / "module_1.safetensors"
    with pytest.raises(RunFailed) as caught:
        run_training(tiny_config("bp", 1), tmp_path / "run")
    assert caught.value.module == 1 and str(caught.value) == (
        f"{path}: cannot be written (File exists). Training is complete; once it can be, the same command goes on "
        "from the last checkpoint"
    )


def test_a_sweep_without_room_for_its_outcomes_goes_on_and_knows_them(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("size=8k")
    log = OutcomeLog(folder, 9)
    outcomes = [Outcome(number, ["x" * 1500], str(folder), state="finished") for number in range(9)]
    for outcome in outcomes:
        log.add(outcome)
    assert log.read() == outcomes and "did not run" not in log.table()
    assert log.news() == outcomes and log.news() == []
    lines = (folder / "jobs.jsonl").read_text().splitlines()
    assert 0 < len(lines) < 9 and all(json.loads(line) for line in lines)
    with (folder / "jobs.jsonl").open("a") as file:
        file.write('{"number": 9, "overr')  # what an older version may have left
    assert log.read() == outcomes


def test_news_of_a_sweep_whose_disk_was_full_for_a_while_are_told_once(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("size=8k")
    log, elsewhere = OutcomeLog(folder), OutcomeLog(folder)
    (folder / "filling").write_bytes(bytes(4096))
    first, kept_out, last = (Outcome(number, ["x" * 2500], str(folder), state="finished") for number in range(3))
    log.add(first)
    log.add(kept_out)
    assert len((folder / "jobs.jsonl").read_text().splitlines()) == 1 and log.news() == [first, kept_out]
    (folder / "filling").unlink()
    elsewhere.add(last)
    assert log.news() == [last] and log.news() == [] and log.read() == [first, kept_out, last]


def test_before_the_first_step_too(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("nr_inodes=2")
    with pytest.raises(RunFailed, match=rf"{folder / 'config.yaml'}: cannot be written"):
        run_training(tiny_config("bp", 1), folder)
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"


def test_a_profile_for_which_there_is_no_room_leaves_what_there_is_to_others(
    small_disk: Callable[[str], Path],
) -> None:
    folder = small_disk("size=64k")
    (folder / "profile_1.json").write_text('{"traceEvents": []}')  # of an earlier attempt
    with record_profile(on_gpu=False) as recording:
        for _ in range(500):
            torch.ones(3).sum()
    with pytest.raises(OSError, match="No space left on device"):
        recording.write(folder / "profile_1.json")
    assert list(folder.iterdir()) == []


def test_a_record_is_written_whole_or_not_at_all(small_disk: Callable[[str], Path]) -> None:
    path = small_disk("size=8k") / "metrics.jsonl"
    sink = JsonLinesSink(path)
    record = {"kind": "train", "step": 1, "text": "x" * 3000}
    with pytest.raises(RunFailed, match="cannot be written"):
        for _ in range(9):
            sink.write(record)
    sink.finish(None, 1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [record, record]
