"""What one sample of a data set is like, without its values: enough to build a model for it and to time it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SampleSpec:
    """Sizes and kinds.

    Attributes:
        input_shape: of an image (channels, height, width).
        num_classes: labels are 0 to num_classes - 1.
        vocab_size: inputs are integers from 0 to vocab_size - 1; None of images and floats.
        label_shape: () where a sample has one label.
        is_image: whether inputs are uint8 images, to be augmented and normalised.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    vocab_size: int | None = None
    label_shape: tuple[int, ...] = ()
    is_image: bool = True

    def input_format(self, dtype: torch.dtype, memory_format: torch.memory_format) -> dict[str, Any]:
        """``dtype`` and ``memory_format`` of a batch of inputs in a run that computes in these."""
        if self.vocab_size is not None:
            return {"dtype": torch.int64, "memory_format": torch.contiguous_format}
        has_channels = len(self.input_shape) == 3
        return {"dtype": dtype, "memory_format": memory_format if has_channels else torch.contiguous_format}

    def noise(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Made-up inputs [num_samples, *input_shape], as a model gets them: int64 or float32, on the CPU."""
        shape = (num_samples, *self.input_shape)
        if self.vocab_size is not None:
            return torch.randint(self.vocab_size, shape, generator=generator)
        return torch.randn(shape, generator=generator)
