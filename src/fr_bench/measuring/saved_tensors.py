"""Counts bytes storage by storage: of what autograd saves for a backward, and of an optimizer's state."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor


class SavedTensors:
    """Remembers the tensors that autograd saves while :meth:`listen` is active.

    Works on real tensors and on ``meta`` ones, which have sizes but no memory: the same code measures and predicts.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Graphs built inside save what they always save; it is remembered as long as this object lives."""

        def pack(tensor: Tensor) -> Tensor:
            # Not the tensor itself: an output that its own graph holds would keep that graph for ever.
            alias = tensor.detach()
            self.tensors.append(alias)
            return alias

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


Held = Literal["activations", "buffers"]


class PeakOfSaved:
    """The most bytes that autograd's saved tensors, and what else is held, have at once while :meth:`listen` is active.

    For graphs that are built and used up inside. Each storage counts once, as what it was held for first, those of
    ``except_for`` not at all.

    Attributes:
        num_bytes: at the moment when they were most, by what they are for.
    """

    def __init__(self, except_for: Iterable[Tensor]) -> None:
        self.num_bytes: dict[Held, int] = {"activations": 0, "buffers": 0}
        self._now_bytes = dict(self.num_bytes)
        self._num_holders: Counter[int] = Counter()  # by storage
        self._kinds: dict[int, Held] = {}  # by storage
        self._excluded = {_identity(tensor) for tensor in except_for}

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Counts what is saved inside from when it is saved to when its graph lets go of it."""

        def pack(tensor: Tensor) -> Tensor:
            alias = tensor.detach()  # an object that only the graph holds: its end is the end of the saving
            self.hold(alias)
            return alias

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    def hold(self, tensor: Tensor, kind: Held = "activations") -> None:
        """Counts the storage of ``tensor`` as long as this very object lives."""
        key, num_bytes = _identity(tensor), tensor.untyped_storage().nbytes()
        if key in self._excluded:
            return
        if not self._num_holders[key]:
            self._kinds[key] = kind
            self._now_bytes[kind] += num_bytes
            if sum(self._now_bytes.values()) > sum(self.num_bytes.values()):
                self.num_bytes = dict(self._now_bytes)
        self._num_holders[key] += 1
        weakref.finalize(tensor, self._let_go, key, num_bytes)

    def _let_go(self, key: int, num_bytes: int) -> None:
        self._num_holders[key] -= 1
        if not self._num_holders[key]:
            self._now_bytes[self._kinds[key]] -= num_bytes


def tensor_bytes(tensors: Iterable[Tensor], except_for: Iterable[Tensor] = ()) -> int:
    """Bytes of the storages of ``tensors``, each once, without those of ``except_for``, which count elsewhere."""
    excluded = {_identity(tensor) for tensor in except_for}
    storages = {_identity(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(num_bytes for key, num_bytes in storages.items() if key not in excluded)


def state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that ``optimizer`` keeps from step to step, such as momentum."""
    return [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, Tensor)]


def optimizer_state_bytes(optimizer_of: Callable[..., torch.optim.Optimizer], parameters: Sequence[Tensor]) -> int:
    """Bytes of state that ``optimizer_of(parameters)`` will hold after a step, found on small parameters, one for each
    number of dimensions: an optimizer may treat vectors as it does no matrices, or leave them out.

    State of the parameter's shape (momentum) grows with it; anything else (a step counter) is the same for all.
    """
    probes = {dim: torch.nn.Parameter(torch.zeros([2, 3, *[1] * dim][:dim])) for dim in {p.dim() for p in parameters}}
    if not probes:
        return 0
    optimizer = optimizer_of(list(probes.values()))
    for probe in probes.values():
        probe.grad = torch.zeros_like(probe)
    optimizer.step()
    num_bytes = 0
    for dim, probe in probes.items():
        states = [value for value in optimizer.state.get(probe, {}).values() if isinstance(value, Tensor)]
        num_alike = sum(state.shape == probe.shape for state in states)
        fixed_bytes = sum(state.numel() * state.element_size() for state in states if state.shape != probe.shape)
        alike = [p for p in parameters if p.dim() == dim]
        num_bytes += sum(p.numel() * p.element_size() * num_alike + fixed_bytes for p in alike)
    return num_bytes


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # the address of the storage object: meta storages have no data pointer
