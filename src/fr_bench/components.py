"""From a node of the config, with its ``_target_``, to the function or class it names, checked and bound."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pydoc import ErrorDuringImport, locate
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from fr_bench.errors import ConfigError, nearest


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a node: all but what it calls, and how it is called in folders and plots."""
    return {key: value for key, value in config.items() if key not in ("_target_", "name")}


def bind(config: dict[str, Any]) -> Callable[..., Any]:
    """Returns the node's target with its settings bound; what exists at run time alone is given to the call."""
    return instantiate({"_target_": config["_target_"], **settings(config), "_partial_": True}, _convert_="all")


def check_optimizer(config: dict[str, Any]) -> None:
    """Binds the optimizer's settings to its signature, and lets it check their values on a parameter of its own.

    Raises:
        ConfigError: see :func:`check_callable`; or a value that the optimizer refuses.
    """
    check_callable("optimizer", config, ("params",))
    try:
        bind(config)([nn.Parameter(torch.zeros(1))])
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"optimizer: {config['_target_']}: {error}") from error


def check_callable(key: str, config: dict[str, Any], runtime: tuple[str, ...]) -> Any:
    """Binds the config node ``key`` to the signature of its ``_target_`` without calling it; returns the target.

    Args:
        key: the config group, for messages.
        config: the node: ``_target_``, ``name`` and keyword arguments.
        runtime: positional arguments that are added when the object is built.

    Raises:
        ConfigError: an unknown target, an unknown or missing argument, or a value that the target's own
            ``check`` refuses.
    """
    target = config.get("_target_")
    if not target:
        raise ConfigError(f"{key}._target_: missing; it names the function or class to call")
    try:
        function = locate(target)
    except ErrorDuringImport as error:
        raise ConfigError(f"{key}._target_={target}: cannot be imported: {error.value!r}") from error
    if not callable(function):
        raise ConfigError(f"{key}._target_={target}: there is no such function or class (is it on PYTHONPATH?)")
    arguments = settings(config)
    signature = inspect.signature(function)
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in arguments:
        if name not in signature.parameters and not accepts_any:
            allowed = [p for p in signature.parameters if p not in runtime]
            raise ConfigError(
                f"{key}.{name}: {target} takes no such argument; allowed: {', '.join(allowed) or 'none'}."
                + nearest(name, allowed)
            )
    try:
        signature.bind(*runtime, **arguments)
    except TypeError as error:
        raise ConfigError(f"{key}: {target}: {error}") from error
    if hasattr(function, "check"):
        function.check(**arguments)
    return function
