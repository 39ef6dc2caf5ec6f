"""The scripts do what their first lines say, on a small problem."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness import call

SCRIPTS = Path(__file__).parents[1] / "scripts"
PROGRAM = Path(sys.executable).parent / "fr-bench"
WORDS = ["transport=serial", "batch_size=64", "wandb.mode=disabled"]


def reproduce(folder: Path, *settings: str, fr_bench: Path = PROGRAM) -> subprocess.CompletedProcess[str]:
    small = {"DATASET": "digits", "MODEL": "mlp", "EPOCHS": "1", "SEEDS": "0", "K": "2", "METHODS": "bp fr"}
    environment = {**os.environ, **small, "OUT": str(folder), "FR_BENCH": str(fr_bench)}
    command = [str(SCRIPTS / "reproduce_poster.sh"), *WORDS, *settings]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def test_the_poster_is_drawn_and_a_finished_run_is_not_run_twice(tmp_path: Path) -> None:
    """Of the script's two runs one is there and one was cut off. If it asked for others than these they would be
    refused. Its commands are noted, and then called in this process; the next test has it call the program."""
    runs = tmp_path / "runs"
    words = ["train", "experiment=poster_convergence", "dataset=digits", "model=mlp", "epochs=1", "k=2", *WORDS]
    assert call(tmp_path, *words, "method=bp", f"run_dir={runs / 'bp-k2-s0'}").returncode == 0
    assert call(tmp_path, *words, "method=fr", f"run_dir={runs / 'fr-k2-s0'}", "max_time=0.0001").returncode == 75
    before = (runs / "bp-k2-s0" / "status.json").read_bytes()
    noted = tmp_path / "fr-bench"
    noted.write_text(f"#!/bin/sh\n{{ printf '%s\\n' \"$@\"; echo; }} >> '{tmp_path}/commands'\n")
    noted.chmod(0o755)
    done = reproduce(tmp_path, fr_bench=noted)
    assert done.returncode == 0, done.stderr
    commands = [text.splitlines() for text in (tmp_path / "commands").read_text().split("\n\n")[:-1]]
    assert [command[0] for command in commands] == ["train", "train", "plot", "report"]
    called = [call(tmp_path, *command) for command in commands]
    told = "".join(each.stderr for each in called)
    assert [each.returncode for each in called] == [0] * 4 and told.count("Goes on after step 1 of 22") == 1, told
    assert sorted(path.name for path in runs.iterdir()) == ["bp-k2-s0", "fr-k2-s0"]
    assert (runs / "bp-k2-s0" / "status.json").read_bytes() == before
    assert '"state": "finished"' in (runs / "fr-k2-s0" / "status.json").read_text()
    assert list((tmp_path / "figures").glob("loss-*.png")) and (tmp_path / "report.md").read_text().count("|") > 10
    # Nor are its figures drawn from runs with other settings: what is refused ends it, as the next test shows.
    other = call(tmp_path, *words, "method=bp", f"run_dir={runs / 'bp-k2-s0'}", "max_steps=3")
    assert other.returncode == 2 and "max_steps is null there and 3 here" in other.stderr, other.stderr


def test_a_mistake_ends_the_script_at_once(tmp_path: Path) -> None:
    done = reproduce(tmp_path, "optimizer.lrr=1")
    assert done.returncode == 2 and done.stderr.count("unknown key") == 1
