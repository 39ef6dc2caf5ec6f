"""Models are ordered lists of named blocks; the initial weights depend on the seed alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness import assert_same, run_serial, tiny_config
from torch import nn

from fr_bench.errors import ConfigError
from fr_bench.models import build_blocks
from fr_bench.models.norms import NORMS
from fr_bench.modules.network import Network

CONF = Path(__file__).parents[1] / "conf" / "model"


def build(name: str, seed: int = 0, shape: tuple[int, int, int] = (3, 32, 32), **changes: Any) -> Any:
    return build_blocks(yaml.safe_load((CONF / f"{name}.yaml").read_text()) | changes, shape, 10, seed)


def num_parameters(blocks: list[tuple[str, nn.Module]]) -> int:
    return sum(parameter.numel() for _, block in blocks for parameter in block.parameters())


@pytest.mark.parametrize(
    ("name", "num_blocks", "millions"),
    [
        ("resnet20", 8, 0.22),
        ("resnet110", 38, 1.15),
        ("resnet164", 56, 1.70),  # He et al. 2016, table 4
        ("resnet18", 10, 11.17),
        ("resnet50", 18, 23.52),
        ("resnet101", 35, 42.51),
        ("resnet152", 52, 58.16),
    ],
)
def test_sizes_are_the_published_ones(name: str, num_blocks: int, millions: float) -> None:
    with torch.device("meta"):
        blocks = build(name)
    assert len(blocks) == num_blocks
    assert num_parameters(blocks) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    ("name", "num_blocks", "parameters"),
    [
        ("resnet20_basic", 11, 269_722),
        ("resnet56_basic", 29, 853_018),
        ("resnet110_basic", 56, 1_727_962),  # He et al. 2016, table 6: 0.27, 0.85 and 1.7 million
        ("resnet164_basic", 83, 2_602_906),
    ],
)
def test_basic_blocks_have_the_known_number_of_parameters(name: str, num_blocks: int, parameters: int) -> None:
    with torch.device("meta"):
        blocks = build(name)
    assert len(blocks) == num_blocks and num_parameters(blocks) == parameters


def test_the_wide_resnets_compute_what_torchvisions_do() -> None:
    """Same blocks in the same order: with the weights of torchvision's ResNet-18 the same output."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18(num_classes=10).eval()
    ours = nn.Sequential(*(block for _, block in build("resnet18", stem="imagenet"))).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))


# One of each kind, and what is not among the sizes above: deeper ones are of the same blocks.
@pytest.mark.parametrize("name", ["mlp", "resnet18", "resnet20", "resnet20_basic", "resnet50", "resnet56"])
def test_models_map_images_to_logits(name: str) -> None:
    with torch.device("meta"):
        blocks = build(name, shape=(1, 28, 28))
        assert Network(blocks, seed=0)(torch.empty(2, 1, 28, 28), 0).shape == (2, 10)


def test_the_transformer_sees_no_later_token() -> None:
    blocks = build("transformer", shape=(6,), width=16, heads=2, depth=2)  # type: ignore[arg-type]
    assert [name for name, _ in blocks] == ["embedding", "layer1", "layer2", "head"]
    network = Network(blocks, seed=0)
    tokens = torch.randint(10, (3, 6))
    logits = network(tokens, 0)
    assert logits.shape == (3, 6, 10)
    tokens[:, 4] = (tokens[:, 4] + 1) % 10
    changed = (network(tokens, 0) - logits).abs().amax(dim=(0, 2)) > 1e-4
    assert changed.tolist() == [False] * 4 + [True] * 2


def test_a_layer_of_the_transformer_is_the_formula() -> None:
    """h = x + attention(norm(x)), h + W2 gelu(W1 norm(h)): norms first, and four times the width between."""
    blocks = dict(build("transformer", shape=(6,), width=16, heads=2, depth=1))  # type: ignore[arg-type]
    block = blocks["layer1"]
    layer = block.layer
    x = torch.randn(3, 6, 16)
    normed = layer.norm1(x)
    hidden = torch.triu(torch.ones(6, 6, dtype=torch.bool), diagonal=1)
    h = x + layer.self_attn(normed, normed, normed, attn_mask=hidden, need_weights=False)[0]
    expected = h + layer.linear2(nn.functional.gelu(layer.linear1(layer.norm2(h))))
    assert torch.allclose(block(x), expected, atol=1e-6) and layer.linear1.out_features == 64


