"""An optimizer's state, put back as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Puts back what ``state_dict()`` of an optimizer like this one gave, each tensor with the type that it had: torch
    gives them the parameters', and what NAdam multiplies up is float32 beside parameters of float64, too."""
    optimizer.load_state_dict(state)
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, saved in state["state"].items():
        now = optimizer.state[order[index]]
        for key, value in saved.items():
            if isinstance(value, Tensor) and isinstance(now.get(key), Tensor) and now[key].dtype != value.dtype:
                now[key] = value.to(now[key].device)
