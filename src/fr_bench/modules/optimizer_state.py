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
    made = optimizer.param_groups  # torch puts new ones there, and their tensors, unlike the state's, on no device
    optimizer.load_state_dict(state)
    order = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    for group, new in zip(optimizer.param_groups, made, strict=True):
        group.update({key: _where_it_was(value, new.get(key), order[0][0].device) for key, value in group.items()})
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


def _where_it_was(value: Any, made: Any, device: torch.device) -> Any:
    """A tensor that was saved goes where a new optimizer has ``made`` its own; where it has none yet, to its parameters
    on ``device``, but for a scalar, which may be a counter on the CPU."""
    if not isinstance(value, Tensor):
        return value
    if isinstance(made, Tensor):
        return value.to(made.device)
    return value.to(device) if value.dim() else value
