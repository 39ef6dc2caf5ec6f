"""The settings of a simulation of more devices: ``simulate.KEY=VALUE`` of ``fr-bench bench``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from typing import Any

from fr_bench.errors import ConfigError, nearest
from fr_bench.simulation.costs import Link
from fr_bench.simulation.predict import METHODS, PEERS

NAMES = (*METHODS, *PEERS)


@dataclass
class SimulateSettings:
    """What is simulated.

    Attributes:
        k: numbers of devices; None for no simulation.
        methods: names of methods, ours or a user's own (see fr_bench.bench.forecast), and of peers.
        bandwidth_gb_s: of each direction of a link, 10^9 bytes a second; None for messages that take no time to pass.
        latency_us: of a message, microseconds.
        straggler: factors on the compute times of devices 1, 2, ...; those beyond the list are not slow. None for no
            straggler.
    """

    k: list[int] | None = None
    methods: list[str] = field(default_factory=lambda: [name for name in NAMES if name != "cdni"])
    bandwidth_gb_s: float | None = None
    latency_us: float = 0.0
    straggler: list[float] | None = None

    def link(self) -> Link:
        """Between two neighbours. Something else than the modules copies messages."""
        bandwidth = math.inf if self.bandwidth_gb_s is None else self.bandwidth_gb_s * 1e9
        return Link(latency_s=self.latency_us * 1e-6, bandwidth_bytes_per_s=bandwidth)


SIMULATE_HELP = {
    "k": "numbers of devices to simulate, such as [8,16,64], from block costs timed on this machine; null: none",
    "methods": "methods and peers to simulate; of your own those made from one of ours",
    "bandwidth_gb_s": "of each direction of a link, 10^9 bytes a second; null: messages pass in no time",
    "latency_us": "of a message, microseconds",
    "straggler": "factors on the compute times of devices 1, 2, ..., such as [1,1,2]; null: none is slow",
}


def make_simulate_settings(values: dict[str, Any]) -> SimulateSettings:
    """The settings with ``values``, by key without ``simulate.``, in place of the defaults.

    Raises:
        ConfigError: an unknown key, a wrong type, a number out of range, or settings without ``simulate.k``.
    """
    known = [each.name for each in fields(SimulateSettings)]
    for key in values:
        if key not in known:
            rest = f"There are simulate.{', simulate.'.join(known)}."
            raise ConfigError(f"simulate.{key}: unknown.{nearest(key, known)} {rest}")
    settings = SimulateSettings(**values)
    _check_k(settings.k)
    _check_methods(settings.methods)
    if settings.bandwidth_gb_s is not None and not (
        _is_number(settings.bandwidth_gb_s) and settings.bandwidth_gb_s > 0
    ):
        raise ConfigError(f"simulate.bandwidth_gb_s={settings.bandwidth_gb_s}: must be above 0, or null.")
    if not (_is_number(settings.latency_us) and settings.latency_us >= 0):
        raise ConfigError(f"simulate.latency_us={settings.latency_us}: must be a number of at least 0.")
    _check_straggler(settings.straggler, settings.k)
    if settings.k is None and values.keys() - {"k"}:
        key = min(values.keys() - {"k"})
        raise ConfigError(f"simulate.{key}={values[key]}: has no effect without simulate.k, such as simulate.k=[8,16].")
    return settings


def _check_k(k: Any) -> None:
    if k is None:
        return
    if not isinstance(k, list) or not k or any(type(number) is not int or number < 1 for number in k):
        raise ConfigError(f"simulate.k={k}: must be a list of integers of at least 1, such as [8,16,64], or null.")


def _check_methods(methods: Any) -> None:
    """Which names there are is not known here: a user may have more."""
    names = methods if isinstance(methods, list) else []
    if not names or any(not re.fullmatch(r"[\w.-]+", str(name)) for name in names):
        raise ConfigError(f"simulate.methods={methods}: must be a list of names such as [bp,fr,1f1b].")


def _check_straggler(straggler: Any, k: list[int] | None) -> None:
    if straggler is None:
        return
    if not isinstance(straggler, list) or any(not _is_number(factor) or factor <= 0 for factor in straggler):
        raise ConfigError(
            f"simulate.straggler={straggler}: must be a list of factors above 0 such as [1,1,2], or null."
        )
    if k is not None and len(straggler) > min(k):
        raise ConfigError(
            f"simulate.straggler={straggler}: has {len(straggler)} factors, and simulate.k={k} has {min(k)} devices."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
