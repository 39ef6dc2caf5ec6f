"""Models: functions that return an ordered list of named blocks, which a run cuts into K modules.

A user's own is any function ``(input_shape, num_classes, **settings) -> [(name, nn.Module), ...]`` that a YAML
names by ``_target_``. Each block maps one tensor to one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fr_bench.components import bind, refusing
from fr_bench.errors import ConfigError
from fr_bench.seeds import derive_seed, streams_of

Blocks = list[tuple[str, nn.Module]]


def build_blocks(config: dict[str, Any], input_shape: Sequence[int], num_classes: int, seed: int) -> Blocks:
    """Calls the model's function; the initial weights depend on ``seed`` alone.

    Args:
        config: the model's node: ``_target_``, ``name`` and the function's own settings.
        input_shape: of one input; of an image (channels, height, width).
        num_classes: length of the last dimension of the last block's output.
        seed: of the run.

    Raises:
        ConfigError: the function refused its settings, or returned something else than named blocks.
    """
    try:
        with streams_of(derive_seed(seed, "initial weights")), refusing("model", config):
            blocks = bind(config)(tuple(input_shape), num_classes)
    except OSError as error:  # of weights, say, that it starts from
        raise ConfigError(f"model: {config['_target_']}: {error}.") from error
    _check_blocks(blocks, str(config["_target_"]))
    return list(blocks)


def initialize(blocks: Blocks, mode: Literal["fan_out", "fan_in"] = "fan_out") -> Blocks:
    """Draws convolution weights as He et al. 2015 do (normal) and returns ``blocks``; all else stays.

    Where weights have a shape alone there is nothing to draw; to pretend took a fifth of the time of planning.
    """
    for _, block in blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
                nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
    return blocks


def _check_blocks(blocks: Any, target: str) -> None:
    wanted = f"model: {target} must return a list of (name, nn.Module) pairs"
    if not isinstance(blocks, list | tuple) or not blocks:
        raise ConfigError(f"{wanted}, not {type(blocks).__name__}.")
    names = set()
    for item in blocks:
        if not (isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[1], nn.Module)):
            raise ConfigError(f"{wanted}; it holds {type(item).__name__}.")
        name = item[0]
        if not isinstance(name, str) or not name or "." in name:
            raise ConfigError(f"{wanted}; {name!r} is not a name (a text without dots).")
        if name in names:
            raise ConfigError(f"{wanted}; the name '{name}' occurs twice, and weights are stored by it.")
        if hasattr(nn.Module(), name):
            raise ConfigError(f"{wanted}; a block cannot be named '{name}', which every nn.Module has already.")
        names.add(name)
        parameters = dict(item[1].named_parameters())
        if any(isinstance(parameter, UninitializedParameter) for parameter in parameters.values()):
            raise ConfigError(f"model: block '{name}' has a lazy layer: give it its size, as nn.Linear(8, 2) has.")
        if any(parameter.is_complex() for parameter in parameters.values()):
            raise ConfigError(f"model: block '{name}' has complex parameters, and a run's weights are real.")
        for key, value in item[1].state_dict().items():
            if not isinstance(value, Tensor):  # of get_extra_state, which may return anything
                raise ConfigError(
                    f"model: block '{name}' has '{key}' of type {type(value).__name__} in its state_dict(), and a run "
                    "saves tensors alone: have get_extra_state return one, or keep it in a buffer."
                )
