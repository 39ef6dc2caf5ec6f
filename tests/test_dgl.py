"""DGL, beside what test_exactness.py and others ask of every method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import assert_same, call, run_processes, run_serial, tiny_config
from torch import nn

from fr_bench.errors import RunFailed
from fr_bench.methods.auxiliary import AuxiliaryNetwork
from fr_bench.modules.module import Module
from fr_bench.planning.costs import OperationMeter, network_costs
from fr_bench.planning.plan import make_plan


def test_no_gradient_of_an_input_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But in the rehearsal, of every method, which is over when module 1 has done its part of it."""
    original, found = Module.backward, []

    def backward(module: Module, *arguments, **more):  # type: ignore[no-untyped-def]
        found.append((module.k, original(module, *arguments, **more)))
        return found[-1][1]

    monkeypatch.setattr(Module, "backward", backward)
    run_serial(tiny_config("dgl", 3), tmp_path)
    assert [k for k, _ in found[:6]] == [3, 2, 1, 3, 2, 1] and len(found) == 3 * 11
    assert all(gradient is None for _, gradient in found[3:])


def test_what_stands_above_a_module_is_nothing_to_it(tmp_path: Path) -> None:
    config = tiny_config("dgl", 2, partition=[2])
    two = run_serial(config, tmp_path / "two").weights
    three = run_serial(tiny_config("dgl", 3, partition=[2, 4]), tmp_path / "three").weights
    names = list(two)
    blocks = make_plan(config).block_names[:2]
    first = [name for name in names if name.partition(".")[0] in blocks]
    assert 0 < len(first) < len(names)
    assert all(torch.equal(two[name], three[name]) for name in first)
    assert not all(torch.equal(two[name], three[name]) for name in names)


def test_a_higher_module_learns_from_what_a_lower_one_has_become(tmp_path: Path) -> None:
    learned = run_serial(tiny_config("dgl", 2), tmp_path / "learned")
    frozen = run_serial(tiny_config("dgl", 2, freeze=[1]), tmp_path / "frozen")
    assert learned.losses[0] == frozen.losses[0] and learned.losses[-1] != frozen.losses[-1]


def test_the_auxiliary_network_learns_at_the_rate_of_its_module(tmp_path: Path) -> None:
    twice = run_serial(tiny_config("dgl", 2, module_lr=[2, 1]), tmp_path / "twice")
    half = run_serial(tiny_config("dgl", 2, optimizer={"lr": 0.1}, module_lr=[1, 0.5]), tmp_path / "half")
    assert_same(twice, half)


@pytest.mark.parametrize(
    ("sides", "seen"),
    [((16, 16), (2, 2)), ((32, 16), (2, 2)), ((28, 14), (2, 2)), ((7, 7), (2, 2)), ((4, 8), (1, 2)), ((1, 1), (1, 1))],
)
def test_the_auxiliary_network_sees_features_of_any_size(sides: tuple[int, int], seen: tuple[int, int]) -> None:
    """Without hidden layers it is linear in averages over windows: those of the last may be smaller."""
    network = AuxiliaryNetwork((2, 3, *sides), num_convolutions=0, num_hidden=0, num_classes=5).double()
    h = torch.randn(2, 3, *sides, dtype=torch.float64)

    def averages(h: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        parts = [[c.mean(dim=(2, 3)) for c in r.split(columns, dim=3)] for r in h.split(rows, dim=2)]
        return torch.stack([torch.stack(row, dim=2) for row in parts], dim=2)

    pooled = averages(h, 4, 4)
    pooled = averages(pooled, -(-pooled.shape[2] // 2), -(-pooled.shape[3] // 2))
    assert pooled.shape[2:] == seen
    linear = network.layers[-1]
    torch.testing.assert_close(network(h), pooled.flatten(1) @ linear.weight.T + linear.bias)


def test_the_auxiliary_network_is_the_authors_for_resnet110_in_two_modules() -> None:
    network = AuxiliaryNetwork((128, 32, 16, 16), num_convolutions=3, num_hidden=3, num_classes=10)
    convolutions, perceptron = 3 * (32 * 32 + 2 * 32), 3 * (128 * 128 + 128 + 2 * 128) + 128 * 10 + 10
    assert sum(p.numel() for p in network.parameters()) == convolutions + perceptron
    flat = AuxiliaryNetwork((128, 32), num_convolutions=3, num_hidden=3, num_classes=10)
    assert flat(torch.randn(128, 32)).shape == (128, 10)


def test_one_image_at_a_time_is_refused_with_what_helps(tmp_path: Path) -> None:
    """The perceptron's batch norm has no statistics of one."""
    words = ["train", "debug=fast", "model=resnet20", "dataset=synthetic", "method=dgl", "k=2", "batch_size=1"]
    done = call(tmp_path, *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "method: what it trains beside the model" in done.stderr and "try a larger batch_size" in done.stderr


@pytest.mark.parametrize("transport", ["serial", "ipc"])
def test_what_is_not_finite_spreads_upwards_and_is_blamed_on_the_lowest_module(tmp_path: Path, transport: str) -> None:
    """A learning rate that leaves module 1 with infinite weights: all modules see it in the same step."""
    run = run_processes if transport == "ipc" else run_serial
    with pytest.raises(RunFailed, match="diverged at step") as caught:
        run(tiny_config("dgl", 3, transport, module_lr=[1e38, 1.0, 1.0]), tmp_path)
    assert caught.value.module == 1


def test_its_own_network_costs_a_backward_down_to_the_features() -> None:
    blocks = [("a", nn.Conv2d(3, 4, 3, device="meta")), ("b", nn.Conv2d(4, 4, 3, device="meta"))]
    x = torch.empty(2, 3, 16, 16, device="meta")
    without, with_gradient = (
        network_costs(
            blocks,
            x,
            OperationMeter(),
            lambda h: AuxiliaryNetwork(h.shape, 1, 1, 5).to("meta"),
            companion_gradient=gradient,
        )
        for gradient in (False, True)
    )
    assert without.blocks == with_gradient.blocks
    assert all(0 < a < b for a, b in zip(without.companions, with_gradient.companions, strict=True))


@pytest.mark.parametrize("mistake", ["method.num_hidden=-1", "method.num_convolutions=1.5", "method.num_hidden=true"])
def test_layers_that_cannot_be_are_refused(mistake: str, tmp_path: Path) -> None:
    done = call(tmp_path, "train", "debug=fast", "method=dgl", mistake)
    assert done.returncode == 2 and mistake.lower() in done.stderr.lower() and "an integer" in done.stderr
