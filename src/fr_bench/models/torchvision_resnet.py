"""ResNet-18, 50, 101 and 152 at full width (He et al., CVPR 2016), from torchvision's own residual blocks.

The FR paper trains ResNet101 and ResNet152 on CIFAR: with a stem for small images (3x3, stride 1, no pooling).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fr_bench.errors import ConfigError, nearest
from fr_bench.models import Blocks, initialize
from fr_bench.models.norms import check_norm, group_norm

STAGES: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
STEMS = ("cifar", "imagenet")
NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": group_norm}
WIDTH = 64


def resnet(
    input_shape: Sequence[int], num_classes: int, *, depth: int, stem: str = "cifar", norm: str = "batch"
) -> Blocks:
    """A stem, the residual blocks and a head.

    Args:
        input_shape: of one image, (channels, height, width).
        num_classes: length of the output.
        depth: 18, 50, 101 or 152.
        stem: ``cifar`` (3x3, stride 1) or ``imagenet`` (7x7, stride 2, and a max-pool).
        norm: batch or group; torchvision's blocks do not train without (see fr_bench.models.norms).

    Raises:
        ConfigError: another ``depth``, ``stem`` or ``norm``.
    """
    if depth not in STAGES:
        raise ConfigError(f"model.depth={depth}: must be one of {', '.join(map(str, STAGES))}.")
    if stem not in STEMS:
        raise ConfigError(f"model.stem={stem}: must be one of {', '.join(STEMS)}.{nearest(str(stem), STEMS)}")
    check_norm(norm, tuple(NORMS))
    normalise = NORMS[norm]
    block, stages = STAGES[depth]
    blocks: Blocks = [("stem", _stem(input_shape[0], stem, normalise))]
    channels = WIDTH
    for stage, num_blocks in enumerate(stages, start=1):
        width = WIDTH * 2 ** (stage - 1)
        for number in range(1, num_blocks + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            shortcut = _shortcut(channels, width * block.expansion, stride, normalise)
            residual = block(channels, width, stride, shortcut, norm_layer=normalise)
            blocks.append((f"stage{stage}_block{number}", residual))
            channels = width * block.expansion
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    return initialize([*blocks, ("head", head)])


def _stem(in_channels: int, kind: str, normalise: Callable[[int], nn.Module]) -> nn.Sequential:
    if kind == "cifar":
        first = nn.Conv2d(in_channels, WIDTH, 3, padding=1, bias=False)
        return nn.Sequential(first, normalise(WIDTH), nn.ReLU(inplace=True))
    first = nn.Conv2d(in_channels, WIDTH, 7, stride=2, padding=3, bias=False)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(first, normalise(WIDTH), nn.ReLU(inplace=True), pool)


def _shortcut(
    in_channels: int, out_channels: int, stride: int, normalise: Callable[[int], nn.Module]
) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, normalise(out_channels))
