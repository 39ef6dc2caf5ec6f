"""An optimizer's state, put back as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Puts back what ``state_dict()`` of an optimizer like this one gave, each tensor with the type that it had: torch
    gives them the parameters', and what NAdam multiplies up is float32 beside parameters of float64, too. NAdam keeps
    that on the host, and reads it in every step: on the parameters' device, where torch puts it, it would be waited
    for."""
    optimizer.load_state_dict(state)
    order = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    for index, saved in state["state"].items():
        parameter, group = order[index]
        now = optimizer.state[parameter]
        for key, value in saved.items():
            if not isinstance(value, Tensor) or not isinstance(now.get(key), Tensor):
                continue
            if key == "mu_product" and not group.get("capturable"):
                now[key] = value.cpu()
            elif now[key].dtype != value.dtype:
                now[key] = value.to(now[key].device)