@pytest.mark.parametrize(("stem", "size"), [("cifar", 64), ("imagenet", 16)])
def test_the_stem_decides_the_resolution(stem: str, size: int) -> None:
    with torch.device("meta"):
        (_, first), *_ = build("resnet50", stem=stem)
        assert first(torch.empty(1, 3, 64, 64)).shape == (1, 64, size, size)


def test_a_preactivation_block_is_the_papers_formula() -> None:
    """x + W3 relu(norm(W2 relu(norm(W1 relu(norm(x)))))), in float64 without any of the in-place work."""
    name, block = build("resnet20")[2]
    assert name == "stage1_block2"
    block.double()
    x = torch.randn(4, 64, 8, 8, dtype=torch.float64)
    h = block.conv1(torch.relu(block.norm1(x)))
    h = block.conv2(torch.relu(block.norm2(h)))
    h = block.conv3(torch.relu(block.norm3(h)))
    assert torch.equal(block(x), x + h)


def test_a_basic_block_is_the_papers_formula() -> None:
    """relu(s(x) + norm(W2 relu(norm(W1 x)))), where s drops every second pixel and adds channels of zeros."""
    blocks = dict(build("resnet20_basic"))
    x = torch.randn(4, 16, 8, 8, dtype=torch.float64)
    for name, shortcut in (
        ("stage1_block2", x),
        ("stage2_block1", torch.cat([x[:, :, ::2, ::2], torch.zeros(4, 16, 4, 4, dtype=torch.float64)], dim=1)),
    ):
        block = blocks[name].double()
        h = torch.relu(block.norm1(block.conv1(x)))
        h = block.norm2(block.conv2(h))
        assert torch.equal(block(x), torch.relu(h + shortcut))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["resnet20", "resnet20_basic", "resnet18", "mlp"])
