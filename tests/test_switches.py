"""Switches that make a run faster or smaller: each computes the same, to the bit or to a stated tolerance.

For ``compile`` see test_compile.py; what only a GPU has is in gpu/."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import WITHOUT_NORM, Result, assert_close, assert_same, run_serial, run_serial_once, tiny_config

from fr_bench.planning.plan import make_plan
from fr_bench.processes.torch_settings import choose_algorithms, configure_torch
from fr_bench.workers.worker import build_modules


def run(folder: Path, **changes: Any) -> Result:
    return run_serial(tiny_config("fr", 2, **changes), folder)


def test_foreach_changes_no_bit(tmp_path: Path) -> None:
    one, other = (run(tmp_path / str(on), optimizer={"foreach": on}) for on in (False, True))
    assert_same(one, other)


@pytest.mark.parametrize("setting", [{"optimizer": {"fused": True}}, {"channels_last": False}, {"threads": 2}])
def test_what_changes_the_order_of_sums_changes_the_last_bits_alone(setting: dict[str, Any], tmp_path: Path) -> None:
    plain = run_serial_once(tiny_config("fr", 2, precision="fp64"))
    switched = run(tmp_path, precision="fp64", **setting)
    assert_close(switched, plain)


def test_a_process_has_as_many_threads_as_it_is_given() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            configure_torch("cpu", threads, "fp32", deterministic=False)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_under_bf16_losses_are_near_those_in_float32_and_weights_stay_float32(tmp_path: Path) -> None:
    plain, bf16 = (run(tmp_path / precision, precision=precision) for precision in ("fp32", "bf16"))
    assert bf16.losses == pytest.approx(plain.losses, abs=0.1) and bf16.losses != plain.losses
    assert all(value.dtype != torch.bfloat16 for value in bf16.weights.values())


def test_under_bf16_the_loss_is_computed_in_float32() -> None:
    (module,) = build_modules(make_plan(tiny_config("bp", 1, precision="bf16")), [1])
    logits, targets = torch.linspace(-3, 3, 32).view(8, 4).bfloat16(), torch.arange(8) % 4
    expected = F.cross_entropy(logits.float(), targets, reduction="sum") / 8
    assert torch.equal(module.loss_of(logits, targets), expected)


def test_a_run_that_need_not_be_deterministic_does_not_inherit_it(tmp_path: Path) -> None:
    run(tmp_path / "deterministic", deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    run(tmp_path / "not", deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_deterministic_process_is_ready_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        choose_algorithms(False)
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        choose_algorithms(True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(before)


def test_evaluations_have_the_precision_of_the_training() -> None:
    """Of weights that stay as they are, in a model without moving statistics, so that nothing else differs."""
    still = {"optimizer": {"lr": 0.0, "weight_decay": 0.0}, "epochs": 1, "model": WITHOUT_NORM}
    exact, rounded = (run_serial_once(tiny_config("bp", 1, precision=name, **still)) for name in ("fp32", "bf16"))
    (test_loss,), (other,) = ([record["test_loss"] for record in run.of("eval")] for run in (exact, rounded))
    assert other != test_loss and other == pytest.approx(test_loss, rel=0.02)
