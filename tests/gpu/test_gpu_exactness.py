"""What must be equal to what, bit for bit, on a GPU; on the CPU: test_exactness.py and test_resume.py."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import (
    METHODS,
    assert_close,
    assert_same,
    assert_same_run,
    call,
    run_processes,
    run_serial,
    tiny_config,
    train_here,
)
from test_exactness import SIMULATIONS, assert_matches_reference
from test_methods import GradientLog
from test_replicas import config_of as replicas_config
from test_torchrun import SETTINGS, environment, free_port, torchrun

from fr_bench.planning.plan import make_plan


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_its_reference_simulation(method: str, k: int, gpu: dict[str, Any], tmp_path: Path) -> None:
    """With one module that is a plain loop of PyTorch."""
    config = tiny_config(method, k, **gpu)
    run = run_serial(config, tmp_path)  # first: it sets torch up
    assert_matches_reference(run, SIMULATIONS[method](config, make_plan(config).cuts))


@pytest.mark.parametrize("method", METHODS)
def test_in_float64_every_method_equals_its_reference_simulation(
    method: str, gpu: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(method, 4, precision="fp64", **gpu)
    run = run_serial(config, tmp_path)
    assert_matches_reference(run, SIMULATIONS[method](config, make_plan(config).cuts), tolerance=1e-12)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_bp_over_k_modules_is_bp_in_one(k: int, gpu: dict[str, Any], tmp_path: Path) -> None:
    one = run_serial(tiny_config("bp", 1, **gpu), tmp_path / "1")
    assert_same(run_serial(tiny_config("bp", k, **gpu), tmp_path / "k"), one)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_one_module_is_bp(method: str, gpu: dict[str, Any], tmp_path: Path) -> None:
    bp = run_serial(tiny_config("bp", 1, **gpu), tmp_path / "bp")
    assert_same(run_serial(tiny_config(method, 1, **gpu), tmp_path / "other"), bp)


@pytest.mark.parametrize("transport", ["ipc", "gloo"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_k_processes_compute_what_one_does(
    method: str, k: int, transport: str, gpu: dict[str, Any], tmp_path: Path
) -> None:
    serial = run_serial(tiny_config(method, k, **gpu), tmp_path / "serial")
    assert_same(run_processes(tiny_config(method, k, transport, **gpu), tmp_path / transport), serial)


@pytest.mark.parametrize("method", METHODS)
def test_in_float64_every_method_computes_what_it_does_on_the_cpu(
    method: str, gpu: dict[str, Any], tmp_path: Path
) -> None:
    """There it is compared with a reference that shares no code with it."""
    here = run_serial(tiny_config(method, 4, precision="fp64", **gpu), tmp_path / "here")
    cpu = run_serial(tiny_config(method, 4, precision="fp64", device="cpu"), tmp_path / "cpu")
    assert here.losses == pytest.approx(cpu.losses, abs=1e-10)
    for name, value in cpu.weights.items():
        torch.testing.assert_close(here.weights[name], value, rtol=0, atol=1e-10)


def test_fr_on_weights_that_do_not_move_has_the_gradients_of_bp(
    gpu: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for the batch of K - k iterations ago."""
    log = GradientLog(monkeypatch)
    still: dict[str, Any] = {"optimizer": {"lr": 0.0, "weight_decay": 0.0}, **gpu}
    run_serial(tiny_config("bp", 4, **still), tmp_path / "bp")
    bp, log.gradients = log.gradients, {}
    run_serial(tiny_config("fr", 4, **still), tmp_path / "fr")
    assert len(log.gradients) == 10 + 9 + 8 + 7
    for (k, t), gradients in log.gradients.items():
        assert all(torch.equal(a, b) for a, b in zip(gradients, bp[k, t - (4 - k)], strict=True))


def test_dropout_draws_the_same_in_play_and_replay(gpu: dict[str, Any], tmp_path: Path) -> None:
    model = {"_target_": "tiny_models.residual", "name": "tiny", "dropout": 0.5}
    bp = run_serial(tiny_config("bp", 1, model=model, **gpu), tmp_path / "1")
    assert_same(run_serial(tiny_config("bp", 4, model=model, **gpu), tmp_path / "4"), bp)
    assert_same(run_serial(tiny_config("fr", 1, model=model, **gpu), tmp_path / "fr"), bp)


