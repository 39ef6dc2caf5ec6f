"""env.json: the code, the libraries and the machine that a run's numbers came from."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import fr_bench
from fr_bench.planning.own_code import describe_code

LIBRARIES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb")
# Settings that change speed or bits. Nothing else of the environment is recorded: it may hold secrets.
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_PROC_BIND",
    "KMP_AFFINITY",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "NVIDIA_TF32_OVERRIDE",
    "NCCL_P2P_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "SLURM_JOB_ID",
    "WANDB_MODE",
)


def describe_environment(argv: list[str], config: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of env.json.

    Args:
        argv: the command line.
        config: resolved, plain, with the number of ``threads`` that a module really gets. What of it changes the
            bits of a result without being a hyper-parameter is repeated here.
    """
    description: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": argv,
        "versions": versions(),
        "code": describe_code(config),
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "cpu": {
            "model": cpu_model(),
            "capability": torch.backends.cpu.get_cpu_capability(),  # which kernels torch picks
            "cores": os.cpu_count(),
            "usable_cores": usable_cores(),
        },
        "gpus": gpus(),
        "driver": gpu_driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "numerics": {
            **{key: config[key] for key in ("precision", "deterministic", "channels_last", "threads")},
            **{key: config["optimizer"].get(key) for key in ("foreach", "fused")},
        },
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    git = source_version(Path(fr_bench.__file__).parent)
    return description if git is None else {"git": git, **description}


def versions() -> dict[str, str | None]:
    """Versions of this program, Python and the libraries that matter; None for one that is not installed."""
    found: dict[str, str | None] = {"fr_bench": fr_bench.__version__, "python": platform.python_version()}
    found |= {name: installed_version(name) for name in LIBRARIES}
    if found["torch"] is not None:
        found["torch"] = torch.__version__  # says which build, as in 2.13.0+cpu
    return found


def installed_version(name: str) -> str | None:
    """Of a library, None where it is not installed. Nothing is imported: a folder of its name can be, too, as ./wandb
    with its logs."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def source_version(folder: Path) -> dict[str, Any] | None:
    """The commit of the git checkout whose files ``folder`` has, and whether it was changed since.

    Returns:
        ``{"commit": ..., "dirty": ...}``; None outside a checkout, also for a package that was installed into
        a folder which somebody else's repository happens to contain.
    """
    tracked = output_of("git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py")
    commit = output_of("git", "-C", str(folder), "rev-parse", "HEAD")
    changes = output_of("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=normal")
    if not tracked or not commit or changes is None:
        return None
    return {"commit": commit, "dirty": bool(changes)}


def cpu_model() -> str:
    """The processor's name as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def usable_cores() -> int | None:
    """Cores that this process may run on: fewer than there are under Slurm, taskset or a container's cpuset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def gpus() -> list[dict[str, Any]]:
    """Name, compute capability and memory of every GPU that torch sees."""
    if not torch.cuda.is_available():
        return []
    found = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        capability = f"{properties.major}.{properties.minor}"
        found.append({"name": properties.name, "capability": capability, "memory_bytes": properties.total_memory})
    return found


def gpu_driver() -> str | None:
    """Version of the NVIDIA driver, None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    answer = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.splitlines()[0] if answer else None


def output_of(*command: str, within_s: float = 10.0) -> str | None:
    """Of a program, without white space around it; None if it cannot be run, fails or takes longer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=within_s, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
