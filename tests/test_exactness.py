"""What must be equal to what, bit for bit: every logged loss, every weight, every batch-norm buffer."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference
import torch
from harness import METHODS, assert_same, run_processes, run_serial, run_serial_once, tiny_config

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
def test_every_method_equals_its_reference_simulation(method: str, k: int) -> None:
    """In float64: test_methods.py, label smoothing and what methods measure."""
    config = tiny_config(method, k)
    run = run_serial_once(config)
    assert_matches_reference(run, SIMULATIONS[method](config, run.cuts))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_bp_over_k_modules_is_bp_in_one(k: int) -> None:
    assert_same(run_serial_once(tiny_config("bp", k)), run_serial_once(tiny_config("bp", 1)))


def test_what_has_no_channels_last_is_trained_too(tmp_path: Path) -> None:
    """Weights of five dimensions, as of convolutions over volumes."""
    model = {"_target_": "tiny_models.volumetric", "name": "volumetric"}
    dataset = {"_target_": "tiny_data.volumes", "name": "volumes"}
    one, three = (tiny_config("bp", k, model=model, dataset=dataset) for k in (1, 3))
    assert_same(run_serial(three, tmp_path / "3"), run_serial(one, tmp_path / "1"))


def test_a_gradient_passes_a_cut_in_its_own_layout() -> None:
    """That of the features, which may be another one, would change the last bits of what is computed from it."""
    model = {"_target_": "tiny_models.post_normed", "name": "post_normed"}
    one = run_serial_once(tiny_config("bp", 1, model=model))
    assert_same(run_serial_once(tiny_config("bp", 3, model=model)), one)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "bp"])
def test_every_method_with_one_module_is_bp(method: str) -> None:
    assert_same(run_serial_once(tiny_config(method, 1)), run_serial_once(tiny_config("bp", 1)))


@pytest.mark.parametrize(
    ("method", "at_two", "at_four"),
    [
        ("bp", "ipc", "gloo"), ("fr", "gloo", "ipc"), ("ddg", "gloo", "ipc"),
        ("dni", "gloo", "ipc"), ("cdni", "ipc", "gloo"), ("dgl", "ipc", "gloo"),
    ],
)  # fmt: skip
def test_k_processes_compute_what_one_does(method: str, at_two: str, at_four: str, tmp_path: Path) -> None:
    """Bottom and top alone, and with two between them, so that features are kept the longest where others write into
    the same memory. K = 3: below, and with sigma in test_methods.py."""
    for k, transport in ((2, at_two), (4, at_four)):
        processes = run_processes(tiny_config(method, k, transport), tmp_path / f"{k}")
        assert_same(processes, run_serial_once(tiny_config(method, k)))


@pytest.mark.parametrize("transport", ["serial", "gloo", "ipc"])
def test_one_module_in_a_process_of_its_own(transport: str, tmp_path: Path) -> None:
    assert_same(run_processes(tiny_config("fr", 1, transport), tmp_path), run_serial_once(tiny_config("fr", 1)))


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


def test_what_a_method_draws_depends_on_seed_module_and_batch_alone(tmp_path: Path) -> None:
    """Neither on the other modules of a process, nor on evaluations and diagnostics, nor on where a run was stopped."""
    method = {"_target_": "tiny_methods.Noisy", "name": "noisy"}
    serial = run_serial(tiny_config("bp", 3, method=method), tmp_path / "serial")
    config = tiny_config("bp", 3, "ipc", method=method, diagnostics={"sigma": {"every": 2, "window": 1}})
    run_processes(config | {"max_steps": 6, "checkpoint": {**config["checkpoint"], "every": 6}}, tmp_path / "first")
    assert_same(run_processes(config | {"resume": str(tmp_path / "first")}, tmp_path / "rest"), serial)
    other = run_serial(tiny_config("bp", 3, method=method, seed=4), tmp_path / "other")
    assert other.losses != serial.losses


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


@pytest.mark.parametrize(
    ("method", "goes_on"), [("bp", False), ("fr", True), ("ddg", False), ("dni", True), ("dgl", False)]
)
def test_where_processes_wait_for_each_other_and_devices_for_messages_all_is_the_same(
    method: str, goes_on: bool, tmp_path: Path
) -> None:
    """As under nccl, which needs a GPU for each module: see tiny_models.under_nccl. So is a run that goes on, of the
    methods that have gradients in flight then, each for a reason of its own."""
    model = {"_target_": "tiny_models.under_nccl", "name": "tiny"}
    config = tiny_config(method, 3, "gloo", model=model, checkpoint={"every": 6})
    if goes_on:
        run_processes(config | {"max_steps": 6}, tmp_path / "first")
        config["resume"] = str(tmp_path / "first")
    assert_same(run_processes(config, tmp_path / "rest"), run_serial_once(tiny_config(method, 3)))
