"""What Slurm says about our jobs. Its accounting (sacct), which not every cluster has, is not needed."""

from __future__ import annotations

import shutil
import subprocess

from fr_bench.errors import ConfigError
from fr_bench.planning.environment import output_of

COMMANDS = ("sbatch", "srun", "scontrol", "squeue")
# A job in another state runs, or will: also one that waits to run once more.
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
TIMEOUT_S = 60


def check_commands() -> None:
    """Raises ConfigError where this machine cannot talk to Slurm."""
    missing = [name for name in COMMANDS if not shutil.which(name)]
    if missing:
        raise ConfigError(
            f"cluster=slurm: {', '.join(missing)} not found on the PATH; start the sweep on a login node of the "
            "cluster, or leave out cluster=slurm to run it here."
        )


def job_states() -> dict[str, str] | None:
    """The state of every job of this user that Slurm still knows, by its id (``12`` or ``12_3``); it forgets ended ones
    after some minutes. None if it does not answer."""
    command = ("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i %T")
    answer = output_of(*command, within_s=TIMEOUT_S)
    return None if answer is None else dict(line.split(maxsplit=1) for line in answer.splitlines() if line.strip())


def try_submission(script: str) -> str | None:
    """Why Slurm would not take the batch ``script``, in its own words; None if it would. Submits nothing."""
    try:
        done = subprocess.run(
            ["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"sbatch does not answer within {TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return (
        lines[-1].removeprefix("allocation failure: ").removeprefix("sbatch: error: ") if lines else "no reason given"
    )
