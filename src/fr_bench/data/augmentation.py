"""Random crops and flips, different for every image of a batch, computed for the whole batch at once.

torchvision's random transforms draw one set of parameters for a batch, so a batch would have to be taken apart.
Here the pixels of all crops are gathered by index.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fr_bench.errors import ConfigError, nearest
from fr_bench.seeds import derive_seed


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, as by torchvision's RandomCrop and then RandomHorizontalFlip.

    Attributes:
        crop_padding: black pixels put around an image before one of the original size is cut out of it.
        flip: whether half of the images are mirrored left to right.
    """

    crop_padding: int = 0
    flip: bool = False

    @classmethod
    def from_config(cls, config: dict[str, Any] | None) -> Augmentation:
        """From the config's ``dataset.augmentation``; a key that is not there changes nothing.

        Raises:
            ConfigError: names the key, its value and what is allowed.
        """
        names = [field.name for field in fields(cls)]
        if config is not None and not isinstance(config, dict):
            raise ConfigError(f"dataset.augmentation={config}: must hold {' and '.join(names)}, or be null.")
        for key in config or {}:
            if key not in names:
                raise ConfigError(
                    f"dataset.augmentation.{key}: there is only {' and '.join(names)}.{nearest(key, names)}"
                )
        result = cls(**(config or {}))
        padding, flip = result.crop_padding, result.flip
        if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
            raise ConfigError(
                f"dataset.augmentation.crop_padding={padding}: must be a number of pixels, 0 for no crop."
            )
        if not isinstance(flip, bool):
            raise ConfigError(f"dataset.augmentation.flip={flip}: must be true or false.")
        return result

    @property
    def changes_images(self) -> bool:
        """Whether there is anything to do."""
        return self.crop_padding > 0 or self.flip

    def draw(self, seed: int, t: int, num_images: int) -> Tensor:
        """Draws for mini-batch ``t``: int64 [3, num_images] on the CPU, whatever device will use them.

        Rows: top and left corner of the crop in the padded image (0 to 2 crop_padding), and 1 for a flip. The
        stream is keyed by the batch, so that drawing depends on no call before, and moves no other stream.
        """
        generator = torch.Generator().manual_seed(derive_seed(seed, "augmentation", t))
        corners = torch.randint(0, 2 * self.crop_padding + 1, (2, num_images), generator=generator)
        flips = torch.randint(0, 1 + self.flip, (1, num_images), generator=generator)
        return torch.cat((corners, flips))

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Crops and flips ``images``, uint8 [B, C, H, W], by ``draws`` (see :meth:`draw`) on the same device."""
        num_images, channels, height, width = images.shape
        padding = self.crop_padding
        padded = F.pad(images, (padding, padding, padding, padding)).flatten(2)
        top, left, flip = draws.unsqueeze(2)  # each [B, 1]
        rows = top + torch.arange(height, device=images.device)
        x = torch.arange(width, device=images.device)
        columns = left + torch.where(flip == 1, width - 1 - x, x)
        pixels = rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)  # [B, H, W] into a padded plane
        pixels = pixels.view(num_images, 1, -1).expand(-1, channels, -1)
        return padded.gather(2, pixels).view(images.shape)
