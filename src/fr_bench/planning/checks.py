"""Whether a method, its replicas and the data of a run fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fr_bench.components import refusing
from fr_bench.data import SampleSpec
from fr_bench.errors import ConfigError
from fr_bench.methods.base import Method
from fr_bench.methods.policy import Policy
from fr_bench.planning.memory_model import ModuleShapes
from fr_bench.transport.side import DTYPES


def what_it_says(method: type[Method], hyper_parameters: dict[str, Any]) -> tuple[Policy, bool]:
    """The method's policy, and whether its modules below the top get labels.

    Raises:
        ConfigError: a user's own cannot say so, or says something else.
    """
    name = f"{method.__module__}.{method.__qualname__}"
    with refusing("method", {"_target_": f"{name}.policy", **hyper_parameters}):
        policy = method.policy(**hyper_parameters)
    if not isinstance(policy, Policy):
        raise ConfigError(f"method: {name}.policy must return a Policy, not {type(policy).__name__}.")
    with refusing("method", {"_target_": f"{name}.needs_targets", **hyper_parameters}):
        return policy, method.needs_targets(**hyper_parameters)


def check_replicas(config: dict[str, Any], replicas: int, method: type[Method]) -> None:
    """Raises ConfigError where ``replicas`` cannot be had with the method, or share the batch."""
    if replicas == 1:
        return
    if not method.uses_link:
        raise ConfigError(
            f"replicas={replicas}: method={config['method']['name']} brings its own way of sharing the work of a "
            "batch; use replicas=1"
        )
    if config["batch_size"] % replicas:
        raise ConfigError(
            f"batch_size={config['batch_size']}: cannot be shared equally by replicas={replicas}; "
            f"use a multiple of {replicas}"
        )


def check_messages(cuts: Sequence[int], shapes: Sequence[ModuleShapes], transport: str) -> None:
    """Raises ConfigError where features between two processes are of a dtype that no message has."""
    for k, module in enumerate(shapes[:-1], start=1):
        if transport != "serial" and module.output.dtype not in DTYPES:
            raise ConfigError(
                f"partition={list(cuts)}: module {k} ends with {str(module.output.dtype).removeprefix('torch.')} "
                "features, which cannot be sent to another process; move the cut (torch.view_as_real makes complex "
                "numbers real), or use transport=serial"
            )


def check_labels(
    config: dict[str, Any], method: type[Method], hyper_parameters: dict[str, Any], sample: SampleSpec
) -> None:
    """Raises ConfigError where modules below the top need one label a sample, and there are more."""
    if sample.label_shape and method.wants_one_label and method.needs_targets(**hyper_parameters):
        raise ConfigError(
            f"method={config['method']['name']}: below the top it learns from one label a sample, and the labels of "
            f"dataset={config['dataset']['name']} are [N, {', '.join(map(str, sample.label_shape))}]"
        )
