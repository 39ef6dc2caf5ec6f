"""``compile=true`` and ``cuda_graphs=true``: for which runs, and how this process compiles."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fr_bench.errors import ConfigError
from fr_bench.methods.base import Method
from fr_bench.methods.policy import Policy
from fr_bench.modules.passes import DRAWS


def check_compile(config: Mapping[str, Any], method: type[Method], policy: Policy) -> None:
    """Raises ConfigError where ``compile`` cannot be had, on whatever machine."""
    if not config["compile"]:
        return
    name = config["method"]["name"]
    if not method.uses_link:
        raise ConfigError(f"compile=true: the library that method={name} brings runs the blocks itself; use false")
    if policy.weights == "mixed":
        raise ConfigError("compile=true: what method.weights=current mixes is for the compiler to choose; use stashed")
    if policy.recomputes:
        raise ConfigError(
            "compile=true: method.checkpoint_activations recomputes blocks as they are, which a compiled one need not "
            "match; use one of the two"
        )


def check_compiler(config: Mapping[str, Any], devices: Sequence[str]) -> None:
    """Raises ConfigError where this machine lacks what ``compile`` needs to compile for ``devices``."""
    if not config["compile"]:
        return
    if "cpu" in devices and not any(map(shutil.which, [os.environ.get("CXX", "g++"), "clang++"])):
        raise ConfigError("compile=true: on the CPU torch.compile needs a C++ compiler, such as g++; install one")
    # Triton builds what launches its kernels, and takes CC as it is.
    if set(devices) != {"cpu"} and not os.environ.get("CC") and not any(map(shutil.which, ["gcc", "clang"])):
        raise ConfigError("compile=true: on a GPU torch.compile needs a C compiler, such as gcc; install one")


def check_cuda_graphs(config: Mapping[str, Any], method: type[Method], policy: Policy, devices: Sequence[str]) -> None:
    """Raises ConfigError where ``cuda_graphs`` cannot be had, whatever the blocks are."""
    if not config["cuda_graphs"]:
        return
    name = config["method"]["name"]
    if "cpu" in devices:
        raise ConfigError("cuda_graphs=true: a mode of NVIDIA GPUs, and the modules run on the CPU; use false")
    if not method.uses_link:
        raise ConfigError(f"cuda_graphs=true: the library that method={name} brings runs the blocks itself; use false")
    if policy.weights == "mixed":
        raise ConfigError(
            "cuda_graphs=true: method.weights=current mixes activations of one iteration with weights of another, "
            "outside of what autograd checks; use stashed"
        )
    if config["replicas"] > 1:
        raise ConfigError(
            "cuda_graphs=true: replicas send their gradients while a backward runs, which a captured one cannot; "
            "use replicas=1 or false"
        )


def check_captured_blocks(config: Mapping[str, Any], drawing_blocks: Iterable[str]) -> None:
    """Raises ConfigError where ``cuda_graphs`` cannot be had for blocks, here by name, that draw random numbers."""
    name = next(iter(drawing_blocks), None)
    if name is not None and config["cuda_graphs"]:
        raise ConfigError(f"cuda_graphs=true: block '{name}' {DRAWS}")


def configure_compiler() -> None:
    """Sets torch.compile up for blocks that are compiled one by one in a process of several."""
    import torch._dynamo.config
    import torch._inductor.config

    # All blocks of a class share a limit on how often their code is compiled: for every shape and kind of pass.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 2**12
    torch._inductor.config.fallback_random = True  # the same random numbers as without
    torch._inductor.config.compile_threads = 1  # no processes of its own beside those of the modules
