"""A module's passes: how its blocks are run, as they are, as a compiler made them, or as CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.utils.stateless import _reparametrize_module

from fr_bench.errors import ConfigError
from fr_bench.memory_errors import is_out_of_memory
from fr_bench.modules.graphs import NUM_WARMUPS, CudaRecorder, PairGraph, PlayGraph, Recorder
from fr_bench.modules.network import Network

DRAWS = "draws random numbers, such as those of dropout, and a graph would draw others than without; use false"


@dataclass
class Pass:
    """A forward pass whose graph is alive.

    Attributes:
        batch: index of the mini-batch.
        x: the module's input.
        h: the module's output, until it is handed over.
        captured: what the pass runs on, where it is a CUDA graph; then ``h`` is a copy without a graph of autograd's.
        copies: of the parameters by name, where it runs on those; in their ``grad`` a backward leaves its gradients.
        buffers: copies of what it began with and moved, by name; see :meth:`Network.moving_buffers`.
        moves_statistics: whether it did.
        end: where a backward begins.
    """

    batch: int
    x: Tensor
    h: Tensor
    captured: PairGraph | None = None
    copies: Mapping[str, Tensor] | None = None
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    moves_statistics: bool = True
    end: Tensor | GradientEdge = field(init=False)

    def __post_init__(self) -> None:
        self.end = self.h

    def hand_over(self) -> Tensor:
        """Gives the output away, detached. A backward needs its place in the graph, not its values: whoever has it now
        decides how long they stay in memory."""
        h, nothing = self.h.detach(), self.h.new_empty(0)
        self.end = get_gradient_edge(self.h) if self.h.requires_grad else nothing
        self.h = nothing
        return h


class PassKind(NamedTuple):
    """What makes a forward pass another one for those who compile or capture it.

    Attributes:
        graph: whether one is built.
        update_statistics: whether running statistics move.
        on_copies: whether it runs on copies of the weights.
        input_gradient: whether a backward has the gradient of the input too, except in module 1.
    """

    graph: bool
    update_statistics: bool
    on_copies: bool = False
    input_gradient: bool = True


class Passes:
    """Runs the blocks of a module forward.

    Args:
        network: the blocks.
        precision: ``bf16`` runs them under autocast.
        is_bottom: whether nobody wants the input's gradient.
        is_top: whether a loss is computed from the output.
    """

    def __init__(self, network: Network, precision: str, *, is_bottom: bool, is_top: bool) -> None:
        self._network = network
        self._precision = precision
        self._is_bottom = is_bottom
        self._is_top = is_top
        self._play_graphs: dict[PassKind, PlayGraph] = {}
        self._pair_graphs: dict[PassKind, list[PairGraph]] = {}
        self._launches = True
        self._parameters: dict[str, Tensor] = dict(network.named_parameters())
        # A model's own, such as those that mask gradients; later ones, with which replicas listen, are none.
        hooks = {name: _hooks_of(parameter) for name, parameter in self._parameters.items()}
        self._hooks = {name: found for name, found in hooks.items() if any(found)}

    def run(self, x: Tensor, stream: int, batch: int, kind: PassKind) -> Pass:
        """A pass on the parameters.

        Args:
            x: the module's input.
            stream: keys random numbers.
            batch: index of the mini-batch.
            kind: of the pass; one that was captured is launched.
        """
        if self._launches and kind in self._play_graphs:
            return Pass(batch, x, self._play_graphs[kind](x))
        pair = self._free_pair(kind)
        return self._forward(x, stream, batch, kind) if pair is None else self._launch(pair, x, batch)

    def run_on_copies(
        self, x: Tensor, stream: int, batch: int, of: Mapping[str, Tensor] | None, update_statistics: bool
    ) -> Pass:
        """A pass with a graph on copies of the parameters, or of ``of``."""
        kind = PassKind(True, update_statistics, on_copies=True)
        pair = self._free_pair(kind)
        if pair is None:
            copies = self._copies(of)
            versions = [copy._version for copy in copies.values()]
            live = self._forward(x, stream, batch, kind, copies)
            if of is None and update_statistics:
                self._take_over(copies, versions)
        else:
            live, copies = self._launch(pair, x, batch, self._parameters if of is None else of), pair.leaves
        live.copies = copies
        return live

    @contextmanager
    def of_backward(self, live: Pass) -> Iterator[None]:
        """For the backward of ``live``: blocks that recompute layers in it (torch.utils.checkpoint) do so on the pass's
        copies of the weights, and with statistics that move if they did in the pass. The first backward, that of the
        rehearsal, shows whether there are any: to put copies in place takes as long as many a layer."""
        network = self._network
        if network.recomputes is False:
            yield
            return
        with ExitStack() as stack:
            if network.recomputes is None:
                stack.enter_context(network.noticing_recomputation())
            if not network.checkpointing:  # which sees to it itself
                stack.enter_context(network.statistics(live.moves_statistics))
                if live.copies is not None:
                    stack.enter_context(_reparametrize_module(network, dict(live.copies), tie_weights=True))
            yield

    @contextmanager
    def as_they_are(self) -> Iterator[None]:
        """Nothing inside is launched as a graph."""
        before, self._launches = self._launches, False
        try:
            yield
        finally:
            self._launches = before

    @property
    def are_captured(self) -> bool:
        """Whether there are graphs to launch."""
        return bool(self._play_graphs or self._pair_graphs)

    def compile(self, x: Tensor, kinds: Iterable[PassKind]) -> None:
        """Makes a pass of each kind on ``x``, at which a compiler compiles it. Leaves nothing but gradients behind."""
        weights = self._copies()
        with self._network.unchanged_buffers():
            for kind in kinds:
                live = self._forward(x, 0, 0, kind, weights if kind.on_copies else None)
                if kind.graph:
                    torch.autograd.backward(live.h, torch.zeros_like(live.h))

    def capture(
        self, x: Tensor, d: Tensor, kinds: Iterable[PassKind], num_in_flight: int, recorder: Recorder | None = None
    ) -> None:
        """From now on passes of each kind are launched as CUDA graphs; see :mod:`fr_bench.modules.graphs`.

        Args:
            x, d: an input, and an error gradient with respect to the output, as training will have them.
            kinds: of the passes.
            num_in_flight: how many passes on copies wait for their backward at the same time.
            recorder: of the graphs.

        Raises:
            ConfigError: the blocks do something that a graph cannot repeat.
        """
        recorder = CudaRecorder(x.device) if recorder is None else recorder
        pool = recorder.new_pool()  # a play, and a forward with its backward, never overlap in one module
        try:
            with self._network.unchanged_buffers():
                for kind in kinds:
                    self._warm_up(x, d, kind, recorder)
                    run = partial(self._run_counting, kind)
                    if not kind.graph:
                        self._play_graphs[kind] = PlayGraph(run, x, recorder, pool)
                        continue
                    # What one of those in flight holds stays while the others run: each has memory of its own.
                    pools = [recorder.new_pool() for _ in range(num_in_flight)] if kind.on_copies else [pool]
                    self._pair_graphs[kind] = [
                        PairGraph(
                            run, x, d, self._leaves(kind), kind.on_copies, self._has_input_gradient(kind), recorder, own
                        )
                        for own in pools
                    ]
        except RuntimeError as error:
            cause = _first_cause(error)
            if is_out_of_memory(cause):
                raise cause from None
            reason = " ".join(str(cause).strip().splitlines()[:1]) or type(cause).__name__
            raise ConfigError(f"cuda_graphs=true: these blocks cannot be captured: {reason}; use false") from cause

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass in this precision."""
        if self._precision != "bf16":
            return nullcontext()
        device = next(self._network.parameters()).device
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def _forward(
        self, x: Tensor, stream: int, batch: int, kind: PassKind, weights: Mapping[str, Tensor] | None = None
    ) -> Pass:
        x = x.detach()
        if kind.graph and self._has_input_gradient(kind):
            x.requires_grad_()
        return Pass(batch, x, self._run(kind, x, weights, stream), moves_statistics=kind.update_statistics)

    def _run(self, kind: PassKind, x: Tensor, weights: Mapping[str, Tensor] | None, stream: int) -> Tensor:
        network = self._network
        with torch.set_grad_enabled(kind.graph), network.statistics(kind.update_statistics), self.autocast():
            if weights is None:
                return network(x, stream)
            return torch.func.functional_call(network, dict(weights), (x, stream))

    def _run_counting(self, kind: PassKind, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """What is captured: whose batch it is is no part of it."""
        with self._network.counted_together(kind.update_statistics):
            return self._run(kind, x, weights, stream=0)

    def _free_pair(self, kind: PassKind) -> PairGraph | None:
        pairs = self._pair_graphs.get(kind, ()) if self._launches else ()
        return next((pair for pair in pairs if pair.is_free), None)

    def _launch(self, pair: PairGraph, x: Tensor, batch: int, weights: Mapping[str, Tensor] | None = None) -> Pass:
        h = pair.forward(x, weights)
        live = Pass(batch, pair.x, h.requires_grad_() if self._is_top else h, pair)  # the loss is computed from it
        pair.belongs_to(live)
        return live

    def _warm_up(self, x: Tensor, d: Tensor, kind: PassKind, recorder: Recorder) -> None:
        with recorder.beside():
            for _ in range(NUM_WARMUPS):
                live = self._forward(x, 0, 0, kind, self._leaves(kind) if kind.on_copies else None)
                if kind.graph:
                    torch.autograd.backward(live.h, d)
                self._network.zero_grad(set_to_none=True)
        if drawing := self._network.drawing_blocks:
            raise ConfigError(f"cuda_graphs=true: block '{drawing[0]}' {DRAWS}")

    @torch.no_grad()
    def _take_over(self, copies: Mapping[str, Tensor], versions: Sequence[int]) -> None:
        """What a pass changed in its ``copies`` of the weights, it was to change in those, such as an embedding that
        shortens its vectors (max_norm)."""
        for (name, copy), version in zip(copies.items(), versions, strict=True):
            if copy._version != version:
                self._parameters[name].copy_(copy)

    def _has_input_gradient(self, kind: PassKind) -> bool:
        return kind.input_gradient and not self._is_bottom

    def _leaves(self, kind: PassKind) -> dict[str, Tensor]:
        return self._copies() if kind.on_copies else self._parameters

    def _copies(self, of: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        of = self._parameters if of is None else of
        copies = {  # to the device, as scalars from a checkpoint are still on the host
            name: of[name].detach().to(own.device, copy=True).requires_grad_(own.requires_grad)
            for name, own in self._parameters.items()
        }
        for name, (of_gradient, of_accumulation) in self._hooks.items():
            if not copies[name].requires_grad:  # frozen since
                continue
            for hook in of_gradient:
                copies[name].register_hook(hook)
            for hook in of_accumulation:
                copies[name].register_post_accumulate_grad_hook(hook)
        return copies


def _hooks_of(parameter: Tensor) -> tuple[list[Any], list[Any]]:
    """On its gradient, and on what accumulates it; torch has no name of its own for them."""
    of_gradient, of_accumulation = parameter._backward_hooks, parameter._post_accumulate_grad_hooks
    return list((of_gradient or {}).values()), list((of_accumulation or {}).values())


def _first_cause(error: RuntimeError) -> RuntimeError:
    """What went wrong within a capture: its end then fails, too, which is what is raised, and says nothing of it."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error
