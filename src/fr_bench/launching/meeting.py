"""Where the processes of a torchrun job meet: a store of keys and values, which one of them or torchrun serves.

Values are JSON. Nothing that comes from the store is unpickled. Rank 0 leads:

    everybody   hello/<rank>      version, config, machine       rank 0 compares them
    rank 0      run_dir           where the run is; the same after a restart
    rank 0      start             cuts and checkpoint to go on from, or that there is nothing to do
    anybody     refused           why it cannot be; ends all
    others      event/<rank>/<n>  what a module tells its parent, which is rank 0
    others      stop              the signal that asks the run to end
    rank 0      end               exit code
    everybody   left/<rank>       it needs the store no more
"""

from __future__ import annotations

import errno
import json
import os
import platform
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import fr_bench
from fr_bench.errors import ConfigError, FrBenchError, RunFailed, ToldElsewhere
from fr_bench.launching.differences import in_short, plain_differences
from fr_bench.processes.torchrun import Torchrun

PATIENCE_S = 300.0  # how long a process waits for the others
TIMEOUT = timedelta(seconds=PATIENCE_S)
AGENT_PATIENCE_S = 30.0  # for torchrun's own store, which is there before it starts a process, unless it was killed
POLL_S = 0.05
LINGER_S = 3.0
# Where a config may differ between the processes: rank 0 alone writes and speaks.
OF_THE_LEADER = ("run_dir", "console", "wandb")


