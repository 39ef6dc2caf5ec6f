"""Predicts a module's memory before anything runs: from its method's policy and one pass that has shapes alone.

In terms of the FR paper's Table 1: BP O(L), DNI O(L + K L_s), DDG O(LK + K^2), FR O(L + K^2); here in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fr_bench.measuring.categories import CATEGORIES
from fr_bench.measuring.saved_tensors import SavedTensors, optimizer_state_bytes, tensor_bytes
from fr_bench.methods.base import Method
from fr_bench.modules.loss import loss_sum
from fr_bench.modules.network import Network
from fr_bench.planning.attention import attention_of
from fr_bench.planning.costs import COMPANION, able_to_run
from fr_bench.transport.open import buffer_bytes


@dataclass(frozen=True)
class ModuleShapes:
    """What a shape-only pass tells about one module.

    Attributes:
        weight_bytes: of parameters and buffers.
        parameter_bytes: of the parameters alone.
        graph_bytes: what autograd saves for one batch, without weights and without the module's input.
        saved_input_bytes: of the input, if autograd saves it.
        input_bytes, output_bytes: of the input and output of one batch.
        output: of a batch, on ``meta``.
        output_is_saved: whether autograd saves it.
        parameters: on ``meta``.
        drawing_blocks: names of those that draw random numbers.
        count_checkpointed_bytes: see ``checkpointed_bytes``.
    """

    weight_bytes: int
    parameter_bytes: int
    graph_bytes: int
    saved_input_bytes: int
    input_bytes: int
    output_bytes: int
    output: Tensor
    output_is_saved: bool
    parameters: Sequence[Tensor]
    drawing_blocks: Sequence[str]
    count_checkpointed_bytes: Callable[[], int]

    @cached_property
    def checkpointed_bytes(self) -> int:
        """What is saved with activation checkpointing, and the largest block recomputed. Counted when first asked for:
        it takes two more passes, and hardly a method wants it."""
        return self.count_checkpointed_bytes()


def shape_pass(network: Network, x: Tensor, device: str, input_gradient: bool, is_top: bool) -> ModuleShapes:
    """Runs ``network`` on ``x`` (both on ``meta``) with a graph and returns what it tells.

    Args:
        network, x: as training will run them.
        device: on which it will.
        input_gradient: whether a backward has the gradient of ``x``.
        is_top: whether a loss follows.
    """
    x = x.detach().requires_grad_(input_gradient)
    weights = [*network.parameters(), *network.buffers()]
    with attention_of(device):
        h, saved = _run(network, x, is_top)

    def count_checkpointed_bytes() -> int:
        network.checkpointing = True
        with attention_of(device):
            _, saved_by_block = _run(network, x, is_top)
            network.checkpointing = False
            return tensor_bytes(saved_by_block, except_for=weights) + max(network.block_graph_bytes(x, 0))

    with_input = tensor_bytes(saved, except_for=weights)
    graph_bytes = tensor_bytes(saved, except_for=[*weights, x])
    parameters = list(network.parameters())
    return ModuleShapes(
        weight_bytes=tensor_bytes(weights),
        parameter_bytes=tensor_bytes(parameters),
        graph_bytes=graph_bytes,
        saved_input_bytes=with_input - graph_bytes,
        input_bytes=x.numel() * x.element_size(),
        output_bytes=h.numel() * h.element_size(),
        output=h.detach(),
        output_is_saved=tensor_bytes([h], except_for=saved) == 0,
        parameters=parameters,
        drawing_blocks=network.drawing_blocks,
        count_checkpointed_bytes=count_checkpointed_bytes,
    )


def _run(network: Network, x: Tensor, is_top: bool) -> tuple[Tensor, list[Tensor]]:
    saved = SavedTensors()
    with saved.listen():
        h = network(x, 0)
        if is_top and h.dim() >= 2:
            loss_sum(h, torch.empty(h.shape[:-1], dtype=torch.int64, device=h.device))
    return h, saved.tensors


def predict(
    shapes: ModuleShapes,
    *,
    k: int,
    num_modules: int,
    method: type[Method],
    hyper_parameters: Mapping[str, Any],
    optimizer_of: Any,
    frozen: bool,
    transport: str,
    num_classes: int,
    sums_gradients: bool = False,
) -> dict[str, int]:
    """Bytes by category of :mod:`fr_bench.measuring.categories` for module ``k`` of ``num_modules`` with a full pipe.

    Args:
        shapes: of the module, from such a part of the batch as it sees at a time (see Plan.num_parts).
        k, num_modules: which of how many.
        method, hyper_parameters: as the config names them; nested nodes built.
        optimizer_of: parameters -> optimizer.
        frozen: whether the module never steps.
        transport: by name.
        num_classes: of the data set.
        sums_gradients: whether it has replicas, to whose gradients it adds its own (see fr_bench.transport.replicas).
    """
    policy = method.policy(**hyper_parameters)
    kept = policy.kept_batches(k, num_modules)
    is_lower = k < num_modules
    replays = is_lower and policy.keeps == "inputs"
    num_graphs = policy.num_graphs(k, num_modules)
    graph_bytes = shapes.graph_bytes + (0 if replays else shapes.saved_input_bytes)
    trainable = [p for p in shapes.parameters if p.requires_grad]
    found = {
        "parameters": shapes.weight_bytes,
        "gradients": sum(p.numel() * p.element_size() for p in trainable),
        "optimizer": 0 if frozen else optimizer_state_bytes(optimizer_of, trainable),
        "history": kept * shapes.input_bytes if replays else 0,
        "activations": shapes.checkpointed_bytes if policy.recomputes else num_graphs * graph_bytes,
        "stash": kept * shapes.parameter_bytes if is_lower and policy.weights == "stale" else 0,
        "synthesizer": 0,
        "buffers": buffer_bytes(
            transport, k, num_modules, shapes.input_bytes, shapes.output_bytes, method.sends_gradients
        ),
    }
    if sums_gradients:
        found["buffers"] += found["gradients"]
    if is_lower:
        with able_to_run(COMPANION, shapes.output):
            more = method.predict_memory(
                shapes.output, shapes.output_is_saved, num_classes, optimizer_of, **hyper_parameters
            )
        for category, num_bytes in more.items():
            found[category] += num_bytes
    if method.plays_itself:
        found |= _of_a_pipeline(shapes, num_graphs, policy.num_microbatches, k, num_modules)
    return {category: found[category] for category in CATEGORIES}


def _of_a_pipeline(
    shapes: ModuleShapes, num_graphs: int, num_microbatches: int, k: int, num_modules: int
) -> dict[str, int]:
    """What a module of torch's pipelines holds; ``shapes`` are those of a micro-batch.

    It receives features and gradients of every micro-batch into memory of their own, and keeps what it sent until it
    has back-propagated. Module 1 saves views of one tensor, the images of the whole batch.
    """
    below, above = k > 1, k < num_modules
    kept = shapes.graph_bytes + (0 if shapes.output_is_saved else shapes.output_bytes)
    images = 0 if below else num_microbatches * shapes.saved_input_bytes
    return {
        "activations": num_graphs * kept + images,
        "buffers": num_microbatches * (shapes.input_bytes * below + shapes.output_bytes * above),
    }


def unpredictable(config: Mapping[str, Any]) -> str | None:
    """Why the activations of a run cannot be told from a pass that has shapes alone; None if they can."""
    if config["precision"] == "bf16":
        return "under bf16, which saves casts that a pass of shapes alone does not see"
    if config["compile"]:
        return "with compile=true: what a compiled block saves is for the compiler to choose"
    return None
