"""What a method keeps and which gradient it uses, as data: the table that memory, limits and docs derive from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fr_bench.errors import ConfigError

Keeps = Literal["graph", "graphs", "inputs", "all micro-batches", "few micro-batches", "parts", "share"]
Gradient = Literal["true", "delayed", "synthetic", "local"]
Weights = Literal["current", "stale", "mixed"]


@dataclass(frozen=True)
class Policy:
    """The row of module k < K; module K always learns from the loss of the batch that it has just played.

    Attributes:
        keeps: what stays after the forward: the ``graph`` of one batch, or ``graphs`` or ``inputs`` of several; of a
            batch that is cut into micro-batches the graphs of ``all micro-batches``, of a ``few micro-batches``, or
            of a few and ``parts`` of others; of a batch that several processes share the graph of a ``share``.
        gradient: ``true`` (d_k^t, waited for), ``delayed`` (d_k^{t-1}), ``synthetic`` (predicted) or ``local`` (of a
            loss of the module's own).
        weights: of the gradient: ``current`` (w^t), ``stale`` (w^s, stored) or ``mixed`` (neither).
        extra_forward: whether every batch is played and replayed.
        recomputes: whether the graph holds block inputs alone, and each block is recomputed in the backward.
        num_microbatches: into which a batch is cut; 1 where it is not.
        starts_anew: whether what is kept, and in flight, is discarded at the start of every epoch.

    Raises:
        ConfigError: a word that is none of these.
    """

    keeps: Keeps
    gradient: Gradient
    weights: Weights = "current"
    extra_forward: bool = False
    recomputes: bool = False
    num_microbatches: int = 1
    starts_anew: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("keeps", Keeps), ("gradient", Gradient), ("weights", Weights)):
            if (value := getattr(self, name)) not in (known := get_args(choices)):
                raise ConfigError(f"method: its policy has {name}={value!r}; known are {', '.join(known)}.")

    def words(self) -> str:
        """Says it in a line: what is kept, and which gradient is used at which weights."""
        keeps = {
            "graph": "the graph of batch t",
            "graphs": "graphs of K-k+1 batches",
            "inputs": "inputs of K-k+1 batches",
            "all micro-batches": "graphs of all M micro-batches of batch t",
            "few micro-batches": "graphs of K-k+1 micro-batches of batch t",
            "parts": "graphs of K-k+1 micro-batches of batch t and parts of others",
            "share": "the graph of the process's share of batch t",
        }
        gradient = {
            "true": "true, of batch t",
            "delayed": "delayed, of batch t-(K-k)",
            "synthetic": "synthetic, of batch t",
            "local": "of a loss of its own, of batch t",
        }
        weights = {"current": "current weights", "stale": "stored weights of the play", "mixed": "mixed weights"}
        extra = ", after a second forward" if self.extra_forward or self.recomputes else ""
        return f"keeps {keeps[self.keeps]}; gradient {gradient[self.gradient]}, at {weights[self.weights]}{extra}"

    @property
    def replicates(self) -> bool:
        """Whether every process has the whole network and a share of the batch, instead of a module and all of it."""
        return self.keeps == "share"

    @property
    def is_predictable(self) -> bool:
        """Whether what is kept follows from this policy, so that a module's memory can be predicted."""
        return self.keeps != "parts"

    def num_graphs(self, k: int, num_modules: int) -> int:
        """How many graphs, each of one part of a batch, module k holds at once, at most."""
        if self.keeps == "few micro-batches":
            return min(self.num_microbatches, num_modules - k + 1)
        if self.keeps == "all micro-batches":
            return self.num_microbatches
        return self.kept_batches(k, num_modules) if self.keeps == "graphs" else 1

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
