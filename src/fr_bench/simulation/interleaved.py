"""Interleaved 1F1B (Narayanan et al., SC 2021): v chunks of the network on every device, so that the pipe fills faster.

K = 2 devices, v = 2 chunks, M = 4 micro-batches, P forward, B backward, . bubble; device 1 has stages 1 and 3:

    device 1   PPPPP.BBPBBPBBPBB.BB.BBBBBB
    device 2   .PPPBBPBBPBBPBBPBBPBBBBBB..
"""

from __future__ import annotations

from fr_bench.errors import ConfigError
from fr_bench.simulation.costs import Setup
from fr_bench.simulation.pipelines import Action, check_microbatches, pipeline
from fr_bench.simulation.program import Schedule


def interleaved(setup: Setup, num_microbatches: int, num_chunks: int) -> Schedule:
    """With equal stages the bubble is that of 1F1B over v; messages are v times as many.

    Args:
        setup: costs of all K v stages, in the order of the network; stage s is on device s modulo K.
        num_microbatches: M, a multiple of K: Megatron's order, which this is, takes them in groups of K.
        num_chunks: v.

    Raises:
        ConfigError: a number of micro-batches or chunks that does not divide.
    """
    if num_chunks < 1 or setup.num_modules % num_chunks:
        raise ConfigError(f"num_chunks={num_chunks}: must divide the {setup.num_modules} stages")
    num_devices = setup.num_modules // num_chunks
    check_microbatches(num_microbatches, multiple_of=num_devices)
    orders = [_order(device, num_devices, num_microbatches, num_chunks) for device in range(num_devices)]
    return pipeline(f"interleaved 1f1b, {num_chunks} chunks", setup, orders, num_microbatches)


def _order(device: int, num_devices: int, num_microbatches: int, num_chunks: int) -> list[Action]:
    # Forwards: K micro-batches through chunk 1, the same K through chunk 2, ...; backwards from the last chunk on.
    chunks = [chunk for chunk in range(num_chunks) for _ in range(num_devices)] * (num_microbatches // num_devices)
    forwards = [Action("F", chunk * num_devices + device) for chunk in chunks]
    backwards = [Action("B", (num_chunks - 1 - chunk) * num_devices + device) for chunk in chunks]
    num_ahead = min(len(forwards), (num_chunks - 1) * num_devices + 2 * (num_devices - 1 - device))
    steady = [
        action
        for pair in zip(forwards[num_ahead:], backwards, strict=False)  # as many pairs as forwards are left
        for action in pair
    ]
    return [*forwards[:num_ahead], *steady, *backwards[len(forwards) - num_ahead :]]
