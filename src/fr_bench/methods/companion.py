"""What a module trains beside its own network: DNI's synthesizer, DGL's auxiliary network. Its step and its bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fr_bench.errors import ConfigError
from fr_bench.measuring.saved_tensors import optimizer_state_bytes, state_tensors, tensor_bytes
from fr_bench.modules.learning_rates import LearningRates


def check_features(shape: Sequence[int], what: str) -> None:
    """Raises ConfigError unless ``shape``, batch included, is one that ``what`` is made for."""
    if len(shape) not in (2, 4):
        raise ConfigError(
            f"{what} needs features [B, C] or [B, C, H, W] below a cut, not {list(shape)}: method=fr and method=ddg do "
            "without one; or cut elsewhere, with partition=[...]"
        )


def take_step(optimizer: torch.optim.Optimizer, learning_rates: LearningRates, factor: float) -> None:
    """A step with the gradients at hand, which are gone then, at the rates times ``factor``."""
    learning_rates.scale(factor)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def held_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Weights, statistics and optimizer state."""
    return [*network.state_dict().values(), *state_tensors(optimizer)]


def predicted_bytes(
    network: nn.Module,
    saved: Sequence[Tensor],
    output: Tensor,
    output_is_saved: bool,
    make_optimizer: Callable[..., torch.optim.Optimizer],
) -> int:
    """Of weights, optimizer state and graph.

    Args:
        network: on ``meta``.
        saved: what autograd saved of a pass on ``output``.
        output: h_k.
        output_is_saved: whether the module's own graph saves it, where it counts.
        make_optimizer: parameters -> optimizer.
    """
    weights = [*network.parameters(), *network.buffers()]
    elsewhere = [*weights, output] if output_is_saved else weights
    state_bytes = optimizer_state_bytes(make_optimizer, list(network.parameters()))
    return tensor_bytes(weights) + state_bytes + tensor_bytes(saved, except_for=elsewhere)
