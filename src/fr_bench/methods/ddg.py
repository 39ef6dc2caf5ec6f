"""DDG, decoupled parallel backpropagation (Huo, Gu, Yang, Huang, ICML 2018): keep the graphs, delay the gradient.

    module k < K, iteration t, with s = t - (K - k):
        receive h_{k-1}^t | play t, keep the graph | send h_k^t | wait for d_k^{t-1} | backward s | send down | step
    module K:
        receive h_{K-1}^t | play t | loss, backward t | send down | step

Kept after the forward: the graphs of the last K-k+1 batches. Gradient: d_k^{t-1}. Weights: w^s, those of the
play, while the step changes w^t. An optimizer changes weights in place, which would break a graph that is still
to be used, so each graph is built on its own copy of the weights: the stash. Batch norm's running statistics are
no part of it; they move once a batch, at play.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fr_bench.methods.base import Link
from fr_bench.methods.delayed import DelayedMethod, check_choice, check_exchange
from fr_bench.methods.policy import Policy
from fr_bench.modules.module import Module
from fr_bench.modules.passes import Pass, PassKind


class DecoupledDelayedGradients(DelayedMethod[Pass]):
    """DDG. What it keeps of a batch is the pass, with the weight copies that its graph was built on.

    Args:
        weights: ``stashed`` is the published gradient, at the weights of the play. ``current`` is a deviation,
            what the authors' public code does: activations of the play back-propagated through weights that
            have been updated since, the gradient of no function.
        warmup, carry_history: see :class:`DelayedMethod`.
    """

    def __init__(
        self,
        module: Module,
        link: Link,
        *,
        weights: str = "stashed",
        warmup: str = "skip",
        carry_history: bool = True,
    ) -> None:
        super().__init__(module, link, warmup=warmup, carry_history=carry_history)
        self.weights = weights

    def play_lower(self, x: Tensor, t: int) -> Tensor:
        """Plays on a copy of the weights and keeps the graph with it."""
        if self.weights == "stashed":
            buffers = self.module.network.moving_buffers()
            live = self.module.play_on_copies(x, t)
            live.buffers = buffers
        else:
            # Hooks keep what the graph saves without autograd's check that it is unchanged; not the very tensor, which
            # may be an output that would keep its own graph for ever.
            with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda saved: saved):
                live = self.module.play(x, t)
        self.keep(t, live)
        return live.hand_over()

    def learn_delayed(self, kept: Pass, batch: int, t: int) -> None:
        """Waits for the gradient of the kept graph and back-propagates it."""
        self.descend(kept, self.link.receive_gradient(batch), t)

    def account_play(self, x: Tensor, t: int) -> tuple[Pass, dict[str, list[Tensor]]]:
        """See :class:`Method`: the graph is built on a copy of the weights."""
        if self.module.is_top or self.weights == "current":
            return super().account_play(x, t)
        live = self.module.play_on_copies(x, t, update_statistics=False)
        return live, {"stash": list((live.copies or {}).values())}

    @property
    def num_graphs(self) -> int:
        """Those in flight, and the one of the batch that is being played."""
        return len(self.kept) + 1

    def kept_tensors(self) -> dict[str, list[Tensor]]:
        """The stash; the inputs belong to the graphs."""
        return {"stash": [copy for _, kept in self.kept for copy in (kept.copies or {}).values()]}

    @property
    def resumes_exactly(self) -> bool:
        """Not with ``weights=current``: what its graphs mix of old activations and new weights cannot be rebuilt."""
        return self.weights == "stashed" or self.module.is_top

    def state_dict(self) -> dict[str, Any]:
        """Inputs, weight copies and what else a play began with: graphs cannot be saved, they are rebuilt. ``current``
        saves an empty pipe."""
        if self.weights == "current":
            return {"kept": [], "num_plays": 0}
        kept = [
            (batch, kept.x.detach(), {name: copy.detach() for name, copy in (kept.copies or {}).items()}, kept.buffers)
            for batch, kept in self.kept
        ]
        return {"kept": kept, "num_plays": self.num_plays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rebuilds the graphs without a second update of the statistics."""
        for batch, x, copies, *rest in state["kept"]:
            buffers = rest[0] if rest else {}  # older checkpoints lack them
            with self.module.network.buffers_as(buffers):
                live = self.module.play_on_copies(x, batch, copies, update_statistics=False)
            live.buffers = buffers
            self.kept.append((batch, live))
        self.num_plays = state["num_plays"]

    @classmethod
    def check(cls, weights: str = "stashed", warmup: str = "skip", carry_history: bool = True) -> None:
        """Raises ConfigError for a choice that does not exist."""
        check_exchange(warmup, carry_history)
        check_choice("weights", weights, ("stashed", "current"))

    @classmethod
    def passes(cls, is_top: bool, **_: Any) -> Sequence[PassKind]:
        """See :class:`Method`: below the top, plays on copies of the weights."""
        return super().passes(is_top) if is_top else [PassKind(graph=True, update_statistics=True, on_copies=True)]

    @classmethod
    def policy(cls, weights: str = "stashed", carry_history: bool = True, **_: Any) -> Policy:
        """See :class:`Policy`."""
        at: Literal["stale", "mixed"] = "stale" if weights == "stashed" else "mixed"
        return Policy(keeps="graphs", gradient="delayed", weights=at, starts_anew=not carry_history)
