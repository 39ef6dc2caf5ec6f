"""The auxiliary network of DGL: what a module below the top says of the classes, from its own output.

After Belilovsky, Eickenberg and Oyallon, ICML 2020, as their public code has it for ResNets: average pooling that
divides the sides by four, convolutions of 1x1 with batch norm and ReLU, average pooling to 2x2, and a perceptron with
batch norm and ReLU. Here windows do not overlap: where the sides cannot be divided by them the last window is smaller.
Without spatial dimensions the perceptron alone is left.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fr_bench.methods.companion import check_features

SIDE = 2  # of what the perceptron sees
REDUCTION = 4  # of the sides, before anything else


class AuxiliaryNetwork(nn.Module):
    """h [B, C, H, W] or [B, C] -> logits [B, classes].

    Args:
        shape: of h, including the batch dimension.
        num_convolutions: of 1x1, as wide as h.
        num_hidden: hidden layers of the perceptron, as wide as its input.
        num_classes: of the data set.
    """

    def __init__(self, shape: Sequence[int], num_convolutions: int, num_hidden: int, num_classes: int) -> None:
        super().__init__()
        check_features(shape, "an auxiliary network")
        channels = width = shape[1]
        layers: list[nn.Module] = []
        if len(shape) == 4:
            layers.append(_pool(REDUCTION))
            for _ in range(num_convolutions):
                layers += [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            sides = [-(-side // REDUCTION) for side in shape[2:]]
            windows = [-(-side // SIDE) for side in sides]
            layers += [_pool(windows), nn.Flatten()]
            for side, window in zip(sides, windows, strict=True):
                width *= -(-side // window)
        for _ in range(num_hidden):
            layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits; ``labels`` are not looked at."""
        return self.layers(h)


def _pool(windows: int | Sequence[int]) -> nn.AvgPool2d:
    """Not adaptive: torch has no deterministic backward of that on a GPU."""
    size = windows if isinstance(windows, int) else tuple(windows)
    return nn.AvgPool2d(size, ceil_mode=True)  # type: ignore[arg-type]  # its stub has no pairs
