"""The synthesizer M_k of DNI: predicts the error gradient of h_k from h_k and, for cDNI, the label.

After Jaderberg et al. 2017, appendix: hidden 5x5 convolutions with batch norm and ReLU, then a linear 5x5
convolution that starts at zero, so that the first synthetic gradients are zero. Where h_k has no spatial
dimensions the convolutions become linear layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fr_bench.methods.companion import check_features


class Synthesizer(nn.Module):
    """h [B, C, H, W] or [B, C], and labels [B] if conditional -> a gradient of h's shape.

    Args:
        shape: of h, including the batch dimension.
        num_hidden: hidden layers.
        hidden_channels: their width.
        kernel_size: odd; unused without spatial dimensions.
        num_classes: for cDNI the labels enter as that many constant one-hot planes beside h; 0 for plain DNI.
    """

    def __init__(
        self, shape: Sequence[int], num_hidden: int, hidden_channels: int, kernel_size: int, num_classes: int = 0
    ) -> None:
        super().__init__()
        check_features(shape, "a synthesizer")
        self.num_classes = num_classes
        spatial = len(shape) == 4
        layers: list[nn.Module] = []
        channels = shape[1] + num_classes
        for _ in range(num_hidden):
            if spatial:
                padding = kernel_size // 2
                layers.append(nn.Conv2d(channels, hidden_channels, kernel_size, padding=padding, bias=False))
                layers.append(nn.BatchNorm2d(hidden_channels))
            else:
                layers += [nn.Linear(channels, hidden_channels, bias=False), nn.BatchNorm1d(hidden_channels)]
            layers.append(nn.ReLU())
            channels = hidden_channels
        self.hidden = nn.Sequential(*layers)
        self.output: nn.Conv2d | nn.Linear = (
            nn.Conv2d(channels, shape[1], kernel_size, padding=kernel_size // 2)
            if spatial
            else nn.Linear(channels, shape[1])
        )
        nn.init.zeros_(self.output.weight)
        assert self.output.bias is not None
        nn.init.zeros_(self.output.bias)

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predicts the gradient."""
        if self.num_classes:
            assert labels is not None
            classes = torch.arange(self.num_classes, device=labels.device)
            planes = (labels[:, None] == classes).to(h.dtype)  # one_hot() would look at the values
            if h.dim() == 4:
                planes = planes[:, :, None, None].expand(-1, -1, *h.shape[2:])
            h = torch.cat((h, planes), dim=1)
        return self.output(self.hidden(h))
