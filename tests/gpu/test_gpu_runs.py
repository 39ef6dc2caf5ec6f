"""Precision, memory and waiting on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import METHODS, Result, run_processes, run_serial, tiny_config, train_here

from fr_bench.measuring.categories import CATEGORIES
from fr_bench.modules.module import BatchResult
from fr_bench.training.trainer import Trainer

WIDE = {"_target_": "fr_bench.models.preactivation.resnet", "name": "resnet20", "depth": 20}


def assert_near(one: Result, other: Result, tolerance: float) -> None:
    assert one.losses == pytest.approx(other.losses, abs=tolerance)


@pytest.mark.parametrize(
    ("setting", "tolerance"),
    [
        ({"precision": "bf16"}, 0.1),
        ({"optimizer": {"fused": True}}, 1e-4),
        ({"channels_last": False}, 1e-4),
        ({"compile": True}, 1e-4),
    ],
)
def test_a_switch_computes_the_same(
    setting: dict[str, Any], tolerance: float, gpu: dict[str, Any], tmp_path: Path
) -> None:
    plain = run_serial(tiny_config("fr", 2, **gpu), tmp_path / "plain")
    assert_near(run_serial(tiny_config("fr", 2, **(gpu | setting)), tmp_path / "switched"), plain, tolerance)


def test_tf32_computes_nearly_the_same(cuda: dict[str, Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": WIDE, "optimizer": {"lr": 0.001}, **cuda}  # at 0.05 any rounding grows to 0.1
    plain = run_serial(tiny_config("fr", 2, **settings), tmp_path / "plain")
    tf32 = run_serial(tiny_config("fr", 2, precision="tf32", **settings), tmp_path / "tf32")
    assert_near(tf32, plain, 0.01)
    assert tf32.losses != plain.losses, "the switch does nothing"


@pytest.mark.parametrize("method", ["bp", "fr", "ddg"])
def test_the_account_is_as_predicted_and_below_the_peak(method: str, gpu: dict[str, Any], tmp_path: Path) -> None:
    run = run_processes(tiny_config(method, 2, "ipc", model=WIDE, epochs=1, **gpu), tmp_path)
    assert len(run.of("memory")) == 2
    for account in run.of("memory"):
        for category in CATEGORIES:
            assert account[category] == pytest.approx(account[f"predicted_{category}"], rel=0.05), category
        held = sum(account[category] for category in ("parameters", "optimizer", "history", "stash"))
        assert account["peak"] > held > 0


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_checkpointed_activations_lower_the_peak(cuda_graphs: bool, cuda: dict[str, Any], tmp_path: Path) -> None:
    """That of the passes before training, and of captured ones, too."""
    images = {"height": 32, "width": 32, "num_train": 2 * 64, "num_test": 64}
    changes: dict[str, Any] = {"model": {**WIDE, "depth": 56}, "batch_size": 64, "cuda_graphs": cuda_graphs, **cuda}
    accounts = []
    for checkpoint in (False, True):
        method = METHODS["bp"] | {"checkpoint_activations": checkpoint}
        run = run_processes(tiny_config("bp", 1, dataset=images, method=method, **changes), tmp_path / str(checkpoint))
        accounts.append(run.of("memory")[-1])
    plain, less = accounts
    saved = plain["activations"] - less["activations"]
    assert saved > 2**28 and plain["peak"] - less["peak"] > 0.5 * saved


def test_modules_that_share_a_gpu_have_times_but_no_waiting_and_no_efficiency(
    cuda: dict[str, Any], tmp_path: Path
) -> None:
    times = run_processes(tiny_config("fr", 2, "ipc", **cuda), tmp_path).of("time")
    assert times and not any("wait_s" in record or "efficiency" in record for record in times)
    assert all(record["play_s"] > 0 and record["learn_s"] > 0 and record["send_s"] > 0 for record in times)


def test_the_spans_of_an_iteration_add_up_to_its_time(cuda: dict[str, Any], tmp_path: Path) -> None:
    """As one module has the device for itself and does one thing after the other."""
    images = {"height": 32, "width": 32, "num_train": 20 * 256, "num_test": 256}
    changes: dict[str, Any] = {"model": WIDE, "batch_size": 256, "log_every": 100, "deterministic": False}
    times = run_serial(tiny_config("bp", 1, dataset=images, **(cuda | changes)), tmp_path).of("time")
    assert len(times) == 2
    for record in times:
        spans_s = record["play_s"] + record["learn_s"] + record["send_s"]
        assert 0.8 * record["wall_s"] <= spans_s <= 1.05 * record["wall_s"]
        assert record["wait_s"] == 0


def test_a_profile_says_how_busy_the_gpu_was(cuda: dict[str, Any], tmp_path: Path) -> None:
    images = {"height": 32, "width": 32, "num_train": 20 * 256, "num_test": 256}
    changes: dict[str, Any] = {"model": WIDE, "batch_size": 256, "log_every": 100, "deterministic": False, "profile": 3}
    run = run_serial(tiny_config("bp", 1, dataset=images, **(cuda | changes)), tmp_path)
    (profiled,) = run.of("profile")
    assert profiled["iterations"] == 3 and profiled["num_kernels"] > 100
    assert 0 < profiled["busy_s"] <= 1.1 * run.of("time")[-1]["wall_s"]
    assert list(tmp_path.glob("profile_1.json*"))


@pytest.fixture
def num_iterations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many there were in this process; in each of them torch raises where it would wait for the device."""
    iterate, number = Trainer._iterate, [0]

    def watched(self: Trainer, t: int) -> BatchResult | None:
        number[0] += 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            return iterate(self, t)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_iterate", watched)
    return number


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_no_iteration_waits_for_the_device(
    method: str, cuda_graphs: bool, cuda: dict[str, Any], num_iterations: list[int], tmp_path: Path
) -> None:
    """As torch sees it; on the CPU: test_host_sync.py."""
    changes = cuda | {"deterministic": False, "cuda_graphs": cuda_graphs}
    run_serial(tiny_config(method, 3, log_every=4, clip_norm=1.0, **changes), tmp_path)
    assert num_iterations == [10]


@pytest.mark.parametrize("method", ["ddg", "dgl"])
def test_nor_does_one_of_a_run_that_goes_on(
    method: str, cuda: dict[str, Any], num_iterations: list[int], tmp_path: Path
) -> None:
    """With an optimizer that reads some of its state in every step."""
    optimizer = {"_target_": "torch.optim.NAdam", "name": "nadam", "lr": 0.01}
    config = tiny_config(method, 3, optimizer=optimizer, **(cuda | {"deterministic": False}))
    train_here(config, tmp_path, stop_at=4)
    train_here(config, tmp_path)
    assert num_iterations == [10]
