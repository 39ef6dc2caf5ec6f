"""Features Replay (Huo, Gu, Huang, NeurIPS 2018, Algorithm 1): keep the input, replay it with current weights.

    module k < K, iteration t, with s = t - (K - k):
        receive h_{k-1}^t | play t | send h_k^t | replay s forward | wait for d_k^{t-1} | backward s | send down | step
    module K:
        receive h_{K-1}^t | play t | loss, backward t | send down | step

Nobody waits for a gradient of the batch it has just played: d_k^{t-1}, made by module k+1 one iteration
earlier, belongs to batch s. Playing before waiting removes the forward lock too, and replaying forward before
waiting puts a forward's worth of slack on every link. Neither changes a number.

Kept after the forward: the inputs of the last K-k+1 batches. Gradient: d_k^{t-1}. Weights: w^t, never stale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fr_bench.methods.base import Link
from fr_bench.methods.delayed import DelayedMethod, check_choice, check_exchange
from fr_bench.methods.policy import Policy
from fr_bench.modules.module import Module
from fr_bench.modules.passes import Pass, PassKind


class FeaturesReplay(DelayedMethod[Tensor]):
    """FR.

    Args:
        bn_stats: which of the two forward passes moves the running statistics of batch norm. ``replay``
            counts every batch once, as BP does; ``both`` is what the authors' code does.
        warmup, carry_history: see :class:`DelayedMethod`.
    """

    def __init__(
        self,
        module: Module,
        link: Link,
        *,
        warmup: str = "skip",
        bn_stats: str = "replay",
        carry_history: bool = True,
    ) -> None:
        super().__init__(module, link, warmup=warmup, carry_history=carry_history)
        self.bn_stats = bn_stats

    def play_lower(self, x: Tensor, t: int) -> Tensor:
        """Plays without a graph and keeps the input."""
        played = self.module.play(x, t, graph=False, update_statistics=self.bn_stats in ("play", "both"))
        self.keep(t, x)
        return played.h

    def learn_delayed(self, kept: Tensor, batch: int, t: int) -> None:
        """Replays the kept input with current weights, and only then waits for its gradient."""
        replayed = self.module.replay(kept, batch, update_statistics=self.bn_stats in ("replay", "both"))
        replayed.hand_over()  # to nobody
        d = self.link.receive_gradient(batch)
        self.descend(replayed, d, t)

    def account_play(self, x: Tensor, t: int) -> tuple[Pass, dict[str, list[Tensor]]]:
        """See :class:`Method`: the graph is that of a replay, and the input is part of the history."""
        live, _ = super().account_play(x, t)
        return live, {} if self.module.is_top else {"history": [x]}

    def kept_tensors(self) -> dict[str, list[Tensor]]:
        """The history of inputs."""
        return {"history": [x for _, x in self.kept]}

    def state_dict(self) -> dict[str, Any]:
        """The history; gradients in flight belong to the transport."""
        return {"kept": list(self.kept), "num_plays": self.num_plays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the history."""
        self.kept.extend(state["kept"])
        self.num_plays = state["num_plays"]

    @classmethod
    def check(cls, warmup: str = "skip", bn_stats: str = "replay", carry_history: bool = True) -> None:
        """Raises ConfigError for a choice that does not exist."""
        check_exchange(warmup, carry_history)
        check_choice("bn_stats", bn_stats, ("replay", "play", "both"))

    @classmethod
    def passes(cls, is_top: bool, bn_stats: str = "replay", **_: Any) -> Sequence[PassKind]:
        """See :class:`Method`: play and replay."""
        if is_top:
            return super().passes(is_top)
        return [
            PassKind(graph=False, update_statistics=bn_stats in ("play", "both")),
            PassKind(graph=True, update_statistics=bn_stats in ("replay", "both")),
        ]

    @classmethod
    def policy(cls, carry_history: bool = True, **_: Any) -> Policy:
        """See :class:`Policy`."""
        return Policy(keeps="inputs", gradient="delayed", extra_forward=True, starts_anew=not carry_history)
