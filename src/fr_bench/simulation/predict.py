"""Schedules by the names of bench.json."""

from __future__ import annotations

from collections.abc import Callable

from fr_bench.errors import ConfigError, nearest
from fr_bench.simulation.costs import Setup
from fr_bench.simulation.data_parallel import data_parallel
from fr_bench.simulation.features_replay import features_replay
from fr_bench.simulation.gpipe import gpipe
from fr_bench.simulation.interleaved import interleaved
from fr_bench.simulation.kept_graphs import delayed_gradients, local_losses, synthetic_gradients
from fr_bench.simulation.locked import locked
from fr_bench.simulation.one_f_one_b import one_f_one_b
from fr_bench.simulation.program import Schedule
from fr_bench.simulation.zero_bubble import zero_bubble

METHODS = ("bp", "fr", "ddg", "dni", "cdni", "dgl")
PIPELINES = ("gpipe", "1f1b", "interleaved", "zero_bubble")
PEERS = (*PIPELINES, "ddp")
CHUNKS = {"interleaved": 2}  # stages of a device; 1 in the others


def make_schedule(
    name: str,
    setup: Setup,
    *,
    recomputes: bool = False,
    num_microbatches: int | None = None,
    gradient_bytes: float = 0.0,
) -> Schedule:
    """Returns the schedule of a method, or of a peer.

    Args:
        name: one of METHODS or PEERS.
        setup: costs of modules 1..K, or of all stages of K devices (see CHUNKS); for ``ddp`` the whole network's, in as
            many modules as there are devices.
        recomputes: whether ``bp`` checkpoints its activations.
        num_microbatches: of the pipelines; by default four a device.
        gradient_bytes: of all parameters, for ``ddp``.

    Raises:
        ConfigError: an unknown name, or numbers that do not fit the setup.
    """
    m = 4 * (setup.num_modules // CHUNKS.get(name, 1)) if num_microbatches is None else num_microbatches
    makers: dict[str, Callable[[], Schedule]] = {
        "bp": lambda: locked(setup, recomputes),
        "fr": lambda: features_replay(setup),
        "ddg": lambda: delayed_gradients(setup),
        "dni": lambda: synthetic_gradients(setup),
        "cdni": lambda: synthetic_gradients(setup, "cdni"),
        "dgl": lambda: local_losses(setup),
        "gpipe": lambda: gpipe(setup, m),
        "1f1b": lambda: one_f_one_b(setup, m),
        "interleaved": lambda: interleaved(setup, m, CHUNKS["interleaved"]),
        "zero_bubble": lambda: zero_bubble(setup, m),
        "ddp": lambda: data_parallel(setup, gradient_bytes),
    }
    if name not in makers:
        raise ConfigError(
            f"simulate: no schedule is called '{name}'; there are {', '.join(makers)}.{nearest(name, makers)}"
        )
    return makers[name]()
