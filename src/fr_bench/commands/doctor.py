"""``fr-bench doctor``: what this machine has, and what of fr-bench works on it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from fr_bench.data.found import found_datasets
from fr_bench.errors import ConfigError
from fr_bench.methods.base import Method
from fr_bench.methods.bp import Backpropagation
from fr_bench.methods.data_parallel import DataParallel
from fr_bench.methods.ddg import DecoupledDelayedGradients
from fr_bench.methods.dgl import DecoupledGreedyLearning
from fr_bench.methods.dni import DecoupledNeuralInterfaces
from fr_bench.methods.fr import FeaturesReplay
from fr_bench.methods.pipeline import GPipe, OneForwardOneBackward, ZeroBubble
from fr_bench.methods.policy import Policy
from fr_bench.planning.environment import (
    cpu_model,
    gpu_driver,
    gpus,
    installed_version,
    output_of,
    usable_cores,
    versions,
)
from fr_bench.planning.transport_choice import ALL_TRANSPORTS, choose_transport, module_devices, why_not
from fr_bench.records.console import num_bytes
from fr_bench.records.run_files import strict_json
from fr_bench.records.wandb_sink import find_credentials, resolve_mode
from fr_bench.transport.ipc import SHARED_MEMORY

METHODS: dict[str, type[Method]] = {
    "bp": Backpropagation,
    "dni": DecoupledNeuralInterfaces,
    "cdni": DecoupledNeuralInterfaces,
    "ddg": DecoupledDelayedGradients,
    "fr": FeaturesReplay,
    "dgl": DecoupledGreedyLearning,
    "gpipe": GPipe,
    "1f1b": OneForwardOneBackward,
    "zero_bubble": ZeroBubble,
    "ddp": DataParallel,
}


def main(argv: list[str]) -> int:
    """Prints the report; returns 0."""
    parser = argparse.ArgumentParser(prog="fr-bench doctor", description="Says what this machine has.")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    arguments = parser.parse_args(argv)
    report = examine()
    print(strict_json(report, indent=2) if arguments.json else as_text(report))
    return 0


def examine() -> dict[str, Any]:
    """Returns the report, one part a key. Nothing is started, downloaded or written."""
    return {
        "versions": versions(),
        "cpu": {"model": cpu_model(), "usable_cores": usable_cores(), **memory()},
        "shared_memory": shared_memory(),
        "gpus": gpus(),
        "driver": gpu_driver(),
        "links": links(),
        "transports": transports(),
        "methods": {name: dataclasses.asdict(method.policy()) for name, method in METHODS.items()},
        "datasets": found_datasets(),
        "wandb": wandb_state(),
        "slurm": slurm(),
    }


def memory() -> dict[str, int]:
    """Main memory of the machine in bytes, all of it and what is to be had now; empty where nobody tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return {"memory_bytes": kib["MemTotal"] * 1024, "available_bytes": kib["MemAvailable"] * 1024}


def shared_memory() -> dict[str, int] | None:
    """Size and free bytes of the file system through which ``ipc`` runs on the CPU; None without one."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return {"size_bytes": status.f_blocks * status.f_frsize, "free_bytes": status.f_bavail * status.f_frsize}


def links() -> list[list[int]]:
    """Pairs [a, b] of GPUs of which a can read the memory of b directly."""
    numbers = range(torch.cuda.device_count())
    return [[a, b] for a in numbers for b in numbers if a != b and torch.cuda.can_device_access_peer(a, b)]


def transports() -> dict[str, Any]:
    """For a run with a module on every GPU (at least two modules): which transports work, and what auto takes."""
    k = max(2, torch.cuda.device_count())
    devices = module_devices("auto", None, k)
    problems = {name: why_not(name, devices, ring_bytes=0) for name in ALL_TRANSPORTS}
    chosen, reason = choose_transport("auto", devices, ring_bytes=0)
    return {"devices": devices, "problems": problems, "auto": chosen, "reason": reason}


def wandb_state() -> dict[str, str | None]:
    """Version, what WANDB_MODE demands, and where a key is (never the key)."""
    mode = None
    if os.environ.get("WANDB_MODE"):
        try:
            mode = resolve_mode("offline")
        except ConfigError as error:
            mode = str(error)
    return {"version": installed_version("wandb"), "mode_from_environment": mode, "key_from": find_credentials()}


def slurm() -> dict[str, Any]:
    """Whether its commands and the launcher of cluster=slurm are here, its partitions (None if it does not answer),
    and the job that this process belongs to."""
    commands = [name for name in ("sinfo", "squeue", "sbatch", "srun") if shutil.which(name)]
    return {
        "commands": commands,
        "partitions": partitions() if "sinfo" in commands else None,
        "launcher": installed_version("hydra-submitit-launcher"),
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def partitions() -> list[str] | None:
    """Slurm's partitions, each once; None if it does not answer."""
    answer = output_of("sinfo", "--noheader", "--format=%R")
    return None if answer is None else sorted(set(answer.split()))


