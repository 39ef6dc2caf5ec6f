"""A batch that has a shape alone, run through a run's modules: what of each can be told before anything is built."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from mmap import PAGESIZE
from typing import Any

import torch
from torch import Tensor, nn

from fr_bench.data import SampleSpec
from fr_bench.errors import ConfigError
from fr_bench.models import Blocks, build_blocks
from fr_bench.modules.layout import lay_out
from fr_bench.modules.network import DetachedError, InPlaceError, Network
from fr_bench.planning.costs import CANNOT_RUN, advice_on
from fr_bench.planning.memory_model import ModuleShapes, shape_pass
from fr_bench.planning.partition import module_slices
from fr_bench.transport.ipc import DEPTH, PAGES_BESIDE_SLOTS

# Of weights and images; bf16 is that of the forward pass alone, under autocast.
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


def memory_format_of(config: Mapping[str, Any]) -> torch.memory_format:
    """Of images and convolutions in a run of ``config``."""
    return torch.channels_last if config["channels_last"] else torch.contiguous_format


def blocks_on_meta(config: dict[str, Any], sample: SampleSpec) -> Blocks:
    """The model's blocks with shapes alone, in the run's dtype and memory format.

    Raises:
        ConfigError: a model that cannot be built for such samples.
    """
    arguments = (config["model"], sample.input_shape, sample.num_classes, config["seed"])
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # of what has no effect on shapes alone
            blocks = build_blocks(*arguments)
    except ConfigError:  # a mistake, or what shapes alone cannot do: .item(), or weights that are loaded
        blocks = build_blocks(*arguments)
    try:
        blocks = _without_values(blocks)
    except Exception as error:  # whatever a layer keeps that is no tensor, such as a lock or an open file
        raise ConfigError(
            f"model: the blocks of {config['model']['_target_']} can only be built of values, and cannot be copied "
            f"without: {type(error).__name__}: {error}; leave out what cannot be copied, or give it a __deepcopy__"
        ) from error
    for _, block in blocks:
        block.to(dtype=DTYPES[config["precision"]])
        lay_out(block, memory_format_of(config))
        for layer in block.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.momentum is None:
                layer.momentum = 0.0  # an average over all batches would want to know how many they are
    _check_embeddings(blocks, sample.vocab_size)
    return blocks


def _without_values(blocks: Blocks) -> Blocks:
    """The same with the shapes alone of all tensors; those that are shared stay shared."""
    tensors: dict[int, Tensor] = {}
    for _, block in blocks:
        for layer in block.modules():
            own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False), *vars(layer).values()]
            tensors |= {id(tensor): tensor for tensor in own if isinstance(tensor, Tensor) and not tensor.is_meta}
    if not tensors:
        return blocks
    shapes: dict[int, Any] = {}
    for key, tensor in tensors.items():
        shape = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        shapes[key] = nn.Parameter(shape, tensor.requires_grad) if is_parameter else shape
    return copy.deepcopy(blocks, shapes)


def _check_embeddings(blocks: Blocks, vocab_size: int | None) -> None:
    """Raises ConfigError for tokens that no embedding of the first block knows, which shapes alone do not tell."""
    name, first = blocks[0]
    sizes = [layer.num_embeddings for layer in first.modules() if isinstance(layer, nn.Embedding)]
    if vocab_size is not None and sizes and max(sizes) < vocab_size:
        raise ConfigError(
            f"model: block '{name}' embeds {max(sizes)} tokens, and those of the data set go up to {vocab_size - 1}"
        )


def batch_on_meta(config: dict[str, Any], sample: SampleSpec, num_samples: int | None = None) -> Tensor:
    """A batch that has a shape alone, in the run's dtype and memory format.

    Its layout counts too: flattened in channels_last, images become a copy, which autograd may save.

    Args:
        num_samples: where modules see a part of the run's batch at a time.
    """
    shape = (num_samples or config["batch_size"], *sample.input_shape)
    form = sample.input_format(DTYPES[config["precision"]], memory_format_of(config))
    return torch.empty(shape, device="meta", **form)


def trace_modules(
    config: dict[str, Any],
    blocks: Blocks,
    cuts: Sequence[int],
    x: Tensor,
    sample: SampleSpec,
    device: str,
    sends_gradients: bool = True,
) -> list[ModuleShapes]:
    """Runs ``x``, a batch or a part of one that has a shape alone, through the modules; returns what it tells of each.

    Raises:
        ConfigError: blocks that do not fit together or to the data, a module without parameters, one that changes its
            input in place, or one that no gradient gets through.
    """
    shapes: list[ModuleShapes] = []
    size = len(x)
    _refuse_shared(blocks, cuts)
    for k, part in enumerate(module_slices(cuts, len(blocks)), start=1):
        network = Network(blocks[part], seed=0)
        if not any(p.requires_grad for p in network.parameters()):
            raise ConfigError(f"partition={list(cuts)}: module {k} has no parameters to train; move its cuts")
        try:
            is_top = k == len(cuts) + 1
            shapes.append(shape_pass(network, x, device, input_gradient=sends_gradients and k > 1, is_top=is_top))
        except CANNOT_RUN as error:
            cause = _cause(error, network, x)
            what = "" if isinstance(cause, InPlaceError | DetachedError) else f" cannot run on input {tuple(x.shape)}"
            raise ConfigError(f"model: module {k}{what}: {cause}{advice_on(x)}") from cause
        x = shapes[-1].output
    expected = (size, *sample.label_shape, sample.num_classes)
    if x.shape != expected:
        hint = ""
        if sample.label_shape == (1,):
            hint = "; labels of shape [N, 1] are one at each of 1 places: labels.squeeze(1) makes them one a sample"
        elif sample.label_shape == (sample.num_classes,) and x.shape == (size, sample.num_classes):
            hint = "; labels that are one-hot are numbers of classes by labels.argmax(1)"
        raise ConfigError(f"model: the output has shape {tuple(x.shape)}, not {expected}{hint}")
    return shapes


def _refuse_shared(blocks: Blocks, cuts: Sequence[int]) -> None:
    """Raises ConfigError where a parameter belongs to two modules, each of which would train its own. Or a running
    statistic, which each would move by itself; other buffers mostly stay as they are, such as masks."""
    owners: dict[int, tuple[int, str]] = {}
    for k, part in enumerate(module_slices(cuts, len(blocks)), start=1):
        for name, block in blocks[part]:
            norms = [layer for layer in block.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
            statistics = [buffer for norm in norms for buffer in norm.buffers()]
            for what, tensors in (("parameter", block.parameters()), ("running statistic", statistics)):
                for tensor in tensors:
                    other_k, other = owners.setdefault(id(tensor), (k, name))
                    if other_k != k:
                        raise ConfigError(
                            f"partition={list(cuts)}: blocks '{other}' and '{name}' share a {what}, and are in modules "
                            f"{other_k} and {k}; move the cuts, so that one module has both"
                        )


def _cause(error: Exception, network: Network, x: Tensor) -> Exception:
    """What a pass that ended with ``error`` ends with where ``x`` wants no gradient: of an input that is changed in
    place autograd tells before we can, in words of its own."""
    try:
        with torch.no_grad():
            network(x, 0)
    except CANNOT_RUN as cause:
        return cause
    return error


def ring_bytes(shapes: Sequence[ModuleShapes], sends_gradients: bool) -> int:
    """Shared memory of the rings between modules, in whole pages: one up at every cut, and one down where gradients are
    sent."""
    pages = [DEPTH * math.ceil(module.output_bytes / PAGESIZE) + PAGES_BESIDE_SLOTS for module in shapes[:-1]]
    return (1 + sends_gradients) * PAGESIZE * sum(pages)
