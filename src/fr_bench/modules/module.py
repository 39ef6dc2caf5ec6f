"""Module k of K: its blocks, its optimizer, and the passes that methods are written in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from fr_bench.measuring.stopwatch import Stopwatch
from fr_bench.modules.draws import seed_generators
from fr_bench.modules.finite import FiniteWatch
from fr_bench.modules.layout import lay_out
from fr_bench.modules.learning_rates import LearningRates
from fr_bench.modules.loss import loss_sum, num_errors
from fr_bench.modules.network import Network
from fr_bench.modules.passes import Pass, Passes, PassKind
from fr_bench.modules.running_means import RunningMeans
from fr_bench.seeds import derive_seed

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class BatchResult:
    """What the top module learned about a batch; tensors stay on the device until they are logged.

    Attributes:
        loss: scalar; the sum over samples divided by the global batch size.
        num_errors: scalar; wrongly classified samples (see fr_bench.modules.loss).
    """

    loss: Tensor
    num_errors: Tensor


class Replicas(Protocol):
    """What a module needs of its replicas; see :class:`fr_bench.transport.replicas.Replicas`."""

    def listen(self, leaves: Iterable[Tensor]) -> None:
        """Sums the gradients that a backward leaves in ``leaves``, in the order of the parameters."""

    def end_backward(self) -> None:
        """Sends what the backward that has just ended left to sum."""

    def finish_sum(self) -> None:
        """Waits for the sums of the last backward."""

    def total(self, own: Tensor) -> Tensor:
        """The sum of ``own`` over the replicas."""

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each of ``tensors`` by its sum over the replicas."""

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each of ``tensors`` by its mean over the replicas."""

    @property
    def buffer_bytes(self) -> int:
        """Bytes held for messages."""


@dataclass(frozen=True)
class Place:
    """Where a module stands in its run.

    Attributes:
        k: which of the K modules it is, from 1 as in the paper; module K is the top.
        num_modules: K.
        number: what records and messages call it; k where there is one replica.
        replica, num_replicas: which of how many networks it belongs to; each sees its share of every batch.
    """

    k: int
    num_modules: int
    number: int
    replica: int = 1
    num_replicas: int = 1


class Module:
    """One of the K modules.

    Args:
        network: the module's blocks, on its device.
        make_optimizer: parameters -> optimizer; it is called with the network's.
        place: which one.
        lr: learning rate of the run, before the schedule.
        lr_multiplier: on it, and on all of the optimizer's, for this module.
        schedule: iteration -> factor on every learning rate.
        global_batch_size: what the loss's sum is divided by.
        frozen: the module runs but never steps: the control for whether learning is real.
        clip_norm: largest norm of the module's gradient, or None.
        label_smoothing: of the loss, see :func:`fr_bench.modules.loss.loss_sum`.
        num_classes, seed: of the run.
        memory_format: of the network's weights.
        precision: ``bf16`` runs the passes under autocast; the others need nothing here.
    """

    def __init__(
        self,
        network: Network,
        make_optimizer: Callable[..., torch.optim.Optimizer],
        place: Place,
        *,
        lr: float,
        lr_multiplier: float = 1.0,
        schedule: Callable[[int], float],
        global_batch_size: int,
        num_classes: int,
        seed: int,
        watch: Stopwatch,
        frozen: bool = False,
        clip_norm: float | None = None,
        label_smoothing: float = 0.0,
        memory_format: torch.memory_format = torch.contiguous_format,
        precision: str = "fp32",
    ) -> None:
        self.k, self.num_modules = place.k, place.num_modules
        self.number = place.number
        self.replica, self.num_replicas = place.replica, place.num_replicas
        self.replicas: Replicas | None = None  # set once training begins: what its replicas exchange
        self.companions: list[nn.Module] = []  # networks that its method trains beside its own
        self.network = network
        self.make_optimizer = make_optimizer
        self.optimizer = make_optimizer(network.parameters())
        self.base_lr = lr
        self.lr_multiplier = lr_multiplier
        self._learning_rates = LearningRates(self.optimizer, lr_multiplier)
        self.schedule = schedule
        self.global_batch_size = global_batch_size
        self.num_classes = num_classes
        self.seed = seed
        # Known after the rehearsal, on `meta`: shapes, batch included, dtypes and strides of h_{k-1} and h_k.
        self.input_like: Tensor | None = None
        self.output_like: Tensor | None = None
        self.num_updates = 0  # calls of step() in this process
        self.gradient_tap: Callable[[], None] | None = None  # diagnostics: called before a step, gradients at hand
        self.watch = watch
        self._memory_format = memory_format
        self.frozen = frozen
        self.clip_norm = clip_norm
        self.label_smoothing = label_smoothing
        self._first_parameter = min(_parameters_of_first_layer(network), key=torch.numel)
        self.finite = FiniteWatch(self.number, self._first_parameter.device)
        self.means = RunningMeans()
        self.passes = Passes(network, precision, is_bottom=self.k == 1, is_top=self.is_top)

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

    def play(
        self, x: Tensor, batch: int, *, graph: bool = True, update_statistics: bool = True, input_gradient: bool = True
    ) -> Pass:
        """Runs the module forward on a batch that has just arrived.

        Args:
            x: h_{k-1}.
            batch: its index, which keys random numbers.
            graph: whether a backward follows.
            update_statistics: whether the running statistics of batch norm move.
            input_gradient: whether the backward has the gradient of ``x`` too; in module 1 it never has.
        """
        kind = PassKind(graph, update_statistics, input_gradient=input_gradient)
        with self.watch.span("play", batch):
            return self.passes.run(x, self.stream(batch), batch, kind)

    def play_on_copies(
        self, x: Tensor, batch: int, of: Mapping[str, Tensor] | None = None, *, update_statistics: bool = True
    ) -> Pass:
        """The same on copies of the parameters (or of ``of``, by name), which are the pass's own: an optimizer may
        change the parameters before the backward."""
        with self.watch.span("play", batch):
            live = self.passes.run_on_copies(x, self.stream(batch), batch, of, update_statistics)
            if self.replicas is not None and live.copies is not None:
                self.replicas.listen(copy for copy in live.copies.values() if copy.requires_grad)
        return live

    def replay(self, x: Tensor, batch: int, *, update_statistics: bool = True) -> Pass:
        """Runs the module forward, with current weights and a graph, on an input that it kept."""
        with self.watch.span("replay", batch):
            return self.passes.run(x, self.stream(batch), batch, PassKind(True, update_statistics))

    @contextmanager
    def beside_training(self) -> Iterator[None]:
        """Passes inside (rehearsal, diagnostics, accounts) are not timed, and run as they are without CUDA graphs."""
        with self.watch.paused(), self.passes.as_they_are():
            yield

    def loss(self, live: Pass, targets: Tensor) -> BatchResult:
        """Cross-entropy of the top module's output: the sum over samples (see fr_bench.modules.loss) over the global
        batch size."""
        with self.watch.span("loss", live.batch):
            return BatchResult(self.loss_of(live.h, targets), num_errors(live.h.detach(), targets))

    def loss_of(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The same of any logits [B, ..., classes], without counting errors and untimed."""
        return loss_sum(logits, targets, self.label_smoothing) / self.global_batch_size

    def backward(self, live: Pass, *, d: Tensor | None = None, loss: Tensor | None = None) -> Tensor | None:
        """Back-propagates through ``live``, which leaves the gradients of the parameters in their ``grad``, and returns
        that of its input (None in module 1, and where the pass was to have none).

        Args:
            live: the pass whose graph is used up.
            d: the error gradient with respect to its output.
            loss: in place of ``d`` a scalar that was computed from the output.
        """
        with self.watch.span("backward", live.batch):
            if live.captured is None:
                end = live.end if loss is None else loss
                gradient = None
                if not isinstance(end, Tensor) or end.requires_grad:  # else this batch skipped all that learns
                    with self.passes.of_backward(live), _catching_gradient(live.x) as caught:
                        torch.autograd.backward(end, d)
                    gradient = caught[0] if caught else None
            else:
                if loss is not None:
                    (d,) = torch.autograd.grad(loss, live.h)
                assert d is not None
                gradient = live.captured.backward(d)
            if live.copies is not None:
                for name, parameter in self.network.named_parameters():
                    parameter.grad = live.copies[name].grad
            if self.replicas is not None:
                self.replicas.end_backward()
            return gradient

    def sum_gradients(self, t: int) -> None:
        """Waits until the gradients at hand are those of all replicas together, which they are then in :meth:`step`,
        too: for a method that looks at them, or changes them, before."""
        if self.replicas is not None:
            with self.watch.span("wait replicas", t):
                self.replicas.finish_sum()

    def step(self, t: int) -> None:
        """Updates the weights with the gradients at hand, of all replicas together, and the learning rate of iteration
        ``t``."""
        self.num_updates += 1
        self.sum_gradients(t)
        if self.gradient_tap is not None:
            self.gradient_tap()
        with self.watch.span("step", t):
            if self._first_parameter.grad is not None:
                self.finite.add(self._first_parameter.grad, t)
            self._learning_rates.scale(self.schedule(t))
            if not self.frozen:
                if self.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def record(self, name: str, value: Tensor | float) -> None:
        """Notes what the method measured of this iteration, such as a loss of its own: means since the last one are in
        the module's `method` records, every ``log_every`` iterations.

        Args:
            name: of the field, an identifier.
            value: of one element, of this replica's images; to read it waits for the device, to note it does not.

        Raises:
            ValueError: either is something else.
        """
        self.means.add(name, value)

    def stream(self, batch: int) -> int:
        """What keys the random numbers of ``batch``, such as those of dropout: replicas draw apart."""
        return batch * self.num_replicas + self.replica - 1

    def key_draws(self, hook: str, t: int) -> None:
        """What the method itself draws from torch's default generators in its ``hook`` of iteration ``t`` (noise,
        dropout in a network of its own) is then keyed as a block's draws are: it depends neither on which modules the
        process has, nor on what was done before, so that no generator's state need be saved."""
        seed = derive_seed(self.seed, "method", hook, self.k, self.stream(t))
        seed_generators(self._first_parameter.device, seed)

    def like_network(self, other: AnyModule) -> AnyModule:
        """Moves ``other``, a network that the method trains beside this module's, in place to the device, dtype and
        memory format of this module's weights, and returns it. Its weights, too, must stay the same in all replicas."""
        weight = next(self.network.parameters())
        other.to(device=weight.device, dtype=weight.dtype)
        lay_out(other, self._memory_format)
        self.companions.append(other)
        return other

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass in this module's precision."""
        return self.passes.autocast()


@contextmanager
def _catching_gradient(x: Tensor) -> Iterator[list[Tensor]]:
    """Inside is a backward; the gradient of the leaf ``x`` is caught on its way there, with the strides that it would
    have where the network is not cut. As ``x.grad`` it would get those of ``x``, and with them other last bits of what
    is computed from it."""
    caught: list[Tensor] = []

    def catch(gradients: tuple[Tensor | None, ...]) -> tuple[None]:
        caught.extend(gradient for gradient in gradients if gradient is not None)
        return (None,)  # nothing to accumulate

    if not x.requires_grad:
        yield caught
        return
    hook = get_gradient_edge(x).node.register_prehook(catch)
    try:
        yield caught
    finally:
        hook.remove()


def _parameters_of_first_layer(network: nn.Module) -> list[nn.Parameter]:
    """Of the layer nearest to the input: what goes wrong in a backward pass reaches these last, and all of them."""
    for layer in network.modules():
        own = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
        if own:
            return own
    return []
