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
    """

    keeps: Literal["graph", "graphs", "inputs"]
    gradient: Literal["true", "delayed", "synthetic"]
    weights: Literal["current", "stale", "mixed"] = "current"
    extra_forward: bool = False

    def batch_delay(self, k: int, num_modules: int) -> int:
        """How many iterations old the batch (features and its gradient) is that module k learns from."""
        return num_modules - k if self.gradient == "delayed" else 0

    def weight_delay(self, k: int, num_modules: int) -> int:
        """How many iterations old the weights are that its gradient is taken at."""
        return self.batch_delay(k, num_modules) if self.weights == "stale" else 0

    def kept_batches(self, k: int, num_modules: int) -> int:
        """How many batches' graphs or inputs module k holds at once, at most."""
        return self.batch_delay(k, num_modules) + 1

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
