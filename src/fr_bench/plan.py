"""Everything about a run that can be decided, or found wrong, before a process is started."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fr_bench.components import bind, check_callable, check_optimizer, settings
from fr_bench.data import COMMON_KEYS, build_dataset, prepare_dataset
from fr_bench.errors import ConfigError
from fr_bench.models import build_blocks
from fr_bench.network import InPlaceError, Network
from fr_bench.partition import make_cuts, module_slices
from fr_bench.transport.choose import check_precision, choose_transport, module_devices
from fr_bench.transport.ipc import DEPTH

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True)
class Plan:
    """What the parent decided; plain data, handed to every process as it is.

    Attributes:
        config: the resolved config.
        cuts: K-1 block indices.
        block_names: all blocks in order.
        devices: of modules 1..K.
        transport: by name, never ``auto``.
        transport_reason: why this one.
        threads: CPU threads of a module.
        steps_per_epoch: full batches in the training set.
        num_steps: iterations of the whole run.
        input_shape: of one image, (channels, height, width).
        num_classes: of the data set.
        num_train: training images.
        num_evaluation_images: by the name of the set: ``test``, and ``validation`` where there is one.
        num_parameters: of modules 1..K.
        staleness: by module, how old the batch and the weights of a gradient are (see Policy.staleness).
        targets_everywhere: whether modules below the top draw labels too.
    """

    config: dict[str, Any]
    cuts: list[int]
    block_names: list[str]
    devices: list[str]
    transport: str
    transport_reason: str
    threads: int
    steps_per_epoch: int
    num_steps: int
    input_shape: tuple[int, ...]
    num_classes: int
    num_train: int
    num_evaluation_images: dict[str, int]
    num_parameters: list[int]
    staleness: list[dict[str, int]]
    targets_everywhere: bool

    @property
    def k(self) -> int:
        """Number of modules."""
        return len(self.devices)

    @property
    def modules_by_process(self) -> list[list[int]]:
        """The modules of each process: all in one under ``serial``, else one each."""
        modules = list(range(1, self.k + 1))
        return [modules] if self.transport == "serial" else [[k] for k in modules]

    def description(self) -> dict[str, Any]:
        """What config.yaml and W&B say about the plan, beside the config itself."""
        return {
            "cuts": self.cuts,
            "devices": self.devices,
            "transport": self.transport,
            "threads": self.threads,
            "steps_per_epoch": self.steps_per_epoch,
            "num_steps": self.num_steps,
            "num_parameters": self.num_parameters,
            "staleness": self.staleness,
        }


def make_plan(config: dict[str, Any]) -> Plan:
    """Plans the run that ``config`` (resolved, plain) describes. Downloads the data set if it may.

    Raises:
        ConfigError: whatever is wrong with it, naming the key.
    """
    k, batch_size = config["k"], config["batch_size"]
    method = check_callable("method", config["method"], ("module", "link"))
    hyper_parameters = settings(config["method"])
    check_optimizer(config["optimizer"])
    check_callable("schedule", config["schedule"], ())
    bind(config["schedule"])()  # it checks its own values
    check_callable("model", config["model"], ("input_shape", "num_classes"))
    loader = {key: value for key, value in config["dataset"].items() if key not in COMMON_KEYS}
    check_callable("dataset", loader, ())
    prepare_dataset(config["dataset"])
    dataset = build_dataset(config["dataset"])
    num_train = len(dataset.train.labels)
    evaluated = {"test": dataset.test, "validation": dataset.validation}
    if batch_size > num_train:
        raise ConfigError(
            f"batch_size={batch_size}: the training set has {num_train} images, so no full batch ever forms; "
            f"use at most {num_train}"
        )
    with torch.device("meta"):
        blocks = build_blocks(config["model"], dataset.input_shape, dataset.num_classes, config["seed"])
    cuts = make_cuts(config["partition"], len(blocks), k)
    slices = module_slices(cuts, len(blocks))
    boundary_shapes = trace_shapes(blocks, slices, (batch_size, *dataset.input_shape), dataset.num_classes)
    devices = module_devices(config["device"], config["devices"], k)
    check_precision(config["precision"], devices)
    itemsize = DTYPES[config["precision"]].itemsize
    ring_bytes = 2 * DEPTH * itemsize * sum(math.prod(shape) for shape in boundary_shapes)
    transport, reason = choose_transport(config["transport"], devices, ring_bytes)
    steps_per_epoch = num_train // batch_size
    num_steps = config["epochs"] * steps_per_epoch
    if config["max_steps"] is not None:
        num_steps = min(num_steps, config["max_steps"])
    num_parameters = [sum(p.numel() for _, block in blocks[part] for p in block.parameters()) for part in slices]
    if 0 in num_parameters:
        raise ConfigError(
            f"partition={cuts}: module {num_parameters.index(0) + 1} has no parameters to train; move its cuts"
        )
    return Plan(
        config=config,
        cuts=cuts,
        block_names=[name for name, _ in blocks],
        devices=devices,
        transport=transport,
        transport_reason=reason,
        threads=config["threads"] or max(1, (os.cpu_count() or 1) // k),
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        input_shape=tuple(dataset.input_shape),
        num_classes=dataset.num_classes,
        num_train=num_train,
        num_evaluation_images={name: len(split.labels) for name, split in evaluated.items() if split is not None},
        num_parameters=num_parameters,
        staleness=method.policy(**hyper_parameters).staleness(k),
        targets_everywhere=method.needs_targets(**hyper_parameters),
    )


def trace_shapes(
    blocks: Sequence[tuple[str, nn.Module]],
    slices: Sequence[slice],
    input_shape: tuple[int, ...],
    num_classes: int,
) -> list[tuple[int, ...]]:
    """Runs a shape-only forward through the modules and returns the K-1 boundary shapes.

    Raises:
        ConfigError: blocks that do not fit together or to the data, or a module that changes its input in place.
    """
    x: Any = torch.empty(input_shape, device="meta")
    shapes = []
    for k, part in enumerate(slices, start=1):
        try:
            x = Network(blocks[part], seed=0)(x, 0)
        except InPlaceError as error:
            raise ConfigError(f"model: module {k}: {error}") from error
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConfigError(f"model: module {k} cannot run on input {tuple(x.shape)}: {error}") from error
        if not isinstance(x, Tensor):
            raise ConfigError(f"model: module {k} returns {type(x).__name__}; a block maps one tensor to one tensor")
        shapes.append(tuple(x.shape))
    if shapes[-1] != (input_shape[0], num_classes):
        raise ConfigError(f"model: the output has shape {shapes[-1]}, not {(input_shape[0], num_classes)}")
    return shapes[:-1]
