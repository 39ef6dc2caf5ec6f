"""From a node of the config, with its ``_target_``, to the function or class it names, checked and bound."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pydoc import ErrorDuringImport, locate
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from fr_bench.errors import ConfigError, FrBenchError, nearest, place_of
from fr_bench.memory_errors import is_out_of_memory


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a node: all but what it calls, and how it is called in folders and plots."""
    return {key: value for key, value in config.items() if key not in ("_target_", "name")}


def bind(config: dict[str, Any]) -> Callable[..., Any]:
    """Returns the node's target with its settings bound; what exists at run time alone is given to the call.

    Raises:
        ConfigError: a setting that is a node with a target of its own, which cannot be called.
    """
    try:
        return instantiate({"_target_": config["_target_"], **settings(config), "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        nodes = {key: value for key, value in settings(config).items() if isinstance(value, dict)}
        whole = [key for key, node in nodes.items() if "_target_" in node and "_partial_" not in node]
        hint = f"; for what is called later, such as an optimizer, {whole[0]} needs `_partial_: true`" if whole else ""
        raise ConfigError(f"{config['_target_']}: {' '.join(str(error).split())}{hint}") from error


@contextmanager
def refusing(key: str, config: dict[str, Any]) -> Iterator[None]:
    """For calls of a node's target: what it raises is a mistake in the config, or in code of the user's own.

    Raises:
        ConfigError: naming the target and where it failed.
        OSError: as it is; it names a file.
    """
    try:
        yield
    except (FrBenchError, OSError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        shown = ", ".join(f"{name}={value!r}" for name, value in settings(config).items())
        raise ConfigError(
            f"{key}: {config['_target_']} cannot be called{f' with {shown}' if shown else ''}: {type(error).__name__}: "
            f"{' '.join(str(error).split())} ({place_of(error)})"
        ) from error


def check_optimizer(config: Any, key: str = "optimizer") -> None:
    """Binds the optimizer's settings to its signature, and lets it check their values on parameters of its own: a
    vector, a matrix and the kernels of a convolution, as a network has them.

    Args:
        config: its node; what else stands there is refused.
        key: where it stands, for messages.

    Raises:
        ConfigError: see :func:`check_callable`; or a value that the optimizer refuses.
    """
    if not isinstance(config, dict):
        raise ConfigError(f"{key}={config}: must have a _target_, such as torch.optim.SGD, and its settings")
    config = {name: value for name, value in config.items() if name != "_partial_"}  # of one inside another node
    check_callable(key, config, ("params",))
    try:
        parameters = [nn.Parameter(torch.zeros([2] * dim)) for dim in (1, 2, 4)]
        optimizer = bind(config)(parameters)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"must make a torch.optim.Optimizer, not {type(optimizer).__name__}")
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    except Exception as error:  # each has its own way of refusing what it is given
        raise ConfigError(f"{key}: {config['_target_']}: {type(error).__name__}: {error}") from error


def check_callable(key: str, config: dict[str, Any], runtime: tuple[str, ...]) -> Any:
    """Binds the config node ``key`` to the signature of its ``_target_`` without calling it; returns the target.

    Args:
        key: the config group, for messages.
        config: the node: ``_target_``, ``name`` and keyword arguments.
        runtime: positional arguments that are added when the object is built.

    Raises:
        ConfigError: an unknown target, an unknown or missing argument, a value that is not of the type that the target
            declares, or one that its own ``check`` refuses.
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
    try:
        signature = inspect.signature(function)
    except ValueError as error:  # some of what is written in C
        raise ConfigError(f"{key}._target_={target}: does not tell its arguments; wrap it in a function") from error
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
    _check_types(key, function, arguments)
    if hasattr(function, "check"):
        _check_arguments_of_check(key, target, function, arguments)
        with refusing(key, config):
            function.check(**arguments)
    return function


def _check_arguments_of_check(key: str, target: str, function: Any, arguments: dict[str, Any]) -> None:
    """Raises ConfigError where a class takes a setting and the ``check`` that it inherited does not."""
    try:
        inspect.signature(function.check).bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"{key}: {target}.check: {error}; give the class a check of its own, a classmethod that takes this setting "
            "and hands the others on to super().check"
        ) from error


def check_method(node: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class that the config's ``method`` names, and its hyper-parameters; nested nodes are built.

    Raises:
        ConfigError: see :func:`check_callable` and :func:`bind`; or a target that is no method.
    """
    method = check_callable("method", node, ("module", "link"))
    if not (isinstance(method, type) and hasattr(method, "policy")):
        raise ConfigError(f"method._target_={node['_target_']}: must be a subclass of fr_bench.methods.base.Method")
    return method, bind(node).keywords  # type: ignore[attr-defined]


# As they are written in a config. Whatever else a signature declares is for the target to check.
IN_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", NoneType: "null"}


def _check_types(key: str, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    try:
        declared = get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    except Exception:  # names that are known to a type checker alone, or no annotations at all
        return
    for name, value in arguments.items():
        hint = declared.get(name)
        types = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if not set(types) <= IN_WORDS.keys():
            continue
        accepted = {*types, int} if float in types else {*types}
        if type(value) not in accepted:
            words = " or ".join(IN_WORDS[each] for each in types)
            shown = value if isinstance(value, str) else json.dumps(value, default=str)
            raise ConfigError(f"{key}.{name}={shown}: must be {words}")
