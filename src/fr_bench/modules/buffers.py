"""Buffers that passes move, running statistics first of all, and how a pass is kept from moving them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of a batch norm


def batch_norms_of(modules: Iterable[nn.Module]) -> list[_BatchNorm]:
    """The batch norms among ``modules``, those with a forward of their own, too."""
    return [m for m in modules if isinstance(m, _BatchNorm)]


@contextmanager
def still_statistics(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Keeps the running statistics of the batch norms among ``modules`` from moving, without touching them."""
    norms = [norm for norm in batch_norms_of(modules) if norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def unmoved_statistics(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Runs the batch norms among ``modules`` as ever, but leaves their running statistics where they are.

    A recomputation must save the same tensors as the pass that it repeats, the running statistics among them, so
    they are moved by nothing instead of not being moved.
    """
    norms = [norm for norm in batch_norms_of(modules) if norm.track_running_stats]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, counter in before:
        norm.momentum = 0.0
        norm.num_batches_tracked = counter.clone() if counter is not None else None
    try:
        yield
    finally:
        for norm, momentum, counter in before:
            norm.momentum = momentum
            norm.num_batches_tracked = counter


@contextmanager
def repeating(
    statistics: AbstractContextManager[None], began: Mapping[tuple[nn.Module, str], Tensor]
) -> Iterator[None]:
    """For a recomputation, under ``statistics``: other buffers, by owner and name, are what the pass ``began`` with, on
    which what it computed may depend, and afterwards again what they were."""
    now = {(layer, name): layer._buffers[name] for layer, name in began}
    for (layer, name), buffer in began.items():
        layer._buffers[name] = buffer.clone()
    try:
        with statistics:
            yield
    finally:
        for (layer, name), kept in now.items():
            layer._buffers[name] = kept


def is_torchs_batch_norm(layer: nn.Module) -> bool:
    """Whether it moves its statistics if it is to track them, and only then; not so one with a forward of its own."""
    forward = getattr(layer.forward, "__func__", None)
    return forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def holds(copy: Tensor, buffer: Tensor) -> bool:
    """Whether a pass left ``copy`` as it was: ``F.batch_norm`` moves what it is given without a new version."""
    if copy.is_meta:
        return True
    if copy.is_cuda and torch.cuda.is_current_stream_capturing():
        return False  # there nobody can look
    return torch.equal(copy, buffer)
