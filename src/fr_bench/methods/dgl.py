"""DGL, decoupled greedy learning (Belilovsky, Eickenberg and Oyallon, ICML 2020), its synchronous algorithm.

    module k < K, iteration t:
        receive h_{k-1}^t | play t, keep the graph | send h_k^t | loss of the auxiliary network A_k on (h_k^t, labels) |
        backward t, through A_k and the module | step of A_k | step
    module K:
        receive h_{K-1}^t | play t | loss, backward t | step

Kept after the forward: the graph of batch t, for this iteration only. Gradient: that of a loss of the module's own.
Weights: w^t. No gradient is sent to another module, and no module waits for anything but its features. A_k is trained
with the optimizer, learning rate and schedule of its module, and thrown away in the end. Its loss and its share of
errors are in `method` records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fr_bench.errors import ConfigError
from fr_bench.measuring.saved_tensors import SavedTensors
from fr_bench.methods.auxiliary import AuxiliaryNetwork
from fr_bench.methods.base import Link, Method
from fr_bench.methods.companion import held_tensors, predicted_bytes, take_step
from fr_bench.methods.policy import Policy
from fr_bench.modules.buffers import still_statistics
from fr_bench.modules.learning_rates import LearningRates
from fr_bench.modules.loss import num_errors
from fr_bench.modules.module import Module
from fr_bench.modules.optimizer_state import load_state
from fr_bench.modules.passes import Pass
from fr_bench.seeds import derive_seed, streams_of


class DecoupledGreedyLearning(Method):
    """DGL.

    Args:
        num_convolutions, num_hidden: of the auxiliary network; see :class:`AuxiliaryNetwork`.
    """

    sends_gradients: ClassVar[bool] = False
    wants_one_label: ClassVar[bool] = True

    def __init__(self, module: Module, link: Link, *, num_convolutions: int = 3, num_hidden: int = 3) -> None:
        super().__init__(module, link)
        if module.is_top:
            return
        with streams_of(derive_seed(module.seed, "auxiliary", module.k)):
            self.auxiliary = self.companion(module.output_shape, module.num_classes, num_convolutions, num_hidden)
        module.like_network(self.auxiliary)
        self.optimizer = module.make_optimizer(self.auxiliary.parameters())
        self.learning_rates = LearningRates(self.optimizer, module.lr_multiplier)

    def play_lower(self, x: Tensor, t: int) -> Tensor:
        """Plays with a graph."""
        self._live = self.module.play(x, t, input_gradient=False)
        return self._live.h

    def learn_lower(self, t: int) -> None:
        """Learns from the auxiliary network's loss, and so does that."""
        assert self._live is not None, "learn_lower() follows play_lower()"
        live, self._live = self._live, None
        h = live.h.detach().requires_grad_()
        with self.module.watch.span("loss", t):
            with self.module.autocast():
                logits = self.auxiliary(h)
            targets = self.link.targets(t)
            loss = self.module.loss_of(logits, targets)
            loss.backward()
            self.module.record("auxiliary_loss", loss * self.module.num_replicas)  # of this one's images
            self.module.record("auxiliary_error", num_errors(logits.detach(), targets) / len(targets))
        self.module.finite.add(loss.detach(), t)
        assert h.grad is not None
        self.module.backward(live, d=h.grad)
        self._step_auxiliary(t)  # before the module's: an iteration ends with that
        self.module.step(t)

    def _step_auxiliary(self, t: int) -> None:
        if self.module.replicas is not None:  # each has the sum over its own images
            with self.module.watch.span("wait replicas", t):
                self.module.replicas.add_up([p.grad for p in self.auxiliary.parameters() if p.grad is not None])
        with self.module.watch.span("loss", t):
            take_step(self.optimizer, self.learning_rates, self.module.schedule(t))

    def account_play(self, x: Tensor, t: int) -> tuple[Pass, dict[str, list[Tensor]]]:
        """See :class:`Method`: the auxiliary network's graph lives beside the module's."""
        live, kept = super().account_play(x, t)
        if self.module.is_top:
            return live, kept
        saved = SavedTensors()
        with saved.listen(), still_statistics(self.auxiliary.modules()):
            with self.module.autocast():
                logits = self.auxiliary(live.h.detach().requires_grad_())
            self.module.loss_of(logits, self.link.targets(t))
        return live, {"synthesizer": saved.tensors}

    @classmethod
    def predict_memory(
        cls,
        output: Tensor,
        output_is_saved: bool,
        num_classes: int,
        make_optimizer: Callable[..., torch.optim.Optimizer],
        *_: Any,
        **settings: Any,
    ) -> dict[str, int]:
        """The auxiliary network's weights, optimizer state and graph, in the place of DNI's synthesizer."""
        with torch.device(output.device):
            auxiliary = cls.companion(output.shape, num_classes, **settings).to(output.dtype)
            labels = torch.empty(len(output), dtype=torch.int64)
        saved = SavedTensors()
        with saved.listen():
            F.cross_entropy(auxiliary(output.detach().requires_grad_()), labels, reduction="sum")
        return {"synthesizer": predicted_bytes(auxiliary, saved.tensors, output, output_is_saved, make_optimizer)}

    @classmethod
    def companion(
        cls, shape: Sequence[int], num_classes: int, num_convolutions: int = 3, num_hidden: int = 3, **_: Any
    ) -> AuxiliaryNetwork:
        """The auxiliary network."""
        return AuxiliaryNetwork(shape, num_convolutions, num_hidden, num_classes)

    def kept_tensors(self) -> dict[str, list[Tensor]]:
        """The auxiliary network's weights, statistics and optimizer state."""
        if self.module.is_top:
            return {}
        return {"synthesizer": held_tensors(self.auxiliary, self.optimizer)}

    @classmethod
    def needs_targets(cls, **_: Any) -> bool:
        """Every module has a loss."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """The auxiliary network and its optimizer."""
        if self.module.is_top:
            return {}
        return {"auxiliary": self.auxiliary.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores them."""
        if self.module.is_top:
            return
        self.auxiliary.load_state_dict(state["auxiliary"])
        load_state(self.optimizer, state["optimizer"])

    @classmethod
    def policy(cls, **_: Any) -> Policy:
        """See :class:`Policy`."""
        return Policy(keeps="graph", gradient="local")

    @classmethod
    def check(cls, num_convolutions: int = 3, num_hidden: int = 3) -> None:
        """Raises ConfigError for numbers of layers that are none."""
        for key, value in (("num_convolutions", num_convolutions), ("num_hidden", num_hidden)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"method.{key}={value}: must be an integer from 0 on")
