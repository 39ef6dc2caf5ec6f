"""Data parallelism: K devices, each with the whole network and 1/K of the mini-batch, and a ring all-reduce.

device 1   load | forward | backward         | rest of the all-reduce | step
device 2   load | forward | backward         | rest of the all-reduce | step
                             all-reduce, bucket by bucket ........... |
"""

from __future__ import annotations

from fr_bench.simulation.costs import Setup
from fr_bench.simulation.program import Barrier, Compute, Pause, Schedule

BUCKET_BYTES = 25 * 2**20  # DistributedDataParallel's: the last bucket is reduced after the backward at the earliest


def ring_all_reduce_s(num_bytes: float, num_devices: int, setup: Setup) -> float:
    """Seconds of a ring all-reduce: 2 (K - 1) messages of 1/K of the bytes, one after the other (Patarasuk and Yuan,
    2009), over the setup's links."""
    num_messages = 2 * (num_devices - 1)
    return num_messages * (setup.link.latency_s + num_bytes / num_devices / setup.link.bandwidth_bytes_per_s)


def data_parallel(setup: Setup, gradient_bytes: float, num_devices: int | None = None) -> Schedule:
    """Assumes that 1/K of the batch takes 1/K of the time, and that the all-reduce hides behind the backward but for
    its last bucket.

    Args:
        setup: costs of the network on one device, in any number of modules; its stragglers are the K devices.
        gradient_bytes: of all parameters.
        num_devices: K; by default as many as there are modules.
    """
    k = num_devices or setup.num_modules
    backward_s = sum(times.backward_s for times in setup.modules) / k
    forward_s = sum(times.forward_s for times in setup.modules) / k
    last_bucket_s = ring_all_reduce_s(min(gradient_bytes, BUCKET_BYTES), k, setup)
    exposed_s = max(ring_all_reduce_s(gradient_bytes, k, setup) - backward_s, last_bucket_s)
    program = (
        Compute("load images", setup.modules[0].load_s / k),
        Compute("play", forward_s),
        Compute("backward", backward_s),
        Barrier(),  # a ring waits for its slowest member
        Pause("wait all-reduce", exposed_s),
        Compute("step", sum(times.step_s for times in setup.modules)),
    )
    return Schedule("ddp", setup, (program,) * k, num_settling=2, num_measured=2)
