"""Notices operations that draw from torch's generators, on a device whose tensors have a shape alone, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        """Looks at each operation on its way."""
        self.seen |= _draws(operation, args, kwargs or {})
        return operation(*args, **(kwargs or {}))


def _draws(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether ``operation`` is tagged to draw, and is no attention in which nothing is dropped."""
    if torch.Tag.nondeterministic_seeded not in operation.tags:
        return False
    for index, argument in enumerate(operation._schema.arguments):
        if argument.name == "dropout_p":
            dropout_p = args[index] if index < len(args) else kwargs.get(argument.name, argument.default_value)
            return bool(dropout_p > 0)
    return True
