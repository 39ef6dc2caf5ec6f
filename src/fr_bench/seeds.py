"""Seeds by purpose: every random stream is keyed by what it is for, never by the order of calls.

A stream keyed by name cannot shift when K, the method, the transport or the number of devices changes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def derive_seed(*parts: object) -> int:
    """Returns a 63-bit seed that depends on ``parts`` alone, the same on every machine and Python version.

    Example: ``derive_seed(seed, "order", epoch)``.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def streams_of(seed: int) -> Iterator[None]:
    """Inside, whatever draws from torch's default generators, Python's or numpy's follows from ``seed``, as initial
    weights do; those of the host go on afterwards where they were."""
    import torch

    with torch.random.fork_rng(devices=[]), host_streams(seed):
        torch.manual_seed(seed)
        yield


@contextmanager
def host_streams(seed: int) -> Iterator[Callable[[], bool]]:
    """Inside, what Python's ``random`` and numpy's global functions draw follows from ``seed``; afterwards they go on
    where they were.

    Yields:
        tells whether any of it was drawn so far.
    """
    import numpy as np  # a tenth of a second, which whoever only derives seeds need not pay

    def states() -> tuple[object, ...]:
        of_numpy = np.random.get_state(legacy=False)
        return random.getstate(), of_numpy["state"]["key"].tobytes(), of_numpy["state"]["pos"], of_numpy["has_gauss"]

    before, numpy_before = random.getstate(), np.random.get_state(legacy=False)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    seeded = states()
    try:
        yield lambda: states() != seeded
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)
