"""The protocol of a training method: what each module does in iteration t.

In iteration t module k (1) receives the features of batch t, (2) plays them forward and sends its own up,
(3) learns, (4) sends an error gradient down, if its method does. Methods differ in what module k < K keeps after its
forward and in which gradient it learns from; module K learns from the loss of batch t in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from fr_bench.errors import ConfigError
from fr_bench.measuring.saved_tensors import Held
from fr_bench.methods.policy import Policy
from fr_bench.modules.module import BatchResult, Module
from fr_bench.modules.passes import Pass, PassKind


class Link(Protocol):
    """What a method sees of its neighbours. Batches are named so that a transport can check them."""

    def receive_features(self, batch: int) -> Tensor:
        """Waits for h_{k-1}: the output of the module below, or the inputs of the network in module 1."""

    def send_features(self, h: Tensor, batch: int) -> None:
        """Sends h_k up; returns before it has arrived."""

    def receive_gradient(self, batch: int) -> Tensor:
        """Waits for d_k, the error gradient from above with respect to h_k of ``batch``."""

    def send_gradient(self, gradient: Tensor | None, batch: int) -> None:
        """Sends the gradient with respect to h_{k-1} of ``batch`` down; does nothing where no gradients are sent."""

    def targets(self, batch: int) -> Tensor:
        """The labels of ``batch``, drawn here from the same seeded order as the inputs."""

    @property
    def group(self) -> ProcessGroup | None:
        """For methods whose messages a library carries: the processes of the run; None is the default group."""


class Method:
    """One module's part in a training method. Subclasses write the row of module k < K.

    Subclasses implement :meth:`play_lower`, :meth:`learn_lower` and :meth:`policy`, take their hyper-parameters as
    keyword arguments and refuse wrong ones with ``ConfigError`` in :meth:`check`.

    Attributes:
        transports: that can carry what the method's processes exchange.
        sends_gradients: whether modules send error gradients down; if not, there is no channel for them, and training
            computes no gradient of a module's input.
        uses_link: whether features and gradients travel over the link; else the method has them carried by a library,
            and of the link it uses inputs and labels alone.
        plays_itself: whether its library also decides when a forward and when a backward runs.
        sees_waiting: whether the stopwatch can tell waiting for other processes from computing.
        wants_one_label: whether modules below the top that get labels need exactly one a sample.
    """

    transports: ClassVar[tuple[str, ...]] = ("serial", "ipc", "gloo", "nccl")
    sends_gradients: ClassVar[bool] = True
    uses_link: ClassVar[bool] = True
    plays_itself: ClassVar[bool] = False
    sees_waiting: ClassVar[bool] = True
    wants_one_label: ClassVar[bool] = False

    def __init__(self, module: Module, link: Link) -> None:
        self.module = module
        self.link = link
        self._live: Pass | None = None

    def play_lower(self, x: Tensor, t: int) -> Tensor:
        """Module k < K: plays batch ``t`` forward, keeps what the method keeps, and returns h_k."""
        raise NotImplementedError(f"{type(self).__qualname__} has no play_lower")

    def learn_lower(self, t: int) -> None:
        """Module k < K: learns from what it kept, sends a gradient down, if the method does, and steps."""
        raise NotImplementedError(f"{type(self).__qualname__} has no learn_lower")

    def play(self, t: int) -> None:
        """First half of iteration ``t``."""
        x = self.link.receive_features(t)
        if self.module.is_top:
            self._live = self.module.play(x, t, input_gradient=self.sends_gradients)
        else:
            h = self.play_lower(x, t)
            if not isinstance(h, Tensor):  # of a user's own that forgets its return, say
                raise TypeError(f"{type(self).__qualname__}.play_lower must return h_k, not {type(h).__name__}")
            self.link.send_features(h, t)

    def learn(self, t: int) -> BatchResult | None:
        """Second half of iteration ``t``; module K returns the loss and errors of batch ``t``."""
        if not self.module.is_top:
            self.learn_lower(t)
            return None
        assert self._live is not None, "learn() follows play()"
        live, self._live = self._live, None
        result = self.module.loss(live, self.link.targets(t))
        self.module.finite.add(result.loss.detach(), t)
        self.link.send_gradient(self.module.backward(live, loss=result.loss), t)
        self.module.step(t)
        return BatchResult(result.loss.detach(), result.num_errors)

    def descend(self, live: Pass, d: Tensor, t: int) -> None:
        """Back-propagates ``d`` through ``live``, sends the input's gradient down, then steps.

        The gradient goes first: the module below waits for it, nobody waits for our step.
        """
        self.link.send_gradient(self.module.backward(live, d=d), live.batch)
        self.module.step(t)

    def start_epoch(self) -> None:
        """Called before the first iteration of every epoch; by default everything carries over."""

    def account_play(self, x: Tensor, t: int) -> tuple[Pass, dict[str, list[Tensor]]]:
        """For the memory account: plays batch ``t`` with the graph that this method would back-propagate.

        Changes nothing of module and method. Returns the pass, and what the method would keep with it beside the
        graph, by category of the account.
        """
        return self.module.play(x, t, update_statistics=False, input_gradient=self.sends_gradients), {}

    def account_iteration(self, t: int, hold: Callable[[Tensor, Held], None]) -> None:
        """For the memory account of a method that plays itself: does all of iteration ``t`` but the step.

        Changes nothing of module and method. ``hold`` is told of every tensor that the iteration keeps for a while
        and autograd may not, and what for.
        """
        raise NotImplementedError

    @property
    def num_graphs(self) -> int:
        """Graphs that are alive before a backward."""
        return 1

    def kept_tensors(self) -> dict[str, list[Tensor]]:
        """What is kept from one iteration to the next beside graphs, by category of the memory account:
        ``history`` (features), ``stash`` (weight copies), ``synthesizer``, ``buffers`` (beside the link's)."""
        return {}

    @property
    def resumes_exactly(self) -> bool:
        """Whether :meth:`state_dict` is all there is. If not, a run goes on with weights and optimizer alone, and with
        the method as new in all modules."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for this method to go on exactly, beside weights and optimizer."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""

    @classmethod
    def needs_targets(cls, **hyper_parameters: Any) -> bool:
        """Whether module k < K needs the labels too; it then draws them from the same seeded order."""
        return False

    @classmethod
    def predict_memory(
        cls, output: Tensor, output_is_saved: bool, num_classes: int, *_: Any, **hyper_parameters: Any
    ) -> dict[str, int]:
        """Bytes that module k < K holds beyond what the policy tells, by category of the account.

        Args:
            output: h_k, on ``meta``.
            output_is_saved: whether the module's own graph saves it.
            num_classes: of the data set.
            *_: parameters -> the module's optimizer.
            **hyper_parameters: of the method.
        """
        return {}

    @classmethod
    def companion(cls, shape: Sequence[int], num_classes: int, **hyper_parameters: Any) -> nn.Module | None:
        """The network that module k < K trains beside its own, whose cost then counts when modules are balanced.

        Args:
            shape: of h_k, including the batch dimension; the network is called with it and the labels.
            num_classes: of the data set.
            **hyper_parameters: of the method.
        """
        return None

    @classmethod
    def passes(cls, is_top: bool, **hyper_parameters: Any) -> Sequence[PassKind]:
        """The kinds of forward pass that training makes of the top module, or of the others: they are compiled before
        the training clock starts, any other kind at its first pass."""
        return [PassKind(graph=True, update_statistics=True, input_gradient=cls.sends_gradients)]

    @classmethod
    def policy(cls, **hyper_parameters: Any) -> Policy:
        """The row of module k < K as data."""
        raise ConfigError(f"method: {cls.__qualname__} has no policy, a classmethod that returns a Policy")

    @classmethod
    def check(cls, *_: Any, **hyper_parameters: Any) -> None:
        """Refuses wrong hyper-parameters, given by name, with ``ConfigError`` before anything is started."""

    @classmethod
    def check_run(cls, config: Mapping[str, Any], *, transport: str, on_gpu: bool, **hyper_parameters: Any) -> None:
        """Refuses with ``ConfigError`` what this method cannot do of the run that ``config`` (resolved) describes.

        Args:
            config: of the run.
            transport: by name, never ``auto``.
            on_gpu: whether modules are on GPUs.
            **hyper_parameters: of the method.
        """
