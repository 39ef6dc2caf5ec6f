"""What must be equal to what, bit for bit: every logged loss, every weight, every batch-norm buffer."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference
import torch
from harness import METHODS, assert_same, run_processes, run_serial, tiny_config

from fr_bench.planning.plan import make_plan

SIMULATIONS = {
    "bp": reference.bp,
    "fr": reference.fr,
    "ddg": reference.ddg,
    "dni": reference.dni,
    "cdni": reference.dni,
    "dgl": reference.dgl,
}


def assert_matches_reference(result, simulated, tolerance: float = 0.0) -> None:
    """Equal losses and weights, exactly unless a tolerance is given."""
    torch.testing.assert_close(result.losses, simulated.losses, rtol=tolerance, atol=tolerance)
    weights = simulated.weights()
    assert result.weights.keys() == weights.keys()
    for name, value in result.weights.items():
        torch.testing.assert_close(value, weights[name], rtol=tolerance, atol=tolerance, msg=f"{name} differs")


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_its_reference_simulation(method: str, k: int, tmp_path: Path) -> None:
    config = tiny_config(method, k)
    assert_matches_reference(run_serial(config, tmp_path), SIMULATIONS[method](config, make_plan(config).cuts))


@pytest.mark.parametrize("method", METHODS)
def test_in_float64_every_method_equals_its_reference_simulation(method: str, tmp_path: Path) -> None:
    config = tiny_config(method, 4, precision="fp64")
    simulated = SIMULATIONS[method](config, make_plan(config).cuts)
    assert_matches_reference(run_serial(config, tmp_path), simulated, tolerance=1e-12)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_bp_over_k_modules_is_bp_in_one(k: int, tmp_path: Path) -> None:
    one = run_serial(tiny_config("bp", 1), tmp_path / "1")
    assert_same(run_serial(tiny_config("bp", k), tmp_path / "k"), one)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_one_module_is_bp(method: str, tmp_path: Path) -> None:
    bp = run_serial(tiny_config("bp", 1), tmp_path / "bp")
    assert_same(run_serial(tiny_config(method, 1), tmp_path / "other"), bp)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_k_processes_compute_what_one_does(method: str, k: int, tmp_path: Path) -> None:
    serial = run_serial(tiny_config(method, k), tmp_path / "serial")
    for transport in ("gloo", "ipc"):
        assert_same(run_processes(tiny_config(method, k, transport), tmp_path / transport), serial)


@pytest.mark.parametrize("transport", ["serial", "gloo", "ipc"])
def test_one_module_in_a_process_of_its_own(transport: str, tmp_path: Path) -> None:
    serial = run_serial(tiny_config("fr", 1), tmp_path / "here")
    assert_same(run_processes(tiny_config("fr", 1, transport), tmp_path / transport), serial)


def test_contiguous_layout_is_exact_too(tmp_path: Path) -> None:
    changes = {"channels_last": False}
    one = run_serial(tiny_config("bp", 1, **changes), tmp_path / "1")
    assert_same(run_serial(tiny_config("bp", 4, **changes), tmp_path / "4"), one)


def test_dropout_draws_the_same_wherever_the_network_is_cut(tmp_path: Path) -> None:
    """That a replay draws what its play drew: test_methods.py."""
    model = {"_target_": "tiny_models.residual", "name": "tiny", "dropout": 0.5}
    bp = run_serial(tiny_config("bp", 1, model=model), tmp_path / "1")
    assert_same(run_serial(tiny_config("bp", 4, model=model), tmp_path / "4"), bp)
    assert_same(run_serial(tiny_config("fr", 1, model=model), tmp_path / "fr1"), bp)


def test_initial_weights_and_data_order_depend_on_the_seed_alone(tmp_path: Path) -> None:
    """With every module frozen, all methods, K and cuts leave the same weights; another seed does not."""
    changes = {"optimizer": {"lr": 0.0, "weight_decay": 0.0}, "epochs": 1}

    def weights(method: str, k: int, **more):
        name = f"{method}{k}{len(list(tmp_path.iterdir()))}"
        result = run_serial(tiny_config(method, k, **changes, **more), tmp_path / name)
        return {name: value for name, value in result.weights.items() if "running" not in name and "num_" not in name}

    first = weights("bp", 1)
    for method, k, more in [("fr", 4, {}), ("ddg", 3, {}), ("fr", 3, {"partition": [1, 3]})]:
        other = weights(method, k, **more)
        assert other.keys() == first.keys()
        assert all(torch.equal(value, first[name]) for name, value in other.items())
    other = weights("bp", 1, seed=4)
    assert not all(torch.equal(value, first[name]) for name, value in other.items())


@pytest.mark.parametrize("method", ["bp", "fr", "ddg", "dni", "dgl"])
def test_where_processes_wait_for_each_other_and_devices_for_messages_all_is_the_same(
    method: str, tmp_path: Path
) -> None:
    """As under nccl, which needs a GPU for each module: see tiny_models.under_nccl. So is a run that goes on."""
    model = {"_target_": "tiny_models.under_nccl", "name": "tiny"}
    serial = run_serial(tiny_config(method, 3), tmp_path / "serial")
    first = tiny_config(method, 3, "gloo", model=model, max_steps=6, checkpoint={"every": 6})
    run_processes(first, tmp_path / "first")
    rest = run_processes(first | {"max_steps": 10, "resume": str(tmp_path / "first")}, tmp_path / "rest")
    assert_same(rest, serial)
