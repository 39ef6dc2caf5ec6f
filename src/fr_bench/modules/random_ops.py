"""Notices operations that draw from torch's generators, on a device whose tensors have a shape alone, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class RandomOps(TorchDispatchMode):
    """A context; ``seen`` tells whether anything inside drew random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(
        self, operation: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Looks at each operation's tags on its way."""
        self.seen |= torch.Tag.nondeterministic_seeded in operation.tags  # type: ignore[attr-defined]
        return operation(*args, **(kwargs or {}))
