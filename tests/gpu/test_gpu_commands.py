"""What times blocks on a GPU, and what a user is told when one is full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import call
from test_faults import bad_day, run_here

from fr_bench.planning.environment import cpu_model
from fr_bench.planning.measured_costs import cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of what was timed before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def place(gpu: dict[str, Any]) -> list[str]:
    return [f"device={gpu['device']}"] + ([f"devices={gpu['devices']}"] if gpu["devices"] else [])


def words(gpu: dict[str, Any]) -> list[str]:
    return ["train", *place(gpu), "k=2", "model=resnet20", "dataset=synthetic", "batch_size=32", "wandb.mode=disabled"]


def test_a_dry_run_times_the_blocks_on_the_gpu(gpu: dict[str, Any], tmp_path: Path) -> None:
    done = call(tmp_path, *words(gpu), "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "2 modules, cut after block" in done.stdout and "predicted time: " in done.stdout
    name = torch.cuda.get_device_name() if gpu["device"] == "cuda" else cpu_model()
    assert f"from costs of every block, measured on {name}, " in done.stdout
    [path] = cache_folder().iterdir()
    blocks = json.loads(path.read_text())["blocks"]
    assert len(blocks) > 5 and all(min(block["play"], block["forward"], block["backward"]) > 0 for block in blocks)


def test_measured_cuts_are_trained_with(gpu: dict[str, Any], tmp_path: Path) -> None:
    done = call(tmp_path, *words(gpu), "partition=measured", "max_steps=3", "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert len(list(cache_folder().iterdir())) == 1


@pytest.mark.parametrize(("transport", "who"), [("ipc", "module 2"), ("serial", "modules 1 to 3, in one process,")])
def test_a_gpu_that_is_full_in_mid_training_is_told_with_what_lowers_it(
    transport: str, who: str, gpu: dict[str, Any], tmp_path: Path
) -> None:
    run = run_here(tmp_path, "method=ddg", *place(gpu), f"transport={transport}", *bad_day(tmp_path, "torch"))
    code, stderr = run.end()
    assert code == 1 and "Traceback" not in stderr
    device = "cuda:0" if gpu["device"] == "cuda" else "cpu"
    first = stderr.splitlines()[0]
    assert first.startswith(f"fr-bench: {who} ran out of memory in step 18, on {device}: "), stderr
    assert "What lowers it: a batch_size below 64" in stderr
    if gpu["device"] == "cuda":
        assert "CUDA out of memory" in first
    status = run.status()
    assert status["state"] == "failed" and status["error"] in stderr
