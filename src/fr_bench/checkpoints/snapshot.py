"""A module between two iterations as plain data, and back.

What is in flight at such a moment are gradients alone: module k has the features of every iteration that it has
finished, but the gradient that module k + 1 sent down in iteration t may be for iteration t + 1 (FR, DDG and DNI;
not BP). The sender keeps what it sent in iteration t, and both sides count: what was sent and not received is sent
once more when the run goes on.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from fr_bench.methods.base import Method
from fr_bench.modules.meter import LossMeter
from fr_bench.modules.module import Module
from fr_bench.modules.optimizer_state import load_state
from fr_bench.transport.link import ModuleLink


@dataclass(frozen=True)
class Snapshot:
    """Copies on the CPU, which training no longer touches.

    Attributes:
        weights: parameters and buffers, contiguous, by name.
        state: everything else; dicts, lists, tuples, tensors, numbers, strings and None alone.
    """

    weights: dict[str, Tensor]
    state: dict[str, Any]


def take(
    module: Module, method: Method, link: ModuleLink, meter: LossMeter | None, loop: Mapping[str, Any]
) -> Snapshot:
    """Copies all that module ``module.k`` needs to go on exactly.

    Args:
        meter: of module K, None elsewhere.
        loop: the training loop's own numbers.

    Raises:
        TypeError: the method's state or the optimizer's holds something that is not plain data, or see
            :func:`optimizer_state`.
    """
    state = {
        "optimizer": optimizer_state(module),
        "optimizer_groups": optimizer_groups(module),
        "method": method.state_dict(),
        "gradients": link.state_dict(),
        "stopwatch": module.watch.state_dict(),
        "meter": None if meter is None else meter.state_dict(),
        "loop": dict(loop),
    }
    return Snapshot(weights_of(module), plain_copy(state))


def weights_of(module: Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers, contiguous, by name: each has memory of its own, also where two are tied."""
    return {name: to_cpu(value).contiguous() for name, value in module.network.state_dict().items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """What :func:`weights_of` gave, from its file, whatever that is called: safetensors' own function wants a name that
    is text.

    Raises:
        OSError, SafetensorError: it cannot be read, or is damaged.
    """
    return load(path.read_bytes())


def restore(
    module: Module,
    method: Method,
    link: ModuleLink,
    meter: LossMeter | None,
    state: dict[str, Any],
    num_in_flight: int,
) -> None:
    """Puts back what :func:`take` took, except for the weights.

    Args:
        module, method, link, meter: freshly built; the module has its weights already, which a method may use.
        num_in_flight: gradients that the module below still has to receive.
    """
    load_optimizer(module, state["optimizer"], state.get("optimizer_groups"))  # older checkpoints lack them
    method.load_state_dict(state["method"])
    link.load_state_dict(state["gradients"], num_in_flight)
    module.watch.load_state_dict(state["stopwatch"])
    if meter is not None and state["meter"] is not None:
        meter.load_state_dict(state["meter"])


def optimizer_state(module: Module) -> dict[str, dict[str, Any]]:
    """The optimizer's state by the name of the parameter, so that it does not depend on K.

    Raises:
        TypeError: it keeps more, as one does that wraps another, and nothing of it could be put back.
    """
    if not {"state", "param_groups"} <= module.optimizer.state_dict().keys():
        raise TypeError(
            f"state_dict() of the optimizer {type(module.optimizer).__name__} has no 'state' and 'param_groups', as "
            "torch's have, so that a run could not go on from a checkpoint"
        )
    names = {id(parameter): name for name, parameter in module.network.named_parameters()}
    return {names[id(parameter)]: dict(values) for parameter, values in module.optimizer.state.items()}


def optimizer_groups(module: Module) -> list[dict[str, Any]]:
    """What the optimizer keeps by group, but for the parameters and what is no plain data, such as a function: some of
    a user's own count steps there, or estimate a learning rate."""
    found = []
    for group in module.optimizer.param_groups:
        kept: dict[str, Any] = {}
        for key in [key for key in group if key != "params"]:
            with contextlib.suppress(TypeError):
                kept[key] = plain_copy(group[key])
        found.append(kept)
    return found


def load_optimizer(
    module: Module, state: Mapping[str, dict[str, Any]], groups: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """Puts back those entries of ``state`` (by name) that belong to parameters of ``module``, and ``groups``, where the
    module is the one that they are of."""
    names = {id(parameter): name for name, parameter in module.network.named_parameters()}
    order = [parameter for group in module.optimizer.param_groups for parameter in group["params"]]
    by_index = {
        index: state[names[id(parameter)]] for index, parameter in enumerate(order) if names[id(parameter)] in state
    }
    groups_now = module.optimizer.state_dict()["param_groups"]
    if groups is not None:
        groups_now = [{**now, **then} for now, then in zip(groups_now, groups, strict=True)]
    load_state(module.optimizer, {"state": by_index, "param_groups": groups_now})


def to_cpu(tensor: Tensor) -> Tensor:
    """A copy with the same strides: they decide the last bits of what is computed from it."""
    return tensor.detach().to("cpu", copy=True)


def plain_copy(value: Any, name: str = "state") -> Any:
    """Copies nested plain data, tensors onto the CPU.

    Args:
        name: of the value, for messages.

    Raises:
        TypeError: for anything that could only be pickled.
    """
    if isinstance(value, Tensor):
        return to_cpu(value)
    if isinstance(value, Mapping):
        return {key: plain_copy(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        items = [plain_copy(item, f"{name}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{name} is of type {type(value).__name__}, which a checkpoint cannot hold: state_dict() of a method or an "
        "optimizer must be made of tensors, numbers, strings, None, lists, tuples and dicts"
    )


def refuse_unsavable(method: Method) -> None:
    """Makes sure, before a run, that what ``method`` keeps can be in a checkpoint.

    Raises:
        TypeError: its state_dict is none, or has in it what is not plain data.
    """
    name, state = f"{type(method).__name__}.state_dict()", method.state_dict()
    if not isinstance(state, dict):
        raise TypeError(f"{name} must return a dict, not {type(state).__name__}")
    plain_copy(state, name)
