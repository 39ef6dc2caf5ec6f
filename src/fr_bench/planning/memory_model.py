"""Predicts a module's memory before anything runs: from its method's policy and one pass that has shapes alone.

In terms of the FR paper's Table 1: BP O(L), DNI O(L + K L_s), DDG O(LK + K^2), FR O(L + K^2); here in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fr_bench.components import refusing
from fr_bench.errors import ConfigError
from fr_bench.measuring.categories import CATEGORIES
from fr_bench.measuring.saved_tensors import SavedTensors, optimizer_state_bytes, tensor_bytes
from fr_bench.methods.base import Method
from fr_bench.methods.policy import Policy
from fr_bench.modules.loss import loss_sum
from fr_bench.modules.network import Network
from fr_bench.planning.attention import attention_of
from fr_bench.planning.batch_norm import BatchNormByShape
from fr_bench.planning.costs import COMPANION, able_to_run
from fr_bench.seeds import derive_seed, streams_of
from fr_bench.transport.open import buffer_bytes

# Of torch's pipelines: since 2.15 a message is received into new memory, which goes with it, and let go of once it has
# been sent. Before, memory for the messages of all micro-batches was kept, and what was sent until its backward. Stands
# here and not in fr_bench.modules.pipelining because to import that takes every command two seconds.
LETS_GO = torch.__version__ >= "2.15"


@dataclass(frozen=True)
class ModuleShapes:
    """What a shape-only pass tells about one module.

    Attributes:
        weight_bytes: of parameters and buffers.
        parameter_bytes: of the parameters alone.
        graph_bytes: what autograd saves for one batch, without weights and without the module's input.
        saved_input_bytes: of the input, if autograd saves it.
        saved_label_bytes: of the labels, which are among what is saved where a loss follows.
        input_bytes, output_bytes: of the input and output of one batch.
        output: of a batch, on ``meta``.
        output_is_saved: whether autograd saves it.
        parameters: on ``meta``.
        drawing_blocks: names of those that draw random numbers.
        checkpointed_bytes: counts what is saved with activation checkpointing, and the largest block recomputed. It
            takes two more passes, and hardly a method wants it.
        unreached_blocks: names of those that no gradient reaches, see :meth:`Network.unreached_blocks`.
    """

    weight_bytes: int
    parameter_bytes: int
    graph_bytes: int
    saved_input_bytes: int
    saved_label_bytes: int
    input_bytes: int
    output_bytes: int
    output: Tensor
    output_is_saved: bool
    parameters: Sequence[Tensor]
    drawing_blocks: Sequence[str]
    checkpointed_bytes: Callable[[], int]
    unreached_blocks: Sequence[str] = ()

    @property
    def trainable(self) -> list[Tensor]:
        """Those of the parameters that learn."""
        return [p for p in self.parameters if p.requires_grad]


def shape_pass(network: Network, x: Tensor, device: str, input_gradient: bool, is_top: bool) -> ModuleShapes:
    """Runs ``network`` on ``x`` (both on ``meta``) with a graph and returns what it tells.

    Args:
        network, x: as training will run them.
        device: on which it will.
        input_gradient: whether a backward has the gradient of ``x``.
        is_top: whether a loss follows.

    Raises:
        DetachedError: no gradient would get through it.
    """
    x = x.detach().requires_grad_(input_gradient)
    weights = [*network.parameters(), *network.buffers()]
    with attention_of(device), streams_of(derive_seed("shapes")):  # a block may draw which of its layers it skips
        h, saved, labels = _run(network, x, is_top)
        network.check_connected(x, h)
        unreached = network.unreached_blocks(x, h)

    @cache
    def checkpointed_bytes() -> int:
        network.checkpointing = True
        with attention_of(device), streams_of(derive_seed("shapes")):
            _, saved_by_block, _ = _run(network, x, is_top)
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
        saved_label_bytes=graph_bytes - tensor_bytes(saved, except_for=[*weights, x, *labels]),
        input_bytes=x.numel() * x.element_size(),
        output_bytes=h.numel() * h.element_size(),
        output=h.detach(),
        output_is_saved=tensor_bytes([h], except_for=saved) == 0,
        parameters=parameters,
        drawing_blocks=network.drawing_blocks,
        checkpointed_bytes=checkpointed_bytes,
        unreached_blocks=unreached,
    )


def _run(network: Network, x: Tensor, is_top: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Output, what autograd saves, and the labels of the loss, if one follows."""
    saved = SavedTensors()
    labels: list[Tensor] = []
    with saved.listen(), BatchNormByShape():
        h = network(x, 0)
        if is_top and h.dim() >= 2:
            labels.append(torch.empty(h.shape[:-1], dtype=torch.int64, device=h.device))
            loss_sum(h, labels[0])
    return h, saved.tensors, labels