class Meeting:
    """This process's connection to the store.

    Args:
        launch: who it is.

    Raises:
        ConfigError: the port is taken, or nobody serves the store there.
    """

    def __init__(self, launch: Torchrun) -> None:
        self.launch = launch
        self._serves = launch.leads and not launch.agent_serves
        # Of the job: the directory of a run outlives a restart. Of the attempt: everything else.
        self._job = dist.PrefixStore(f"fr_bench/{launch.job}", self._connect())
        self._store = dist.PrefixStore(f"attempt_{launch.attempt}", self._job)
        self._num_sent = 0
        self._num_received = [0] * launch.world_size

    def _connect(self) -> dist.TCPStore:
        address, port = self.launch.address, self.launch.port
        where = f"MASTER_ADDR={address}, MASTER_PORT={port}"
        try:
            if not self._serves:
                return self._join()
            # torch would listen on all interfaces; this listens where the others come from.
            listening = socket.create_server((address, port), backlog=2 * self.launch.world_size)
            return dist.TCPStore(
                address, port, is_master=True, wait_for_workers=False, timeout=TIMEOUT,
                master_listen_fd=listening.detach(),
            )  # fmt: skip
        except OSError as error:
            advice = (
                "choose another port"
                if error.errno == errno.EADDRINUSE
                else "it must be this machine, which has rank 0"
            )
            raise ConfigError(f"{where}: cannot listen there: {os.strerror(error.errno or 0)}; {advice}") from None
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise ConfigError(f"{where}: nobody of this job answers there: {text}") from None

    def _join(self) -> dist.TCPStore:
        patience = timedelta(seconds=AGENT_PATIENCE_S) if self.launch.agent_serves else TIMEOUT
        store = dist.TCPStore(self.launch.address, self.launch.port, is_master=False, timeout=patience)
        store.set_timeout(TIMEOUT)
        return store

    def group_store(self) -> dist.Store:
        """For the process group, over a connection of its own: who waits in one does not hold up the other."""
        return dist.PrefixStore(f"fr_bench/{self.launch.job}/attempt_{self.launch.attempt}/group", self._join())

    @property
    def leads(self) -> bool:
        """See :class:`Torchrun`."""
        return self.launch.leads

    def choose_run_dir(self, own: str) -> str:
        """Rank 0: tells where the run is: ``own``, or where it was before a restart."""
        with self._answering():
            run_dir = str(self._job.compare_set("run_dir", "", own).decode())
        self.say("run_dir", run_dir)
        return run_dir

    def say(self, key: str, value: Any) -> None:
        """Tells all others."""
        with self._answering():
            self._store.set(key, json.dumps(value))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """A store that is gone ends the run: torchrun, which serves it, was killed, or rank 0 was, where that does.

        Raises:
            RunFailed: in rank 0, which tells the user.
            ToldElsewhere: in the others.
        """
        try:
            yield
        except RuntimeError as error:
            where = f"MASTER_ADDR={self.launch.address}, MASTER_PORT={self.launch.port}"
            reason = f"{where}: the store at which the processes meet is gone ({str(error).partition(chr(10))[0]})"
            if not self.leads:
                raise ToldElsewhere(reason, 1) from None
            raise RunFailed(
                f"{reason}: torchrun was killed, or its machine is; the same command goes on from the last checkpoint"
            ) from None

    def hear(self, key: str, patience_s: float = PATIENCE_S) -> Any:
        """Waits for what another process says.

        Raises:
            ToldElsewhere: it, or another one, refused.
            RunFailed: it said nothing in time.
        """
        deadline = time.monotonic() + patience_s
        with self._answering():
            while not self._store.check([key]):
                if self._store.check(["refused"]):
                    raise ToldElsewhere(str(self._read("refused")), 2)
                if time.monotonic() > deadline:
                    raise RunFailed(f"rank {self.launch.rank} waited {patience_s:.0f} s in vain for {key!r}")
                time.sleep(POLL_S)
            return self._read(key)

    def _read(self, key: str) -> Any:
        try:
            return json.loads(self._store.get(key))
        except ValueError:
            raise ConfigError(f"MASTER_PORT={self.launch.port}: another program has written there") from None

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """A mistake that is found inside ends the other processes too; only this one tells the user."""
        try:
            yield
        except ConfigError as error:
            self.say("refused", str(error))
            raise

    def leave(self) -> None:
        """The last thing that a process does: who serves the store waits until the others have heard what they must."""
        with suppress(RuntimeError, FrBenchError):  # a store that is gone needs no leave
            self.say(f"left/{self.launch.rank}", True)
            if not self._serves:
                return
            deadline = time.monotonic() + LINGER_S
            everybody = [f"left/{rank}" for rank in range(self.launch.world_size)]
            while time.monotonic() < deadline and not self._store.check(everybody):
                time.sleep(POLL_S)

    def compare(self, config: dict[str, Any]) -> None:
        """Makes sure that all processes are the same program with the same config.

        Raises:
            ConfigError: in rank 0: one of them is another.
            ToldElsewhere: in the others, if rank 0 or another refused.
            RunFailed: one of them did not come in time.
        """
        own = {"versions": versions(), "config": config, "host": socket.gethostname()}
        self.say(f"hello/{self.launch.rank}", own)
        if not self.leads:
            self.hear("agreed")
            return
        for rank in range(1, self.launch.world_size):
            hello = self.hear(f"hello/{rank}")
            found = _differences(json.loads(json.dumps(config)), hello)
            if found:
                raise ConfigError(
                    f"rank {rank} on {hello.get('host')} does not fit to rank 0 on {socket.gethostname()}: {found}"
                )
        self.say("agreed", True)

    def wish_stop(self, number: int) -> None:
        """Others: signal ``number`` asked this process to end the run."""
        self.say("stop", number)

    def wished_stop(self) -> int | None:
        """Rank 0: the signal that asked another process to end the run, if there was one."""
        with self._answering():
            return int(self._read("stop")) if self._store.check(["stop"]) else None

    def end(self, exit_code: int) -> None:
        """Rank 0: how the run ended. Nobody is left to hear it where the store is gone."""
        with suppress(RunFailed):
            self.say("end", exit_code)

    def has_ended(self) -> bool:
        """Others: whether rank 0 has said so, or is gone with the store."""
        try:
            return self._store.check(["end"])
        except RuntimeError:
            return True

    def send(self, event: dict[str, Any]) -> None:
        """Others: an event for rank 0. What stands where in a process of our own the pipe to the parent is."""
        try:
            self._store.set(f"event/{self.launch.rank}/{self._num_sent}", json.dumps(event))
        except RuntimeError as error:
            raise OSError(f"rank 0 cannot be told: {error}") from error
        self._num_sent += 1

    def receive(self) -> list[tuple[int, dict[str, Any]]]:
        """Rank 0: the events that have come, each with the rank that sent it."""
        received = []
        with self._answering():
            for rank in range(1, self.launch.world_size):
                while self._store.check([key := f"event/{rank}/{self._num_received[rank]}"]):
                    received.append((rank, self._read(key)))
                    self._store.delete_key(key)
                    self._num_received[rank] += 1
        return received


def versions() -> dict[str, str]:
    """What must be the same everywhere: the same numbers take the same program."""
    return {
        "fr-bench": fr_bench.__version__,
        "torch": torch.__version__.partition("+")[0],
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def _differences(config: dict[str, Any], hello: Any) -> str:
    """In words; empty if there are none."""
    if not isinstance(hello, dict) or not isinstance(hello.get("config"), dict):
        return "it is another program"
    found = [
        f"{name} is {theirs} there and {ours} here"
        for name, ours in versions().items()
        if (theirs := hello.get("versions", {}).get(name)) != ours
    ]
    own, other = ({k: v for k, v in each.items() if k not in OF_THE_LEADER} for each in (config, hello["config"]))
    found += plain_differences(other, own)
    return in_short(found)
