"""Which transport a run uses, and why; refuses what this machine cannot serve before anything is started."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist

from fr_bench.errors import ConfigError
from fr_bench.processes.torchrun import Torchrun
from fr_bench.transport.ipc import SHARED_MEMORY

# What PyTorch's allocator may be set to, and cannot share memory with another process then.
WITHOUT_CUDA_IPC = ("expandable_segments:True", "backend:cudaMallocAsync")
ALL_TRANSPORTS = ("serial", "gloo", "ipc", "nccl")


def choose_transport(
    requested: str,
    devices: Sequence[str],
    ring_bytes: int,
    usable: Sequence[str] = ALL_TRANSPORTS,
    replicas: int = 1,
    launch: Torchrun | None = None,
    cuda_graphs: bool = False,
) -> tuple[str, str]:
    """Returns (transport, reason).

    Args:
        requested: ``auto`` or a transport by name.
        devices: the device of each module, for example ``["cuda:0", "cuda:1"]``.
        ring_bytes: shared memory that ``ipc`` would need on the CPU.
        usable: by the method.
        replicas: of the network, to which the devices belong one after the other.
        launch: of a process that torchrun started, which shares no memory with the others.
        cuda_graphs: whether the modules launch theirs as CUDA graphs.

    Raises:
        ConfigError: ``requested`` cannot be served here, or the method cannot use it.
    """
    if launch is not None:
        devices = devices[: launch.local_world_size]  # of one machine: the others have as many
        usable = [name for name in usable if name in ("gloo", "nccl")]
    if requested == "auto":
        if launch is not None:
            return _of_torch(devices, usable, "torchrun started the processes")
        if not set(ALL_TRANSPORTS) <= set(usable):
            return _of_torch(devices, usable, "the method's messages are carried by torch.distributed")
        return _automatic(devices, ring_bytes, cuda_graphs and replicas == 1)
    if requested not in usable and launch is not None:
        raise ConfigError(f"transport={requested}: cannot join processes that torchrun started; use gloo, nccl or auto")
    check_usable(requested, usable, replicas)
    problem = why_not(requested, devices, ring_bytes)
    if problem:
        raise ConfigError(f"transport={requested}: {problem}")
    return requested, "as asked for"


def check_usable(requested: str, usable: Sequence[str], replicas: int) -> None:
    """Raises ConfigError where ``requested``, a transport by name, is not one of those ``usable`` by the method, or by
    ``replicas``, on whatever machine."""
    if requested not in usable:
        raise ConfigError(
            f"transport={requested}: the method's messages are carried by a library of its own, which can use "
            f"{' or '.join(usable)}; use one of them, or auto"
        )
    if requested == "serial" and replicas > 1:
        raise ConfigError(f"transport=serial: one process does not share a batch; use replicas=1 instead of {replicas}")


def _automatic(devices: Sequence[str], ring_bytes: int, launches_from_one: bool) -> tuple[str, str]:
    if len(devices) == 1:
        return "serial", "there is one module"
    if not why_not("nccl", devices, ring_bytes):
        return "nccl", "every module has a GPU of its own"
    if devices[0] != "cpu" and len(set(devices)) == 1 and launches_from_one:
        return "serial", "the modules share one GPU, where processes take turns; one launches all graphs, on streams"
    problem = why_not("ipc", devices, ring_bytes)
    if problem:
        return "gloo", f"ipc is out: {problem}"
    shared = "shared memory" if devices[0] == "cpu" else "the memory of the one GPU"
    return "ipc", f"modules exchange tensors through {shared}"


def _of_torch(devices: Sequence[str], usable: Sequence[str], why: str) -> tuple[str, str]:
    """Of the two that torch.distributed has; ``why`` it must be one of them."""
    if "nccl" in usable and not why_not("nccl", devices, ring_bytes=0):
        return "nccl", "every process has a GPU of its own"
    problem = why_not("gloo", devices, ring_bytes=0)
    if problem:
        raise ConfigError(f"transport=auto: {problem}")
    return "gloo", why


def why_not(transport: str, devices: Sequence[str], ring_bytes: int) -> str | None:
    """Why ``transport`` cannot serve modules on ``devices`` here, with the fix; None when it can."""
    distinct = set(devices)
    on_cpu = distinct == {"cpu"}
    if transport == "nccl":
        if on_cpu:
            return "nccl connects GPUs, and the modules run on the CPU; use ipc or gloo"
        if not dist.is_nccl_available():
            return "this build of torch has no nccl; use gloo"
        if len(distinct) < len(devices):
            return (
                f"nccl needs a GPU for each of the {len(devices)} modules, and there are {len(distinct)} "
                "(it refuses two processes on one GPU); use ipc, gloo or serial"
            )
    if transport == "serial" and len(distinct) > 1:
        return "one process trains its modules on one device, and these have several; name one, or use nccl or gloo"
    if transport == "gloo" and not dist.is_gloo_available():
        return "this build of torch has no gloo; use serial"
    if transport == "ipc":
        if on_cpu:
            return _shared_memory_problem(ring_bytes)
        if len(distinct) > 1:
            return "ipc joins modules that share one device, and these have several; use nccl or gloo"
        for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):  # the second is its newer name
            for setting in WITHOUT_CUDA_IPC:
                if setting in "".join(os.environ.get(name, "").split()):
                    return f"CUDA IPC does not work with {setting}; unset {name}"
    return None


def _shared_memory_problem(ring_bytes: int) -> str | None:
    if not os.access(SHARED_MEMORY, os.W_OK):
        return f"there is no {SHARED_MEMORY} here, or it cannot be written to; use gloo"
    status = os.statvfs(SHARED_MEMORY)
    free_bytes = status.f_bavail * status.f_frsize
    if ring_bytes <= free_bytes:
        return None
    return (
        f"its rings need {math.ceil(ring_bytes / 2**20)} MiB of {SHARED_MEMORY}, which has {free_bytes // 2**20} MiB "
        "free; use gloo, or enlarge it (docker run --shm-size)"
    )


def module_devices(device: str, devices: Sequence[int] | None, k: int, launch: Torchrun | None = None) -> list[str]:
    """The device of modules 1..K, round-robin over the GPUs of a machine.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        devices: which GPUs, by number; None for all.
        launch: of a process that torchrun started; then it is round-robin on every machine.

    Raises:
        ConfigError: a GPU was asked for that is not there.
    """
    num_gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and num_gpus == 0:
        raise ConfigError("device=cuda: torch sees no GPU here; use device=cpu (or auto)")
    if device == "cpu" or num_gpus == 0:
        if devices is not None:
            raise ConfigError(f"devices={list(devices)}: names GPUs, but the run is on the CPU; leave it out")
        return ["cpu"] * k
    numbers = list(range(num_gpus)) if devices is None else list(devices)
    missing = [number for number in numbers if not 0 <= number < num_gpus]
    if missing or not numbers:
        raise ConfigError(f"devices={numbers}: this machine has GPUs 0 to {num_gpus - 1}")
    local_size = k if launch is None else launch.local_world_size
    return [f"cuda:{numbers[index % local_size % len(numbers)]}" for index in range(k)]


def check_precision(precision: str, devices: Sequence[str]) -> None:
    """Raises ConfigError where one of ``devices`` lacks ``precision``."""
    gpus = [name for name in dict.fromkeys(devices) if name != "cpu"]
    if precision == "tf32":
        if "cpu" in devices:
            raise ConfigError("precision=tf32: a mode of NVIDIA GPUs from Ampere on; on the CPU use fp32 or bf16")
        too_old = [name for name in gpus if torch.cuda.get_device_capability(name)[0] < 8]
        if too_old:
            raise ConfigError(f"precision=tf32: {too_old[0]} is older than Ampere; use fp32")
    if precision == "bf16" and gpus and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"precision=bf16: {gpus[0]} does not support it; use fp32")
