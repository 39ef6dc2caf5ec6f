"""What torchrun tells a process that it has started: which one it is, of how many, and where they meet.

Nothing is spawned then: the process with RANK r is module r + 1 (numbered through all replicas, see Plan).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from fr_bench.errors import ConfigError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Torchrun:
    """One of the processes of a job.

    Attributes:
        rank, world_size: among all of them; rank 0 leads.
        local_rank, local_world_size: among those of its machine; all machines have as many.
        address, port: of the store at which they meet.
        agent_serves: whether torchrun serves that store; if not, rank 0 does.
        job: its name, the same in all processes and after a restart.
        attempt: how often torchrun has restarted the processes.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    address: str
    port: int
    agent_serves: bool = False
    job: str = "none"
    attempt: int = 0

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] | None = None) -> Torchrun | None:
        """What ``variables`` (default: this process's) say; None where RANK and WORLD_SIZE are not set.

        Raises:
            ConfigError: some of what is needed is missing, or makes no sense.
        """
        found = os.environ if variables is None else variables
        if "RANK" not in found or "WORLD_SIZE" not in found:
            return None
        missing = [name for name in NEEDED if not found.get(name)]
        if missing:
            raise ConfigError(
                f"RANK and WORLD_SIZE are set, as torchrun does, but not {' and '.join(missing)}; start the processes "
                "with torchrun, or unset RANK and WORLD_SIZE"
            )
        try:
            world_size = int(found["WORLD_SIZE"])
            launch = cls(
                rank=int(found["RANK"]),
                world_size=world_size,
                local_rank=int(found.get("LOCAL_RANK", 0)),
                local_world_size=int(found.get("LOCAL_WORLD_SIZE", world_size)),
                address=found["MASTER_ADDR"],
                port=int(found["MASTER_PORT"]),
                agent_serves=found.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
                job=found.get("TORCHELASTIC_RUN_ID", "none"),
                attempt=int(found.get("TORCHELASTIC_RESTART_COUNT", 0)),
            )
        except ValueError as error:
            raise ConfigError(
                f"RANK, WORLD_SIZE and MASTER_PORT must be numbers, as torchrun sets them: {error}"
            ) from None
        is_even = launch.local_world_size > 0 and launch.world_size % launch.local_world_size == 0
        if not 0 <= launch.rank < launch.world_size or not is_even:
            raise ConfigError(
                f"RANK={launch.rank}, WORLD_SIZE={launch.world_size}, LOCAL_WORLD_SIZE={launch.local_world_size}: "
                "RANK must be below WORLD_SIZE, and every machine must have as many processes"
            )
        return launch

    @property
    def leads(self) -> bool:
        """Whether this process is module 1, which also writes the records and the status."""
        return self.rank == 0

    @property
    def num_machines(self) -> int:
        """Over which the modules are spread."""
        return self.world_size // self.local_world_size

    def check_size(self, k: int, replicas: int) -> None:
        """Raises ConfigError unless there is a process for each module of each replica."""
        if k * replicas != self.world_size:
            advice = f"k={self.world_size // replicas}" if self.world_size % replicas == 0 else "another k or replicas"
            raise ConfigError(
                f"k={k}, replicas={replicas}: torchrun started {self.world_size} processes, and there are "
                f"{k * replicas} modules; use {advice}, or start {k * replicas} processes"
            )
