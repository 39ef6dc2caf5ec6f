"""Small methods for tests, reached by `_target_` as a user's own would be."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fr_bench.methods.base import Link
from fr_bench.methods.bp import Backpropagation
from fr_bench.methods.ddg import DecoupledDelayedGradients
from fr_bench.methods.delayed import DelayedMethod
from fr_bench.methods.fr import FeaturesReplay
from fr_bench.modules.module import Module
from fr_bench.modules.passes import Pass


class Shrinking(DelayedMethod[Any]):
    """Error gradients shrink on their way down (Zhuang et al., fully decoupled training)."""

    def __init__(self, module: Module, link: Link, *, factor: float, **settings: Any) -> None:
        super().__init__(module, link, **settings)
        self.factor = factor

    @classmethod
    def check(cls, factor: float, **settings: Any) -> None:  # type: ignore[override]
        super().check(**settings)

    def descend(self, live: Pass, d: Tensor, t: int) -> None:
        super().descend(live, d * self.factor, t)


class ShrinkingFR(Shrinking, FeaturesReplay):
    """FR's."""


class ShrinkingDDG(Shrinking, DecoupledDelayedGradients):
    """DDG's."""


class Measuring(Backpropagation):
    """Notes numbers and, in every second iteration, the length of a gradient."""

    def descend(self, live: Pass, d: Tensor, t: int) -> None:
        self.module.record("batch", t)
        if t % 2:
            self.module.record("length", d.norm().reshape(1))
        super().descend(live, d, t)


class Accompanied(Backpropagation):
    """Trains a layer beside every module to tell the first feature from the others; with the gradients of all replicas,
    if it ``sums`` them."""

    def __init__(self, module: Module, link: Link, *, sums: bool) -> None:
        super().__init__(module, link)
        self.sums = sums
        self.layer = module.like_network(nn.Linear(math.prod(module.output_shape[1:]) - 1, 1))
        self.layer_optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1)

    @classmethod
    def check(cls, sums: bool) -> None:  # type: ignore[override]
        super().check()

    def play_lower(self, x: Tensor, t: int) -> Tensor:
        h = super().play_lower(x, t)
        features = h.detach().flatten(start_dim=1)
        self.layer_optimizer.zero_grad()
        (self.layer(features[:, 1:]) - features[:, :1]).square().mean().backward()
        if self.sums and self.module.replicas is not None:
            self.module.replicas.add_up([p.grad for p in self.layer.parameters() if p.grad is not None])
        self.layer_optimizer.step()
        return h


class ChangesGradients(DelayedMethod[Any]):
    """Changes gradients before the step; those of all replicas, if it ``sums`` them first."""

    def __init__(self, module: Module, link: Link, *, sums: bool, **settings: Any) -> None:
        super().__init__(module, link, **settings)
        self.sums = sums

    @classmethod
    def check(cls, sums: bool, **settings: Any) -> None:  # type: ignore[override]
        super().check(**settings)

    def descend(self, live: Pass, d: Tensor, t: int) -> None:
        self.link.send_gradient(self.module.backward(live, d=d), live.batch)
        if self.sums:
            self.module.sum_gradients(t)
        with torch.no_grad():
            for name, parameter in self.module.network.named_parameters():
                assert parameter.grad is not None
                self.change(parameter, parameter.grad, None if live.copies is None else live.copies[name])
        self.module.step(t)

    def change(self, parameter: Tensor, gradient: Tensor, then: Tensor | None) -> None:
        raise NotImplementedError


class Compensated(ChangesGradients, DecoupledDelayedGradients):
    """Delay compensation (Zheng et al., ICML 2017): g + g g (w^t - w^s) in place of g."""

    def change(self, parameter: Tensor, gradient: Tensor, then: Tensor | None) -> None:
        assert then is not None
        parameter.grad = gradient + gradient**2 * (parameter - then)


class Doubled(ChangesGradients, FeaturesReplay):
    """Twice the gradient, in place."""

    def change(self, parameter: Tensor, gradient: Tensor, then: Tensor | None) -> None:
        gradient.mul_(2)


class Noisy(Backpropagation):
    """Draws noise before the pass of a play, and again where it learns."""

    def play_lower(self, x: Tensor, t: int) -> Tensor:
        return super().play_lower(x + 0.1 * torch.rand_like(x), t)

    def descend(self, live: Pass, d: Tensor, t: int) -> None:
        super().descend(live, d * torch.rand_like(d), t)


class Patient(FeaturesReplay):
    """FR whose gradients may take an iteration longer over every link."""

    def learn_lower(self, t: int) -> None:
        if self.num_plays > 2 * self.module.delay:
            batch, kept = self.kept.popleft()
            self.learn_delayed(kept, batch, t)
