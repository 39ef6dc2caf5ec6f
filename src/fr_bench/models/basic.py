"""ResNets of basic blocks for small images (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
section 4.2): depth 6n + 2, three stages of n blocks. ResNet-110 has 1.73 million parameters on CIFAR-10.

    stem: conv 3x3, 16, norm, ReLU -> n blocks of 16 -> n of 32, half the size -> n of 64, a quarter -> mean, linear

These are the ResNet-56 and ResNet-110 of the papers on DDG and FDG.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fr_bench.errors import ConfigError
from fr_bench.models import Blocks
from fr_bench.models.norms import Residual, check_norm, norm2d, norm_relu, start

WIDTHS = (16, 32, 64)


class BasicBlock(Residual):
    """x [B, C, H, W] -> relu(x + f(x)), f: two 3x3 convolutions with norms, a ReLU between.

    Where the shape changes the shortcut has no parameters (the paper's option A): every second pixel, and zeros for
    the new channels.

    ReLU and the sum work in place on the output of a norm, which needs it not for its backward, or, without norms,
    of the factor; the block's own input is never changed.
    """

    def __init__(self, in_channels: int, width: int, stride: int, norm: str = "batch") -> None:
        super().__init__(norm)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=norm == "none")
        self.norm1 = norm2d(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=norm == "none")
        self.norm2 = norm2d(norm, width)
        self.stride = stride
        self.new_channels = width - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, width, H / stride, W / stride]."""
        branch = self.norm2(self.conv2(norm_relu(self.norm1, self.conv1(x))))
        return self.join(branch, self._shortcut(x)).relu_()

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and not self.new_channels:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class Stem(nn.Module):
    """Images -> [B, 16, H, W]: a 3x3 convolution, norm, ReLU."""

    def __init__(self, in_channels: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=norm == "none")
        self.norm = norm2d(norm, WIDTHS[0])

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return norm_relu(self.norm, self.conv(x))


def resnet(input_shape: Sequence[int], num_classes: int, *, depth: int, norm: str = "batch") -> Blocks:
    """The (depth - 2) / 2 basic blocks, with a stem before and a head behind them.

    Args:
        input_shape: of one image, (channels, height, width).
        num_classes: length of the output.
        depth: 6n + 2.
        norm: batch, group or none; see fr_bench.models.norms.

    Raises:
        ConfigError: another ``depth`` or ``norm``.
    """
    num_blocks, rest = divmod(depth - 2, 6)
    if rest or num_blocks < 1:
        raise ConfigError(f"model.depth={depth}: a ResNet of basic blocks has depth 6n + 2, such as 20, 56 or 110.")
    check_norm(norm)
    channels = WIDTHS[0]
    blocks: Blocks = [("stem", Stem(input_shape[0], norm))]
    for stage, width in enumerate(WIDTHS, start=1):
        for number in range(1, num_blocks + 1):
            stride = 2 if stage > 1 and number == 1 else 1
            blocks.append((f"stage{stage}_block{number}", BasicBlock(channels, width, stride, norm)))
            channels = width
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    return start([*blocks, ("head", head)], norm)
