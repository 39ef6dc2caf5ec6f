"""Backpropagation: the plain chain rule across modules, with its backward lock.

    module 1   play t ............................................ backward t | step
    module 2            play t ...................... backward t | step
    module K                     play t | backward t | step                      (time runs to the right)

Kept after the forward: the graph of batch t. Gradient: d_k^t, waited for. Weights: w^t.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fr_bench.methods.base import Method
from fr_bench.methods.policy import Policy


class Backpropagation(Method):
    """BP over K modules; with K = 1 ordinary training."""

    def play_lower(self, x: Tensor, t: int) -> Tensor:
        """Plays with a graph and keeps it."""
        self._live = self.module.play(x, t)
        return self._live.h

    def learn_lower(self, t: int) -> None:
        """Waits for the gradient of this very batch: every module above must have finished."""
        assert self._live is not None, "learn_lower() follows play_lower()"
        live, self._live = self._live, None
        d = self.link.receive_gradient(t)
        self.descend(live, d, t)

    @classmethod
    def policy(cls, **_: Any) -> Policy:
        """See :class:`Policy`."""
        return Policy(keeps="graph", gradient="true")
