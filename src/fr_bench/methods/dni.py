"""DNI, decoupled neural interfaces with synthetic gradients (Jaderberg et al., ICML 2017), and cDNI.

    module k < K, iteration t:
        receive h_{k-1}^t | play t, keep the graph | send h_k^t | train M_k on (h_k^{t-1}, d_k^{t-1}) |
        predict M_k(h_k^t) | backward t | send down | step
    module K:
        receive h_{K-1}^t | play t | loss, backward t | send down | step

Kept after the forward: the graph of batch t, for this iteration only. Gradient: the synthetic M_k(h_k^t), at once.
Weights: w^t. What module k sends down, its synthetic gradient back-propagated, is the target of M_{k-1}: only the
top's is the true one. M_k learns from iteration t before it is used in t + 1. How near it came to its target is in
`method` records: the mean squared error, in the units of a prediction, and the cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fr_bench.errors import ConfigError
from fr_bench.measuring.saved_tensors import SavedTensors
from fr_bench.methods.base import Link, Method
from fr_bench.methods.companion import held_tensors, predicted_bytes, take_step
from fr_bench.methods.policy import Policy
from fr_bench.methods.synthesizer import Synthesizer
from fr_bench.modules.buffers import still_statistics
from fr_bench.modules.learning_rates import LearningRates
from fr_bench.modules.module import Module
from fr_bench.modules.optimizer_state import load_state
from fr_bench.modules.passes import Pass
from fr_bench.seeds import derive_seed, streams_of


class DecoupledNeuralInterfaces(Method):
    """DNI; with ``conditional`` cDNI.

    M_k predicts B sqrt(n) d_k, where n is the number of elements of a sample's h_k: the gradient of the sample's own
    loss (that of d_k is divided by the batch size B), in units in which its elements are of order one. Without
    them the elements are around 1e-3, a step of Adam overshoots them a hundredfold, and nothing below learns.

    Args:
        optimizer: parameters -> optimizer of the synthesizer; its learning rate follows the run's schedule.
        conditional: whether the synthesizer also sees the labels, which then every module draws for itself.
        num_hidden, hidden_channels, kernel_size: of the synthesizer.
        clip_norm: largest norm of the synthesizer's gradient; None for no limit.
    """

    wants_one_label: ClassVar[bool] = True

    def __init__(
        self,
        module: Module,
        link: Link,
        *,
        optimizer: Callable[..., torch.optim.Optimizer],
        conditional: bool = False,
        num_hidden: int = 1,
        hidden_channels: int = 32,
        kernel_size: int = 5,
        clip_norm: float | None = 1.0,
    ) -> None:
        super().__init__(module, link)
        self.conditional = conditional
        self.clip_norm = clip_norm
        self._prediction: Tensor | None = None  # M_k(h_k^{t-1}), with its graph, until its target comes
        self._pending: tuple[Tensor, Tensor | None] | None = None  # what it was predicted from
        if module.is_top:
            return
        with streams_of(derive_seed(module.seed, "synthesizer", module.k)):
            self.synthesizer = self.companion(
                module.output_shape, module.num_classes, conditional, num_hidden, hidden_channels, kernel_size
            )
        module.like_network(self.synthesizer)
        self.optimizer = optimizer(self.synthesizer.parameters())
        self.learning_rates = LearningRates(self.optimizer)
        self.scale = module.global_batch_size * math.sqrt(math.prod(module.output_shape[1:]))

    def play_lower(self, x: Tensor, t: int) -> Tensor:
        """Plays with a graph."""
        self._live = self.module.play(x, t)
        return self._live.h

    def learn_lower(self, t: int) -> None:
        """Trains the synthesizer on the last batch, then learns from its prediction for this one."""
        assert self._live is not None, "learn_lower() follows play_lower()"
        live, self._live = self._live, None
        if self._prediction is not None:
            target = self.link.receive_gradient(t - 1) * self.scale
            with self.module.watch.span("synthesize", t - 1):
                self._train_synthesizer(target, t - 1)
        with self.module.watch.span("synthesize", t):
            prediction = self._predict(live.h.detach(), self.link.targets(t) if self.conditional else None)
        d = prediction.detach().to(live.h.dtype) / self.scale
        self.descend(live, d, t)

    def _predict(self, h: Tensor, labels: Tensor | None) -> Tensor:
        with self.module.autocast():
            self._prediction = self.synthesizer(h, labels)
        self._pending = (h, labels)
        return self._prediction

    def _train_synthesizer(self, target: Tensor, t: int) -> None:
        assert self._prediction is not None
        prediction = self._prediction.to(target.dtype)
        loss = F.mse_loss(prediction, target)
        loss.backward()
        self.module.record("synthesizer_loss", loss)
        self.module.record("synthesizer_cosine", _cosine(prediction.detach(), target))
        if self.module.replicas is not None:  # a mean over the samples, so the replicas' mean is that of the batch
            gradients = [parameter.grad for parameter in self.synthesizer.parameters()]
            self.module.replicas.average([gradient for gradient in gradients if gradient is not None])
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.synthesizer.parameters(), self.clip_norm)
        take_step(self.optimizer, self.learning_rates, self.module.schedule(t))

    def account_play(self, x: Tensor, t: int) -> tuple[Pass, dict[str, list[Tensor]]]:
        """See :class:`Method`: the synthesizer's graph lives beside the module's."""
        live, kept = super().account_play(x, t)
        if self.module.is_top:
            return live, kept
        saved = SavedTensors()
        with saved.listen(), still_statistics(self.synthesizer.modules()), self.module.autocast():
            self.synthesizer(live.h.detach(), self.link.targets(t) if self.conditional else None)
        return live, {"synthesizer": saved.tensors}

    @classmethod
    def predict_memory(
        cls,
        output: Tensor,
        output_is_saved: bool,
        num_classes: int,
        *_: Any,
        optimizer: Callable[..., torch.optim.Optimizer],
        **settings: Any,
    ) -> dict[str, int]:
        """The synthesizer's weights, optimizer state and graph."""
        with torch.device(output.device):
            synthesizer = cls.companion(output.shape, num_classes, **settings).to(output.dtype)
            labels = torch.empty(len(output), dtype=torch.int64)
        saved = SavedTensors()
        with saved.listen():
            synthesizer(output, labels)
        return {"synthesizer": predicted_bytes(synthesizer, saved.tensors, output, output_is_saved, optimizer)}

    @classmethod
    def companion(
        cls,
        shape: Sequence[int],
        num_classes: int,
        conditional: bool = False,
        num_hidden: int = 1,
        hidden_channels: int = 32,
        kernel_size: int = 5,
        **_: Any,
    ) -> Synthesizer:
        """The synthesizer."""
        return Synthesizer(shape, num_hidden, hidden_channels, kernel_size, num_classes if conditional else 0)

    def kept_tensors(self) -> dict[str, list[Tensor]]:
        """The synthesizer's weights, statistics and optimizer state."""
        if self.module.is_top:
            return {}
        return {"synthesizer": held_tensors(self.synthesizer, self.optimizer)}

    @classmethod
    def needs_targets(cls, conditional: bool = False, **_: Any) -> bool:
        """cDNI's modules do."""
        return conditional

    def state_dict(self) -> dict[str, Any]:
        """The synthesizer, its optimizer, and the features whose target is still on its way."""
        if self.module.is_top:
            return {}
        return {
            "synthesizer": self.synthesizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pending": self._pending,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the synthesizer and repeats its pending prediction, without a second update of statistics."""
        if self.module.is_top:
            return
        self.synthesizer.load_state_dict(state["synthesizer"])
        load_state(self.optimizer, state["optimizer"])
        if state["pending"] is not None:
            with still_statistics(self.synthesizer.modules()):
                self._predict(*state["pending"])

    @classmethod
    def policy(cls, **_: Any) -> Policy:
        """See :class:`Policy`."""
        return Policy(keeps="graph", gradient="synthetic")

    @classmethod
    def check(
        cls,
        optimizer: Any = None,
        conditional: bool = False,
        num_hidden: int = 1,
        hidden_channels: int = 32,
        kernel_size: int = 5,
        clip_norm: float | None = 1.0,
    ) -> None:
        """Raises ConfigError for sizes that make no synthesizer."""
        for key, value, low in (("num_hidden", num_hidden, 0), ("hidden_channels", hidden_channels, 1)):
            if not isinstance(value, int) or value < low:
                raise ConfigError(f"method.{key}={value}: must be an integer from {low} on")
        if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(f"method.kernel_size={kernel_size}: must be odd, so that the size is kept")
        if clip_norm is not None and clip_norm <= 0:
            raise ConfigError(f"method.clip_norm={clip_norm}: must be positive, or null for no limit")


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Of two tensors as vectors; 0 if one of them is 0, as the first prediction is."""
    return (one * other).sum() / (one.norm() * other.norm()).clamp_min(torch.finfo(one.dtype).tiny)