def test_no_block_changes_its_input(name: str, norm: str) -> None:
    """The history keeps it, so ReLU and sums in place must be on something else."""
    if (name, norm) == ("resnet18", "none"):
        pytest.skip("refused")
    x = torch.randn(2, 3, 8, 8)
    for block_name, block in build(name, shape=(3, 8, 8), norm=norm):
        before = x.clone()
        with torch.no_grad():  # where autograd would not notice
            h = block(x)
        assert torch.equal(x, before), block_name
        x = h


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("name", ["resnet20", "resnet20_basic", "resnet18", "mlp"])
def test_without_batch_norm_an_image_is_on_its_own(name: str, norm: str) -> None:
    if (name, norm) == ("resnet18", "none"):
        pytest.skip("refused")
    blocks = build(name, shape=(3, 8, 8), norm=norm)
    network = nn.Sequential(*(block for _, block in blocks)).double()
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(network(x)[:2], network(x[:2]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet164", "resnet164_basic"])
def test_without_a_norm_features_and_gradients_keep_their_size(name: str) -> None:
    """However deep: the last block's features are of the first one's size, and so is what comes back to it."""
    (_, stem), *residual, _ = build(name, shape=(3, 16, 16), norm="none")
    x = torch.relu(stem(torch.randn(16, 3, 16, 16))).detach().requires_grad_()
    h = x
    for _, block in residual:
        h = block(h)
    assert 0.1 < h.norm() / x.norm() < 10
    h.backward(torch.randn_like(h) / h.norm())
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for _, block in residual for p in block.parameters())


@pytest.mark.parametrize(("name", "norm"), [("preactivation", "none"), ("basic", "batch"), ("basic", "group")])
def test_a_cut_behind_every_block_changes_no_number(name: str, norm: str, tmp_path: Path) -> None:
    node = {"_target_": f"fr_bench.models.{name}.resnet", "name": name, "depth": 20, "norm": norm}
    k = {"preactivation": 8, "basic": 11}[name]
    whole = run_serial(tiny_config("bp", 1, model=node, epochs=1), tmp_path / "whole")
    cut = run_serial(tiny_config("bp", k, model=node, epochs=1, partition=list(range(1, k))), tmp_path / "cut")
    assert_same(cut, whole)
    assert len(run_serial(tiny_config("fr", k, model=node, partition="auto"), tmp_path / "fr").losses) == 10


@pytest.mark.parametrize("name", ["resnet164", "resnet110_basic", "resnet18"])
def test_initial_convolutions_are_he_et_als_by_fan_out(name: str) -> None:
    layers = [layer for _, block in build(name) for layer in block.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        if layer.weight.numel() > 2000:
            expected = (2 / (layer.out_channels * layer.kernel_size[0] ** 2)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("name", ["resnet20", "resnet20_basic"])
def test_convolutions_have_a_bias_where_no_norm_shifts_what_they_compute(name: str, norm: str) -> None:
    with torch.device("meta"):
        layers = dict(nn.ModuleDict(build(name, norm=norm)).named_modules())
    convolutions = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    assert {name for name, layer in convolutions.items() if layer.bias is not None} == {
        name for name in convolutions if norm == "none" and not name.endswith("shortcut")
    }


def test_a_perceptron_drops_units_behind_each_hidden_layer_and_without_norms_keeps_the_size_of_features() -> None:
    blocks = dict(build("mlp", depth=2, width=256, dropout=0.25, norm="none"))
    for name in ("hidden1", "hidden2"):
        *_, linear, _, _, dropout = blocks[name]
        assert isinstance(dropout, nn.Dropout) and dropout.p == 0.25 and linear.bias is not None
        assert linear.weight.std().item() == pytest.approx((2 / linear.in_features) ** 0.5, rel=0.05)
    assert isinstance(blocks["output"], nn.Linear)


def test_initial_weights_depend_on_the_seed_and_leave_the_random_streams_alone() -> None:
    def drawn() -> list[float]:
        return [torch.rand(()).item(), random.random(), np.random.random()]

    def seed_all() -> None:
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)

    seed_all()
    expected = drawn()
    seed_all()
    first = build("resnet20", seed=1)
    assert drawn() == expected
    again, other = build("resnet20", seed=1), build("resnet20", seed=2)
    weight = "conv2.weight"
    assert torch.equal(first[3][1].get_parameter(weight), again[3][1].get_parameter(weight))
    assert not torch.equal(first[3][1].get_parameter(weight), other[3][1].get_parameter(weight))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("resnet20", {"depth": 21}, r"model\.depth=21: .*9n \+ 2"),
        ("resnet20", {"depth": 2}, r"model\.depth=2"),
        ("resnet50", {"depth": 51}, r"model\.depth=51: must be one of 18, 50"),
        ("resnet50", {"stem": "cfar"}, r"model\.stem=cfar.*Did you mean 'cifar'"),
        ("resnet56_basic", {"depth": 57}, r"model\.depth=57: .*6n \+ 2"),
        ("resnet56", {"norm": "bacth"}, r"model\.norm=bacth: must be one of batch, group, none.*'batch'"),
        ("resnet56_basic", {"norm": "layer"}, r"model\.norm=layer"),
        ("resnet50", {"norm": "none"}, r"model\.norm=none: must be one of batch, group\."),
        ("mlp", {"norm": None}, r"model\.norm=None"),
        ("mlp", {"norm": "group", "width": 20}, r"model\.norm=group: 20 units are no multiple of the 8"),
        ("mlp", {"width": 0}, r"model\.width=0"),
        ("mlp", {"dropout": 1.0}, r"model\.dropout=1\.0"),
    ],
)
def test_impossible_sizes_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, **changes)


class Remembering(nn.Identity):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 0}


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (None, "must return a list"),
        ([], "must return a list"),
        ([nn.Identity()], "it holds Identity"),
        ([("a.b", nn.Identity())], "'a.b' is not a name"),
        ([("a", nn.Identity()), ("a", nn.Identity())], "'a' occurs twice"),
        ([("a", nn.Sequential(Remembering()))], "block 'a' has '0._extra_state' of type dict"),
    ],
)
def test_a_model_that_returns_something_else_is_refused(
    blocks: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiny_models.residual", lambda *_: blocks)
    with pytest.raises(ConfigError, match=message):
        build_blocks({"_target_": "tiny_models.residual", "name": "mine"}, (3, 8, 8), 10, 0)
