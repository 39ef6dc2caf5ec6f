"""Module k of K: its blocks, its optimizer, and the passes that methods are written in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fr_bench.errors import ConfigError
from fr_bench.finite import FiniteWatch
from fr_bench.graphs import NUM_WARMUPS, CudaRecorder, PairGraph, PlayGraph, Recorder
from fr_bench.network import Network
from fr_bench.stopwatch import Stopwatch


@dataclass
class Pass:
    """A forward pass whose graph is alive.

    Attributes:
        batch: index of the mini-batch.
        x: the module's input.
        h: the module's output, until it is handed over.
        captured: what the pass runs on, where it is a CUDA graph; then ``h`` is a copy without a graph of autograd's.
        end: where a backward begins.
    """

    batch: int
    x: Tensor
    h: Tensor
    captured: PairGraph | None = None
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
    """

    graph: bool
    update_statistics: bool
    on_copies: bool = False


@dataclass(frozen=True)
class BatchResult:
    """What the top module learned about a batch; tensors stay on the device until they are logged.

    Attributes:
        loss: scalar; the sum over samples divided by the global batch size.
        num_errors: scalar; wrongly classified samples.
    """

    loss: Tensor
    num_errors: Tensor


class Replicas(Protocol):
    """What a module needs of its replicas; see :class:`fr_bench.transport.replicas.Replicas`."""

    def listen(self, leaves: Iterable[Tensor]) -> None:
        """Sums the gradients that a backward leaves in ``leaves``, in the order of the parameters."""

    def finish_sum(self) -> None:
        """Waits for the sums of the last backward."""

    def total(self, own: Tensor) -> Tensor:
        """The sum of ``own`` over the replicas."""

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each of ``tensors`` by its mean over the replicas."""

    @property
    def buffer_bytes(self) -> int:
        """Bytes held for messages."""


class Module:
    """One of the K modules. ``k`` counts from 1 as in the paper; module K is the top.

    Args:
        network: the module's blocks, on its device.
        optimizer: over the network's parameters.
        base_lr: learning rate of this module before the schedule.
        schedule: iteration -> factor on every learning rate.
        global_batch_size: what the loss's sum is divided by.
        frozen: the module runs but never steps (DESIGN's control for 'learning is real').
        clip_norm: largest norm of the module's gradient, or None.
        num_classes, seed: of the run.
        precision: ``bf16`` runs the passes under autocast; the others need nothing here.
        number: what records and messages call it; k where there is one replica.
        replica, num_replicas: which of how many networks it belongs to; each sees its share of every batch.
    """

    def __init__(
        self,
        network: Network,
        optimizer: torch.optim.Optimizer,
        *,
        base_lr: float,
        schedule: Callable[[int], float],
        k: int,
        num_modules: int,
        global_batch_size: int,
        num_classes: int,
        seed: int,
        watch: Stopwatch,
        frozen: bool = False,
        clip_norm: float | None = None,
        precision: str = "fp32",
        number: int | None = None,
        replica: int = 1,
        num_replicas: int = 1,
    ) -> None:
        self.number = number or k
        self.replica = replica
        self.num_replicas = num_replicas
        self.replicas: Replicas | None = None  # set once training begins: what its replicas exchange
        self.network = network
        self.optimizer = optimizer
        self.base_lr = base_lr
        self.schedule = schedule
        self.k = k
        self.num_modules = num_modules
        self.global_batch_size = global_batch_size
        self.num_classes = num_classes
        self.seed = seed
        # Known after the rehearsal, on `meta`: shapes, batch included, dtypes and strides of h_{k-1} and h_k.
        self.input_like: Tensor | None = None
        self.output_like: Tensor | None = None
        self.gradient_tap: Callable[[], None] | None = None  # diagnostics: called before a step, gradients at hand
        self.watch = watch
        self.frozen = frozen
        self.clip_norm = clip_norm
        self.precision = precision
        self._first_parameter = min(_parameters_of_first_layer(network), key=torch.numel)
        self.finite = FiniteWatch(self.number, self._first_parameter.device)
        self._play_graphs: dict[PassKind, PlayGraph] = {}
        self._pair_graphs: dict[PassKind, list[PairGraph]] = {}
        self._is_beside = False

    @property
    def is_top(self) -> bool:
        """Whether this is module K, which sees the loss."""
        return self.k == self.num_modules

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of h_k, batch included; known after the rehearsal."""
        assert self.output_like is not None, "known after the rehearsal"
        return tuple(self.output_like.shape)

    @property
    def delay(self) -> int:
        """K - k: how many iterations old the mini-batch is that a delayed gradient belongs to."""
        return self.num_modules - self.k

    def play(self, x: Tensor, batch: int, *, graph: bool = True, update_statistics: bool = True) -> Pass:
        """Runs the module forward on a batch that has just arrived.

        Args:
            x: h_{k-1}.
            batch: its index, which keys random numbers.
            graph: whether a backward follows.
            update_statistics: whether the running statistics of batch norm move.
        """
        with self.watch.span("play", batch):
            return self._pass(x, batch, PassKind(graph, update_statistics))

    def play_on_copies(
        self, x: Tensor, batch: int, of: Mapping[str, Tensor] | None = None, *, update_statistics: bool = True
    ) -> tuple[Pass, dict[str, Tensor]]:
        """The same on copies of the parameters (or of ``of``): an optimizer may change those before the backward.

        Returns:
            The pass, and the copies by name, in whose ``grad`` its backward leaves their gradients.
        """
        kind = PassKind(True, update_statistics, on_copies=True)
        with self.watch.span("play", batch):
            pair = self._free_pair(kind)
            if pair is not None:
                return self._launch(
                    pair, x, batch, dict(self.network.named_parameters()) if of is None else of
                ), pair.leaves
            copies = self._copies(of)
            if self.replicas is not None:
                self.replicas.listen(copy for copy in copies.values() if copy.requires_grad)
            return self._forward(x, batch, kind, copies), copies

    def replay(self, x: Tensor, batch: int, *, update_statistics: bool = True) -> Pass:
        """Runs the module forward, with current weights and a graph, on an input that it kept."""
        with self.watch.span("replay", batch):
            return self._pass(x, batch, PassKind(True, update_statistics))

    @contextmanager
    def beside_training(self) -> Iterator[None]:
        """Passes inside (rehearsal, diagnostics, accounts) are not timed, and run as they are without CUDA graphs."""
        self._is_beside = True
        try:
            with self.watch.paused():
                yield
        finally:
            self._is_beside = False

    def _pass(self, x: Tensor, batch: int, kind: PassKind) -> Pass:
        if not self._is_beside:
            if kind in self._play_graphs:
                return Pass(batch, x, self._play_graphs[kind](x))
            pair = self._free_pair(kind)
            if pair is not None:
                return self._launch(pair, x, batch)
        return self._forward(x, batch, kind)

    def _free_pair(self, kind: PassKind) -> PairGraph | None:
        if self._is_beside:
            return None
        return next((pair for pair in self._pair_graphs.get(kind, ()) if pair.is_free), None)

    def _launch(self, pair: PairGraph, x: Tensor, batch: int, weights: Mapping[str, Tensor] | None = None) -> Pass:
        h = pair.forward(x, weights)
        live = Pass(batch, pair.x, h.requires_grad_() if self.is_top else h, pair)  # the loss is computed from it
        pair.belongs_to(live)
        return live

    def _forward(self, x: Tensor, batch: int, kind: PassKind, weights: Mapping[str, Tensor] | None = None) -> Pass:
        x = x.detach()
        if kind.graph and self.k > 1:
            x.requires_grad_()
        return Pass(batch, x, self._run(x, batch, kind, weights))

    def _run(self, x: Tensor, batch: int, kind: PassKind, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        with (
            torch.set_grad_enabled(kind.graph),
            self.network.statistics(kind.update_statistics),
            self.autocast(),
        ):
            if weights is None:
                return self.network(x, self.stream(batch))
            return torch.func.functional_call(self.network, dict(weights), (x, self.stream(batch)))

    def compile_passes(self, x: Tensor, kinds: Iterable[PassKind]) -> None:
        """Makes a pass of each kind on ``x``, at which a compiler compiles it. Leaves nothing but gradients behind."""
        weights = self._copies()
        with self.watch.paused(), self.network.unchanged_buffers():
            for kind in kinds:
                live = self._forward(x, 0, kind, weights if kind.on_copies else None)
                if kind.graph:
                    torch.autograd.backward(live.h, torch.zeros_like(live.h))

    def capture_passes(self, x: Tensor, d: Tensor, kinds: Iterable[PassKind], recorder: Recorder | None = None) -> None:
        """From now on training launches passes of each kind as CUDA graphs; see :mod:`fr_bench.graphs`.

        Args:
            x, d: an input, and an error gradient with respect to the output, as training will have them.
            kinds: of the passes.
            recorder: of the graphs.

        Raises:
            ConfigError: the blocks do something that a graph cannot repeat.
        """
        recorder = CudaRecorder(self._first_parameter.device) if recorder is None else recorder
        pool = recorder.new_pool()  # a play, and a forward with its backward, never overlap in one module
        try:
            with self.watch.paused(), self.network.unchanged_buffers():
                for kind in kinds:
                    self._warm_up(x, d, kind, recorder)
                    if not kind.graph:
                        self._play_graphs[kind] = PlayGraph(partial(self._captured, kind), x, recorder, pool)
                        continue
                    # As many as are in flight. What one of them holds stays while the others run.
                    pools = [recorder.new_pool() for _ in range(self.delay + 1)] if kind.on_copies else [pool]
                    self._pair_graphs[kind] = [self._capture_pair(x, d, kind, recorder, own) for own in pools]
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"cuda_graphs=true: module {self.k} cannot be captured: {reason}; use false") from error

    def _warm_up(self, x: Tensor, d: Tensor, kind: PassKind, recorder: Recorder) -> None:
        with recorder.beside():
            for _ in range(NUM_WARMUPS):
                live = self._forward(x, 0, kind, self._copies() if kind.on_copies else None)
                if kind.graph:
                    torch.autograd.backward(live.h, d)
                self.optimizer.zero_grad(set_to_none=True)
        if drawing := self.network.drawing_blocks:
            raise ConfigError(
                f"cuda_graphs=true: block '{drawing[0]}' draws random numbers, such as those of dropout, and a graph "
                "would draw others than without; use false"
            )

    def _capture_pair(self, x: Tensor, d: Tensor, kind: PassKind, recorder: Recorder, pool: object) -> PairGraph:
        leaves = self._copies() if kind.on_copies else dict(self.network.named_parameters())
        run = partial(self._captured, kind)
        return PairGraph(run, x, d, leaves, kind.on_copies, self.k > 1, recorder, pool)

    def _captured(self, kind: PassKind, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """What is captured: the batch is no part of it."""
        with self.network.counted_together(kind.update_statistics):
            return self._run(x, 0, kind, weights)

    def loss(self, live: Pass, targets: Tensor) -> BatchResult:
        """Cross-entropy of the top module's output: the sum over samples over the global batch size."""
        with self.watch.span("loss", live.batch):
            logits = live.h.float() if live.h.dtype == torch.bfloat16 else live.h
            loss = F.cross_entropy(logits, targets, reduction="sum") / self.global_batch_size
            num_errors = (logits.detach().argmax(dim=1) != targets).sum()
        return BatchResult(loss, num_errors)

    def backward(self, live: Pass, *, d: Tensor | None = None, loss: Tensor | None = None) -> Tensor | None:
        """Back-propagates through ``live`` and returns the gradient with respect to its input (None in module 1).

        Args:
            live: the pass whose graph is used up.
            d: the error gradient with respect to its output.
            loss: in place of ``d`` a scalar that was computed from the output.
        """
        with self.watch.span("backward", live.batch):
            if live.captured is None:
                torch.autograd.backward(live.end if loss is None else loss, d)
                return live.x.grad
            if loss is not None:
                (d,) = torch.autograd.grad(loss, live.h)
            assert d is not None
            return live.captured.backward(d)

    def step(self, t: int) -> None:
        """Updates the weights with the gradients at hand, of all replicas together, and the learning rate of iteration
        ``t``."""
        if self.replicas is not None:
            with self.watch.span("wait replicas", t):
                self.replicas.finish_sum()
        if self.gradient_tap is not None:
            self.gradient_tap()
        with self.watch.span("step", t):
            if self._first_parameter.grad is not None:
                self.finite.add(self._first_parameter.grad, t)
            for group in self.optimizer.param_groups:
                group["lr"] = self.base_lr * self.schedule(t)
            if not self.frozen:
                if self.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def stream(self, batch: int) -> int:
        """What keys the random numbers of ``batch``, such as those of dropout: replicas draw apart."""
        return batch * self.num_replicas + self.replica - 1

    def _copies(self, of: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        own = dict(self.network.named_parameters())
        of = own if of is None else of
        return {name: of[name].detach().clone().requires_grad_(own[name].requires_grad) for name in own}

    def like_network(self, other: nn.Module) -> None:
        """Moves ``other`` to the device, dtype and memory format of this module's weights, in place."""
        weight = next(self.network.parameters())
        four_dimensional = next((p for p in self.network.parameters() if p.dim() == 4), None)
        other.to(device=weight.device, dtype=weight.dtype)
        if four_dimensional is not None and four_dimensional.is_contiguous(memory_format=torch.channels_last):
            other.to(memory_format=torch.channels_last)

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass in this module's precision."""
        if self.precision != "bf16":
            return nullcontext()
        device = next(self.network.parameters()).device
        return torch.autocast(device.type, dtype=torch.bfloat16)


def _parameters_of_first_layer(network: nn.Module) -> list[nn.Parameter]:
    """Of the layer nearest to the input: what goes wrong in a backward pass reaches these last, and all of them."""
    for layer in network.modules():
        own = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
        if own:
            return own
    return []
