"""What a method keeps and which gradient it uses, as data: the table that memory, limits and docs derive from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Policy:
    """The row of module k < K; module K always learns from the loss of the batch that it has just played.

    Attributes:
        keeps: what stays after the forward: the ``graph`` of one batch, or ``graphs`` or ``inputs`` of several.
        gradient: ``true`` (d_k^t, waited for), ``delayed`` (d_k^{t-1}) or ``synthetic`` (predicted).
        weights: of the gradient: ``current`` (w^t), ``stale`` (w^s, stored) or ``mixed`` (neither).
        extra_forward: whether every batch is played and replayed.
        recomputes: whether the graph holds block inputs alone, and each block is recomputed in the backward.
    """

    keeps: Literal["graph", "graphs", "inputs"]
    gradient: Literal["true", "delayed", "synthetic"]
    weights: Literal["current", "stale", "mixed"] = "current"
    extra_forward: bool = False
    recomputes: bool = False

    def words(self) -> str:
        """Says it in a line: what is kept, and which gradient is used at which weights."""
        keeps = {
            "graph": "the graph of batch t",
            "graphs": "graphs of K-k+1 batches",
            "inputs": "inputs of K-k+1 batches",
        }
        gradient = {
            "true": "true, of batch t",
            "delayed": "delayed, of batch t-(K-k)",
            "synthetic": "synthetic, of batch t",
        }
        weights = {"current": "current weights", "stale": "stored weights of the play", "mixed": "mixed weights"}
        extra = ", after a second forward" if self.extra_forward or self.recomputes else ""
        return f"keeps {keeps[self.keeps]}; gradient {gradient[self.gradient]}, at {weights[self.weights]}{extra}"

    def batch_delay(self, k: int, num_modules: int) -> int:
        """How many iterations old the batch (features and its gradient) is that module k learns from."""
        return num_modules - k if self.gradient == "delayed" else 0

    def weight_delay(self, k: int, num_modules: int) -> int:
        """How many iterations old the weights are that its gradient is taken at."""
        return self.batch_delay(k, num_modules) if self.weights == "stale" else 0

    def kept_batches(self, k: int, num_modules: int) -> int:
        """How many batches' graphs or inputs module k holds at once, at most."""
        return self.batch_delay(k, num_modules) + 1

    def busy(self, k: int, num_modules: int, play: float, forward: float, backward: float) -> float:
        """What a mini-batch costs module k, from the costs of its passes: all pay a forward with a graph and a
        backward; a play without one comes on top where module k replays, or recomputes."""
        plays_too = self.recomputes or (self.extra_forward and k < num_modules)
        return play * plays_too + forward + backward

    def staleness(self, num_modules: int) -> list[dict[str, int]]:
        """By module: the delays of batch and weights, and the number of batches kept."""
        return [
            {
                "module": k,
                "batch_delay": self.batch_delay(k, num_modules),
                "weight_delay": self.weight_delay(k, num_modules),
                "kept_batches": self.kept_batches(k, num_modules),
            }
            for k in range(1, num_modules + 1)
        ]
