"""What FR and DDG share: the exchange with delayed gradients, its warm-up and its queue.

In iteration t module k < K learns from batch s = t - (K - k) with d_k^{t-1}, which module k+1 made one iteration
earlier from that same batch. While t < K - k there is nothing to learn from yet.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Generic, TypeVar

import torch

from fr_bench.errors import ConfigError, nearest
from fr_bench.methods.base import Link, Method
from fr_bench.modules.module import Module

Kept = TypeVar("Kept")


class DelayedMethod(Method, Generic[Kept]):
    """Keeps something of each of the last K-k+1 batches and learns from the oldest.

    Args:
        warmup: what module k does while t < K - k. ``skip`` makes no step (the authors' code), ``zero`` steps
            with a zero gradient, so that weight decay and momentum act (the FR paper's text).
        carry_history: False discards what is kept, and the gradients in flight, at the start of every epoch.
    """

    def __init__(self, module: Module, link: Link, *, warmup: str = "skip", carry_history: bool = True) -> None:
        super().__init__(module, link)
        self.warmup = warmup
        self.carry_history = carry_history
        self.kept: deque[tuple[int, Kept]] = deque()
        self.num_plays = 0  # since the queue was last empty

    def keep(self, batch: int, kept: Kept) -> None:
        """Puts what the play of ``batch`` left behind at the end of the queue."""
        self.kept.append((batch, kept))
        self.num_plays += 1

    def learn_delayed(self, kept: Kept, batch: int, t: int) -> None:
        """Learns from ``batch`` in iteration ``t``."""
        raise NotImplementedError

    def learn_lower(self, t: int) -> None:
        """Learns from the batch of K - k iterations ago, once there is one."""
        if self.num_plays > self.module.delay:
            batch, kept = self.kept.popleft()
            self.learn_delayed(kept, batch, t)
        elif self.warmup == "zero":
            for parameter in self.module.network.parameters():
                if parameter.requires_grad:  # one that does not is no part of training
                    parameter.grad = torch.zeros_like(parameter)
            self.module.step(t)

    def start_epoch(self) -> None:
        """Discards the queue and the gradient in flight where ``carry_history`` is off."""
        if self.carry_history or self.module.is_top:
            return
        if self.num_plays >= self.module.delay:  # the module above has learned, so one gradient is on its way
            oldest_batch, _ = self.kept[0]
            self.link.receive_gradient(oldest_batch)
        self.kept.clear()
        self.num_plays = 0


def check_exchange(warmup: str, carry_history: bool) -> None:
    """Raises ConfigError for a ``warmup`` or ``carry_history`` that does not exist."""
    check_choice("warmup", warmup, ("skip", "zero"))
    if not isinstance(carry_history, bool):
        raise ConfigError(f"method.carry_history={carry_history}: must be true or false")


def check_choice(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError unless ``method.<key>`` is one of ``allowed``."""
    if value not in allowed:
        raise ConfigError(f"method.{key}={value}: must be one of {', '.join(allowed)}.{nearest(str(value), allowed)}")