def as_text(report: dict[str, Any]) -> str:
    """Returns the report for reading, a line or a short list a part."""
    cpu, shared = report["cpu"], report["shared_memory"]
    memory_words = [num_bytes(cpu[key]) for key in ("memory_bytes", "available_bytes") if key in cpu]
    shared_text = "not there: ipc does not work on the CPU"
    if shared:
        shared_text = f"{num_bytes(shared['size_bytes'])}, {num_bytes(shared['free_bytes'])} free (for transport=ipc)"
    rows = [
        ("versions", ", ".join(f"{name} {version or 'missing'}" for name, version in report["versions"].items())),
        ("CPU", f"{cpu['model']}, {cpu['usable_cores']} cores"),
        ("memory", ", ".join(memory_words) + " available" if memory_words else "unknown"),
        (SHARED_MEMORY, shared_text),
        *_gpu_rows(report),
        *_transport_rows(report["transports"]),
        *((f"method {name}", Policy(**policy).words()) for name, policy in report["methods"].items()),
        *((f"data set {name}", _dataset_text(dataset)) for name, dataset in report["datasets"].items()),
        ("W&B", _wandb_text(report["wandb"])),
        ("Slurm", _slurm_text(report["slurm"])),
    ]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in rows)


def _gpu_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    if not report["gpus"]:
        driver = report["driver"]
        return [("GPUs", "none that torch sees" + (f", although there is a driver ({driver})" if driver else ""))]
    rows = [
        (f"GPU {number}", f"{gpu['name']}, {num_bytes(gpu['memory_bytes'])}, capability {gpu['capability']}")
        for number, gpu in enumerate(report["gpus"])
    ]
    if len(report["gpus"]) > 1:
        pairs = ", ".join(f"{a} to {b}" for a, b in report["links"])
        rows.append(("GPU links", pairs or "none: data between GPUs goes through main memory"))
    return [*rows, ("driver", report["driver"] or "unknown")]


def _transport_rows(transports: dict[str, Any]) -> list[tuple[str, str]]:
    devices = ", ".join(sorted(set(transports["devices"])))
    rows = [
        ("transport=auto", f"{transports['auto']}: {transports['reason']} (k={len(transports['devices'])}, {devices})")
    ]
    for name, problem in transports["problems"].items():
        rows.append((f"transport={name}", "works" if problem is None else f"no: {problem}"))
    return rows


def _dataset_text(dataset: dict[str, Any]) -> str:
    return ("found: " if dataset["found"] else "") + dataset["detail"]


def _wandb_text(state: dict[str, str | None]) -> str:
    if state["version"] is None:
        return "not installed: use wandb.mode=disabled"
    key = f"key from {state['key_from']}" if state["key_from"] else "no key, so online does not work; offline does"
    forced = f", WANDB_MODE says {state['mode_from_environment']}" if state["mode_from_environment"] else ""
    return f"{state['version']}, {key}{forced}"


def _slurm_text(state: dict[str, Any]) -> str:
    if not state["commands"]:
        return "not on the PATH"
    answer = f"partitions {', '.join(state['partitions'])}" if state["partitions"] else "does not answer"
    where = f"inside job {state['job']}" if state["job"] else "outside a job"
    launcher = state["launcher"] or "not installed: pip install '.[slurm]' in the repository"
    return f"{', '.join(state['commands'])}; {answer}; {where}; hydra-submitit-launcher {launcher}"
