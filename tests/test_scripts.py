"""The scripts do what their first lines say, on a small problem."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"


def reproduce(folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    small = {"DATASET": "digits", "MODEL": "mlp", "EPOCHS": "1", "SEEDS": "0", "K": "2", "METHODS": "bp fr"}
    environment = {**os.environ, **small, "OUT": str(folder), "FR_BENCH": str(Path(sys.executable).parent / "fr-bench")}
    command = [
        str(SCRIPTS / "reproduce_poster.sh"),
        "transport=serial",
        "batch_size=64",
        "wandb.mode=disabled",
        *settings,
    ]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


def test_the_poster_is_drawn_and_a_finished_run_is_not_run_twice(tmp_path: Path) -> None:
    first = reproduce(tmp_path)
    assert first.returncode == 0, first.stderr
    runs = tmp_path / "runs"
    assert sorted(path.name for path in runs.iterdir()) == ["bp-k2-s0", "fr-k2-s0"]
    assert list((tmp_path / "figures").glob("loss-*.png")) and (tmp_path / "report.md").read_text().count("|") > 10
    before = (runs / "bp-k2-s0" / "status.json").read_bytes()
    # One that was cut off goes on.
    status = runs / "fr-k2-s0" / "status.json"
    status.write_text(status.read_text().replace("finished", "running"))
    second = reproduce(tmp_path)
    assert second.returncode == 0 and second.stderr.count("Goes on after step 22 of 22") == 1, second.stderr
    assert (runs / "bp-k2-s0" / "status.json").read_bytes() == before
    assert '"state": "finished"' in status.read_text()


def test_a_mistake_ends_the_script_at_once(tmp_path: Path) -> None:
    done = reproduce(tmp_path, "optimizer.lrr=1")
    assert done.returncode == 2 and done.stderr.count("unknown key") == 1
