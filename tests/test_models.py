"""Models are ordered lists of named blocks; the initial weights depend on the seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from fr_bench.errors import ConfigError
from fr_bench.models import build_blocks
from fr_bench.network import Network

CONF = Path(__file__).parents[1] / "conf" / "model"
NAMES = sorted(file.stem for file in CONF.glob("*.yaml"))


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


def test_the_wide_resnets_compute_what_torchvisions_do() -> None:
    """Same blocks in the same order: with the weights of torchvision's ResNet-18 the same output."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18(num_classes=10).eval()
    ours = nn.Sequential(*(block for _, block in build("resnet18", stem="imagenet"))).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", NAMES)
def test_every_model_maps_images_to_logits(name: str) -> None:
    with torch.device("meta"):
        blocks = build(name, shape=(1, 28, 28))
        assert Network(blocks, seed=0)(torch.empty(2, 1, 28, 28), 0).shape == (2, 10)


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


def test_initial_weights_depend_on_the_seed_and_leave_the_random_stream_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = build("resnet20", seed=1)
    assert torch.equal(torch.rand(3), expected)
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
        ("mlp", {"width": 0}, r"model\.width=0"),
        ("mlp", {"dropout": 1.0}, r"model\.dropout=1\.0"),
    ],
)
def test_impossible_sizes_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, **changes)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (None, "must return a list"),
        ([], "must return a list"),
        ([nn.Identity()], "it holds Identity"),
        ([("a.b", nn.Identity())], "'a.b' is not a name"),
        ([("a", nn.Identity()), ("a", nn.Identity())], "'a' occurs twice"),
    ],
)
def test_a_model_that_returns_something_else_is_refused(
    blocks: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiny_models.residual", lambda *_: blocks)
    with pytest.raises(ConfigError, match=message):
        build_blocks({"_target_": "tiny_models.residual", "name": "mine"}, (3, 8, 8), 10, 0)
