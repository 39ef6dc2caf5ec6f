"""How busy GPUs were, from the `profile` records of all processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from fr_bench.records.reading import Record, number


def load_of(profiles: Iterable[Record]) -> tuple[float | None, float | None]:
    """(busy seconds, kernels) of an iteration, from one record of each process; None where no record tells.

    Processes that share a GPU take turns, so their times add up; of several GPUs, which are numbered from 0 on every
    machine, the busiest counts.
    """
    by_device: defaultdict[tuple[str, str], float] = defaultdict(float)
    kernels: list[float] = []
    for record in profiles:
        if (busy_s := number(record, "busy_s")) is not None:
            by_device[str(record.get("host")), str(record.get("device"))] += busy_s
        if (num_kernels := number(record, "num_kernels")) is not None:
            kernels.append(num_kernels)
    return max(by_device.values(), default=None), sum(kernels) if kernels else None
