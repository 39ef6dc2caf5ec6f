"""How fast a method without backward locking can be at best, from what each module pays for a mini-batch.

Work is counted in forwards: a layer's forward costs 1, its backward ``backward_per_forward``. Locked
backpropagation on K devices takes the sum of all modules' work, (1 + b) L, whatever K is. Without locks the
busiest module sets the pace, and transport hides behind it:

    module k < K, FR        play | replay: forward | backward        1 + 1 + b a layer
    every other module             forward         | backward            1 + b a layer

With FR's K modules balanced (module K, which does not replay, gets (2 + b) / (1 + b) of the others' layers) the
speed-up is 1 + (K - 1)(1 + b) / (2 + b); with equal cuts it is K (1 + b) / (2 + b).
"""

from __future__ import annotations

from collections.abc import Sequence

BACKWARD_PER_FORWARD = 2.0  # the usual rule of thumb for convolutional networks on GPUs
REPLAYING = ("fr",)
KEEPING_GRAPHS = ("ddg", "dni", "cdni", "dgl")  # one forward and one backward a layer
WITH_COMPANIONS = ("dni", "cdni", "dgl")  # the work of a synthesizer or auxiliary network is not counted


def speedup_limit(shares: Sequence[float], backward_per_forward: float, replays: bool) -> float:
    """Returns the largest speed-up over locked backpropagation for one partition.

    Args:
        shares: of the network's forward work, by module; any unit.
        backward_per_forward: cost of a backward, in forwards.
        replays: whether modules 1..K-1 play and replay every mini-batch.
    """
    learning = 1 + backward_per_forward
    below = learning + replays
    busiest = max([share * below for share in shares[:-1]] + [shares[-1] * learning])
    return sum(shares) * learning / busiest


def balanced_shares(num_modules: int, backward_per_forward: float, replays: bool) -> list[float]:
    """Returns shares of the forward work under which all modules are equally busy (see ``speedup_limit``)."""
    learning = 1 + backward_per_forward
    return [1 / (learning + replays)] * (num_modules - 1) + [1 / learning]


def balanced_limit(method: str, num_modules: int, backward_per_forward: float = BACKWARD_PER_FORWARD) -> float | None:
    """Returns the limit of ``method`` (by name) with balanced modules; None for one whose costs are not known here."""
    if method not in REPLAYING + KEEPING_GRAPHS:
        return None
    replays = method in REPLAYING
    shares = balanced_shares(num_modules, backward_per_forward, replays)
    return speedup_limit(shares, backward_per_forward, replays)