@dataclass(frozen=True)
class MemoryModel:
    """Predicts the memory of the modules of one run, with a full pipe.

    Attributes:
        num_modules: K.
        method, hyper_parameters: as the config names them; nested nodes built.
        optimizer_of: parameters -> optimizer.
        transport: by name.
        num_classes: of the data set.
        sums_gradients: whether modules have replicas, to whose gradients they add their own (see
            fr_bench.transport.replicas).
    """

    num_modules: int
    method: type[Method]
    hyper_parameters: Mapping[str, Any]
    optimizer_of: Any
    transport: str
    num_classes: int
    sums_gradients: bool = False

    def predict(self, shapes: ModuleShapes, k: int, frozen: bool) -> dict[str, int]:
        """Bytes of module ``k`` by category of :mod:`fr_bench.measuring.categories`.

        Args:
            shapes: of the module, from such a part of the batch as it sees at a time (see Plan.num_parts).
            frozen: whether it never steps.
        """
        found = dict.fromkeys(CATEGORIES, 0) | self.held(shapes, k)
        if not frozen:
            found["optimizer"] = self.optimizer_bytes(shapes)
        if k < self.num_modules:
            for category, num_bytes in self.beside(shapes).items():
                found[category] += num_bytes
        return found

    def held(self, shapes: ModuleShapes, k: int) -> dict[str, int]:
        """What the method's policy tells: all but the optimizer's state and what is trained beside the model."""
        policy, num_modules = self.method.policy(**self.hyper_parameters), self.num_modules
        kept = policy.kept_batches(k, num_modules)
        is_lower = k < num_modules
        replays = is_lower and policy.keeps == "inputs"
        num_graphs = policy.num_graphs(k, num_modules)
        graph_bytes = shapes.graph_bytes + (0 if replays else shapes.saved_input_bytes)
        found = {
            "parameters": shapes.weight_bytes,
            "gradients": sum(p.numel() * p.element_size() for p in shapes.trainable),
            "history": kept * shapes.input_bytes if replays else 0,
            "activations": shapes.checkpointed_bytes() if policy.recomputes else num_graphs * graph_bytes,
            "stash": kept * shapes.parameter_bytes if is_lower and policy.weights == "stale" else 0,
            "buffers": buffer_bytes(
                self.transport, k, num_modules, shapes.input_bytes, shapes.output_bytes, self.method.sends_gradients
            ),
        }
        if self.sums_gradients:
            found["buffers"] += found["gradients"]
        if self.method.plays_itself:
            found |= _of_a_pipeline(shapes, policy, num_graphs, k, num_modules)
        return found

    def optimizer_bytes(self, shapes: ModuleShapes) -> int:
        """State of the optimizer."""
        return optimizer_state_bytes(self.optimizer_of, shapes.trainable)

    def beside(self, shapes: ModuleShapes) -> dict[str, int]:
        """What the method trains beside the model, at the output of a module below the top.

        Raises:
            ConfigError: it cannot run there, or counts what nobody knows.
        """
        name = f"{self.method.__module__}.{self.method.__qualname__}.predict_memory"
        with refusing("method", {"_target_": name, **self.hyper_parameters}), able_to_run(COMPANION, shapes.output):
            found = self.method.predict_memory(
                shapes.output, shapes.output_is_saved, self.num_classes, self.optimizer_of, **self.hyper_parameters
            )
        if not isinstance(found, dict):
            raise ConfigError(f"method: {name} must return bytes by category, not {type(found).__name__}.")
        if unknown := sorted(found.keys() - {*CATEGORIES}):
            raise ConfigError(
                f"method: {self.method.__qualname__}.predict_memory: '{unknown[0]}' is no category of memory; "
                f"known are {', '.join(CATEGORIES)}."
            )
        return found


def _of_a_pipeline(shapes: ModuleShapes, policy: Policy, num_graphs: int, k: int, num_modules: int) -> dict[str, int]:
    """What a module of torch's pipelines holds; ``shapes`` are those of a micro-batch.

    Module 1 saves views of one tensor, the images of the whole batch, and module K of its labels: however few
    micro-batches they are of, all of that tensor stays.
    """
    below, above = k > 1, k < num_modules
    num_microbatches = policy.num_microbatches
    graph_bytes = shapes.graph_bytes - shapes.saved_label_bytes
    unsaved_output_bytes = 0 if shapes.output_is_saved else shapes.output_bytes
    of_the_batch = shapes.saved_label_bytes + (0 if below else shapes.saved_input_bytes)
    num_inputs, num_outputs, num_gradients = num_microbatches, num_graphs, num_microbatches
    if LETS_GO:
        num_inputs = num_graphs if above else num_microbatches  # the losses, which stay, end in those of module K
        if policy.keeps == "few micro-batches":
            num_outputs = min(num_graphs, 2)  # one is on its way up while the next is computed
        num_gradients = 0 if unsaved_output_bytes else 1  # it comes once messages have left that were no smaller
    return {
        "activations": num_graphs * graph_bytes + num_outputs * unsaved_output_bytes + num_microbatches * of_the_batch,
        "buffers": num_inputs * shapes.input_bytes * below + num_gradients * shapes.output_bytes * above,
    }


def unpredictable(config: Mapping[str, Any]) -> str | None:
    """Why the activations of a run cannot be told from a pass that has shapes alone; None if they can."""
    if config["precision"] == "bf16":
        return "under bf16, which saves casts that a pass of shapes alone does not see"
    if config["compile"]:
        return "with compile=true: what a compiled block saves is for the compiler to choose"
    return None
