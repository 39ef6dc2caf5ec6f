"""Pre-activation bottleneck ResNets for small images (He et al., "Identity Mappings in Deep Residual Networks",
ECCV 2016): depth 9n + 2, three stages of n blocks. ResNet-164 has 1.70 million parameters on CIFAR-10.

    stem: conv 3x3, 16 -> n blocks of 64 -> n of 128, half the size -> n of 256, a quarter -> norm, ReLU, mean, linear
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fr_bench.errors import ConfigError
from fr_bench.models import Blocks
from fr_bench.models.norms import Residual, check_norm, norm2d, norm_relu, start

EXPANSION = 4  # output channels of a bottleneck over its width
WIDTHS = (16, 32, 64)


class PreactivationBottleneck(Residual):
    """x [B, C, H, W] -> x + f(x), f: 1x1 to ``width``, 3x3, 1x1 to 4 ``width``, each behind a norm and ReLU.

    Where the shape changes the shortcut is a 1x1 convolution behind the first norm and ReLU, which both paths share.

    ReLU works in place on the output of a norm, and the sum on the output of a convolution: neither of these needs
    its output for its backward, and the block's own input is never changed.
    """

    def __init__(self, in_channels: int, width: int, stride: int, norm: str = "batch") -> None:
        super().__init__(norm)
        out_channels = EXPANSION * width
        has_bias = norm == "none"
        self.norm1 = norm2d(norm, in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=has_bias)
        self.norm2 = norm2d(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=has_bias)
        self.norm3 = norm2d(norm, width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=has_bias)
        changes_shape = stride != 1 or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 4 width, H / stride, W / stride]."""
        activated = norm_relu(self.norm1, x)
        branch = self.conv1(activated)
        branch = self.conv2(norm_relu(self.norm2, branch))
        branch = self.conv3(norm_relu(self.norm3, branch))
        return self.join(branch, x if self.shortcut is None else self.shortcut(activated))


class Head(nn.Module):
    """[B, C, H, W] -> logits [B, num_classes]: norm, ReLU, mean over the image, linear."""

    def __init__(self, channels: int, num_classes: int, norm: str) -> None:
        super().__init__()
        self.norm = norm2d(norm, channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.linear(norm_relu(self.norm, x).mean(dim=(2, 3)))


def resnet(input_shape: Sequence[int], num_classes: int, *, depth: int, norm: str = "batch") -> Blocks:
    """The (depth - 2) / 3 residual blocks of a pre-activation ResNet, with a stem before and a head behind them.

    Args:
        input_shape: of one image, (channels, height, width).
        num_classes: length of the output.
        depth: 9n + 2.
        norm: batch, group or none; see fr_bench.models.norms.

    Raises:
        ConfigError: another ``depth`` or ``norm``.
    """
    num_blocks, rest = divmod(depth - 2, 9)
    if rest or num_blocks < 1:
        raise ConfigError(f"model.depth={depth}: a bottleneck ResNet has depth 9n + 2, such as 20, 56, 110 or 164.")
    check_norm(norm)
    channels = WIDTHS[0]
    blocks: Blocks = [("stem", nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=norm == "none"))]
    for stage, width in enumerate(WIDTHS, start=1):
        for number in range(1, num_blocks + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            blocks.append((f"stage{stage}_block{number}", PreactivationBottleneck(channels, width, stride, norm)))
            channels = EXPANSION * width
    return start([*blocks, ("head", Head(channels, num_classes, norm))], norm)
