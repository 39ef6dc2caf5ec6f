"""What the presets of conf/cluster ask a cluster for, computed from the run's settings, and the checks of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fr_bench.errors import ConfigError

SLURM_LAUNCHER = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
SMALLEST = {"time": 1, "gpus": 0, "cpus": 1, "memory_gb": 1, "requeue": 0}
MAY_BE_NULL = ("gpus", "cpus", "memory_gb")


def job_gpus(k: int, replicas: int, device: str, devices: list[int] | None) -> int | None:
    """GPUs of a job: one a module, or as many as ``devices`` names; None for a run on the CPU, which asks for none."""
    if device == "cpu":
        return None
    return k * replicas if devices is None else len(devices)


def times(k: int, replicas: int, factor: float) -> float:
    """For a preset: so many for each module of each replica."""
    return k * replicas * factor


def before_the_wall(minutes: object) -> float | None:
    """Minutes after which a run saves itself that its cluster ends after ``minutes``: one less, half of a short time.
    None for what is no number: the check of the cluster's settings says so."""
    if not isinstance(minutes, int | float):
        return None
    return max(minutes - 1, minutes / 2)


RESOLVERS: dict[str, Callable[..., Any]] = {"job_gpus": job_gpus, "times": times, "before_the_wall": before_the_wall}


def check_cluster(cluster: Any) -> None:
    """Checks the values of the preset that was chosen with ``cluster=NAME`` (None without one).

    Raises:
        ConfigError: naming the key and what is allowed.
    """
    if cluster is None:
        return
    if not isinstance(cluster, dict) or not isinstance(cluster.get("name"), str):
        raise ConfigError(
            f"cluster={cluster}: choose a preset with cluster=NAME; the file of one of your own needs a `cluster:` "
            "with a `name:` in it, and `# @package _global_` as its first line."
        )
    for key, smallest in SMALLEST.items():
        value = cluster.get(key)
        if key not in cluster or (value is None and key in MAY_BE_NULL):
            continue
        if not isinstance(value, int | float) or value % 1 != 0 or value < smallest:
            unit = " (minutes)" if key == "time" else ""
            or_null = ", or null" if key in MAY_BE_NULL else ""
            raise ConfigError(f"cluster.{key}={value}: must be an integer of at least {smallest}{unit}{or_null}.")


def check_launcher(config: dict[str, Any], launcher: dict[str, Any], used: str | None) -> None:
    """Checks that a job can go where its ``cluster`` says.

    Args:
        config: of the job.
        launcher: of the job, the resolved ``hydra.launcher``.
        used: the ``_target_`` of the launcher that Hydra will call, None for a single run, which it starts itself.

    Raises:
        ConfigError: several clusters in a sweep, Slurm without a sweep, or a run that could not be requeued.
    """
    target = launcher["_target_"]
    if used is not None and target != used:
        raise ConfigError("cluster: cannot be swept; all jobs of a sweep go to one cluster.")
    if target != SLURM_LAUNCHER:
        return
    if used is None:
        given = f"cluster={config['cluster']['name']}" if config["cluster"] else "hydra/launcher=submitit_slurm"
        raise ConfigError(
            f"{given}: sends the jobs of a sweep to Slurm, and without -m there is no sweep; for a single run, too: "
            f"fr-bench train -m {given} ..."
        )
    if config["resume"] == "never" and launcher["max_num_timeout"]:
        raise ConfigError("resume=never: a job that is requeued could not go on; drop it, or set cluster.requeue=0.")
