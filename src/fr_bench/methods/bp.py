"""Backpropagation: the plain chain rule across modules, with its backward lock.

    module 1   play t ............................................ backward t | step
    module 2            play t ...................... backward t | step
    module K                     play t | backward t | step                      (time runs to the right)

Kept after the forward: the graph of batch t. Gradient: d_k^t, waited for. Weights: w^t.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fr_bench.errors import ConfigError
from fr_bench.methods.base import Link, Method
from fr_bench.methods.policy import Policy
from fr_bench.modules.module import Module


class Backpropagation(Method):
    """BP over K modules; with K = 1 ordinary training.

    Args:
        checkpoint_activations: keeps the inputs of the blocks alone and recomputes each block in the backward (Chen
            et al. 2016): like FR it pays a second forward, for memory instead of time. The numbers stay the same.
    """

    def __init__(self, module: Module, link: Link, *, checkpoint_activations: bool = False) -> None:
        super().__init__(module, link)  # the network checkpoints by the policy, from its first pass on

    def play_lower(self, x: Tensor, t: int) -> Tensor:
        """Plays with a graph and keeps it."""
        self._live = self.module.play(x, t)
        return self._live.hand_over()

    def learn_lower(self, t: int) -> None:
        """Waits for the gradient of this very batch: every module above must have finished."""
        assert self._live is not None, "learn_lower() follows play_lower()"
        live, self._live = self._live, None
        d = self.link.receive_gradient(t)
        self.descend(live, d, t)

    @classmethod
    def check(cls, checkpoint_activations: bool = False) -> None:
        """Raises ConfigError for something else than true or false."""
        if not isinstance(checkpoint_activations, bool):
            raise ConfigError(f"method.checkpoint_activations={checkpoint_activations}: must be true or false")

    @classmethod
    def policy(cls, checkpoint_activations: bool = False, **_: Any) -> Policy:
        """See :class:`Policy`."""
        return Policy(keeps="graph", gradient="true", recomputes=checkpoint_activations)