@pytest.mark.parametrize("of", ["torch", "python", "numpy"])
def test_layers_that_are_dropped_by_a_draw_on_the_host_are_the_same_in_every_pass(
    of: str, gpu: dict[str, Any], tmp_path: Path
) -> None:
    model = {"_target_": "tiny_models.layer_drop", "name": "drop", "of": of}
    bp = run_serial(tiny_config("bp", 1, model=model, **gpu), tmp_path / "1")
    assert_same(run_serial(tiny_config("bp", 4, model=model, **gpu), tmp_path / "4"), bp)
    fr = run_serial(tiny_config("fr", 3, model=model, **gpu), tmp_path / "fr")
    assert_same(run_processes(tiny_config("fr", 3, "ipc", model=model, **gpu), tmp_path / "ipc"), fr)


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_started_again_it_is_the_run_left_alone(method: str, gpu: dict[str, Any], tmp_path: Path) -> None:
    train_here(tiny_config(method, 3, **gpu), tmp_path / "alone")
    train_here(tiny_config(method, 3, **gpu), tmp_path / "run", stop_at=4)
    train_here(tiny_config(method, 3, **gpu), tmp_path / "run")
    assert_same_run(tmp_path / "alone", tmp_path / "run")


def test_graphs_on_weights_without_dimensions_go_on(gpu: dict[str, Any], tmp_path: Path) -> None:
    """A checkpoint leaves such weights, of which DDG keeps copies, on the host."""
    config = tiny_config("ddg", 3, model={"_target_": "tiny_models.partly_frozen", "name": "partly_frozen"}, **gpu)
    train_here(config, tmp_path / "alone")
    train_here(config, tmp_path / "run", stop_at=4)
    train_here(config, tmp_path / "run")
    assert_same_run(tmp_path / "alone", tmp_path / "run")


def test_what_an_optimizer_keeps_by_group_goes_on(gpu: dict[str, Any], tmp_path: Path) -> None:
    """Numbers, and tensors on the GPU."""
    config = tiny_config("fr", 2, optimizer={"_target_": "tiny_models.Counting", "name": "counting", "lr": 0.02}, **gpu)
    train_here(config, tmp_path / "alone")
    train_here(config, tmp_path / "run", stop_at=4)
    train_here(config, tmp_path / "run")
    assert_same_run(tmp_path / "alone", tmp_path / "run")


@pytest.mark.parametrize("transport", ["ipc", "gloo"])
@pytest.mark.parametrize("method", ["bp", "ddg", "dgl", "fr"])
def test_replicas_with_a_part_of_the_batch_are_one_with_all_of_it(
    method: str, transport: str, gpu: dict[str, Any], tmp_path: Path
) -> None:
    """Two replicas of two modules, four processes on the one GPU; but for the order of sums."""
    one = run_processes(replicas_config(method, 2, transport, **gpu), tmp_path / "one")
    two = run_processes(replicas_config(method, 2, transport, replicas=2, **gpu), tmp_path / "two")
    assert_close(two, one, 1e-10)


def test_blocks_that_the_images_of_one_replica_skip_learn_from_those_of_the_other(
    gpu: dict[str, Any], tmp_path: Path
) -> None:
    """Replicas that drift apart end a run at its evaluation."""
    model = {"_target_": "tiny_models.layer_drop", "name": "drop", "of": "torch"}
    config = tiny_config("fr", 2, "gloo", model=model, replicas=2, partition=[3], **gpu)
    assert len(run_processes(config, tmp_path).losses) == 10


def test_modules_that_torchrun_starts_are_those_of_a_run(gpu: dict[str, Any], tmp_path: Path) -> None:
    words = ["k=2", "replicas=2", "method=fr", "epochs=2", "deterministic=true", f"device={gpu['device']}"]
    words += [] if gpu["devices"] is None else ["devices=[0]"]
    one = call(tmp_path, *SETTINGS, *words, "transport=gloo", f"run_dir={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    command = torchrun("--nproc-per-node=4", "--master-addr=127.0.0.1", f"--master-port={free_port()}")
    command += [*words, f"run_dir={tmp_path / 'two'}"]
    two = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)
    assert two.returncode == 0, two.stderr
    assert_same_run(tmp_path / "one", tmp_path / "two")
