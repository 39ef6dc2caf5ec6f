"""Where the modules of a run go: on this machine, on those on which torchrun started processes, or who knows where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fr_bench.methods.base import Method
from fr_bench.planning.environment import usable_cores
from fr_bench.planning.transport_choice import check_usable, choose_transport, module_devices
from fr_bench.processes.torchrun import Torchrun


@dataclass(frozen=True)
class Site:
    """Where the modules run.

    Attributes:
        devices: of modules 1..K, replica by replica.
        known_devices: the same; none where the run is not here and others are what it may have.
        num_per_machine: of them.
        threads: CPU threads of a module.
        transport: bytes of shared memory that rings would need -> (transport, reason), or a ConfigError.
    """

    devices: list[str]
    known_devices: list[str]
    num_per_machine: int
    threads: int
    transport: Callable[[int], tuple[str, str]]


def find_site(config: dict[str, Any], method: type[Method]) -> Site:
    """Where the modules of a run go: on this machine, or on those on which torchrun started processes.

    Raises:
        ConfigError: devices that are not there, or more or fewer processes than modules.
    """
    replicas, launch = config["replicas"], Torchrun.from_environment()
    if launch is not None:
        launch.check_size(config["k"], replicas)
    devices = module_devices(config["device"], config["devices"], config["k"] * replicas, launch)
    if config["transport"] == "serial" and config["devices"] is None:
        devices = devices[:1] * len(devices)  # a machine may have more GPUs than one process uses
    num_here = len(devices) if launch is None else launch.local_world_size
    threads = config["threads"] or max(1, (usable_cores() or 1) // num_here)
    return Site(
        devices,
        devices,
        num_here,
        threads,
        lambda num_bytes: choose_transport(
            config["transport"], devices, num_bytes, method.transports, replicas, launch, config["cuda_graphs"]
        ),
    )


def site_elsewhere(config: dict[str, Any], method: type[Method]) -> Site:
    """Where the modules of a run go that is on another machine: CPUs stand in for whatever it has.

    Raises:
        ConfigError: a transport that no machine can serve for the method.
    """
    replicas, requested = config["replicas"], config["transport"]
    devices = ["cpu"] * (config["k"] * replicas)
    if requested != "auto":
        check_usable(requested, method.transports, replicas)
    return Site(
        devices,
        devices if config["device"] == "cpu" else [],
        len(devices),
        config["threads"] or 1,
        lambda num_bytes: choose_transport("auto", devices, num_bytes, method.transports, replicas),
    )
