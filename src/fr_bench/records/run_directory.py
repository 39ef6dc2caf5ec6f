"""The folder of one run: who owns it, what state the run is in, and the files that describe it.

The files are the truth about a run; W&B and the console mirror them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fr_bench.errors import ConfigError, RunFailed, TakenOver
from fr_bench.records.run_files import gone, naming_file, read_json, strict_json, write_text
from fr_bench.unread import tell

STATES = ("running", "finished", "failed", "interrupted")
# A heartbeat older than a few of these means that the process is gone.
HEARTBEAT_S = 5.0
SILENCE_S = 5 * HEARTBEAT_S
# By no more than this, it is hoped, the clocks of two machines do.
CLOCKS_DIFFER_S = 3600.0
FILES_OF_A_RUN = ("config.yaml", "env.json", "metrics.jsonl", "origin.json", "summary.json")


@dataclass(frozen=True)
class FoundRun:
    """A run that is in the folder already.

    Attributes:
        status: what its status.json says; empty if that is not yet written.
        config: resolved; empty if it did not come to write one.
        plan: what config.yaml says of its plan, the cuts among it.
        summary: what its summary.json says; empty if there is none.
    """

    status: dict[str, Any]
    config: dict[str, Any]
    plan: dict[str, Any]
    summary: dict[str, Any]

    @property
    def state(self) -> str:
        """One of STATES."""
        return str(self.status.get("state", "running"))


class RunDirectory:
    """One run's folder, owned by one process: the one whose ``create`` made status.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.wandb = path / "wandb"
        self.trace = path / "trace.json"
        self._status_path = path / "status.json"
        self._status: dict[str, Any] = {}

    def find(self) -> FoundRun | None:
        """The run that is in the folder, None without one. Changes nothing.

        Raises:
            ConfigError: a file of it cannot be read, or its status.json is not one of ours.
        """
        if not self._status_path.exists():
            if self._status_path.is_symlink():
                raise ConfigError(f"{self._status_path}: is a link that leads nowhere; choose another run_dir.")
            return None
        config: dict[str, Any] = {}
        path = self.path / "config.yaml"
        if path.exists():
            try:
                read = OmegaConf.to_container(OmegaConf.load(path))  # resolved as it was written
                config = {str(key): value for key, value in dict(read).items()}  # type: ignore[arg-type]
            except Exception as error:  # YAML's, OmegaConf's, or what a list instead of a mapping raises
                raise ConfigError(f"{path}: is not the config of a run; choose another run_dir.") from error
        plan = config.pop("plan", {})
        status = read_json(self._status_path)
        if status.get("state", "running") not in STATES:
            raise ConfigError(
                f"{self._status_path}: state is '{status['state']}', which is none of {', '.join(STATES)}; "
                "choose another run_dir."
            )
        return FoundRun(status, config, plan, read_json(self.path / "summary.json"))

    def refuse_if_alive(self, found: FoundRun) -> None:
        """Makes sure that nobody works on the run that was ``found``. On this machine its process is seen to be there,
        however long it has been silent, stopped or slow. A sign of life from another machine may be its last one: then
        this waits for the next, or for none to come. So it does if the last one seems old: that machine's clock may be
        behind.

        Raises:
            ConfigError: a process is alive there.
        """
        status = found.status
        if found.state != "running":
            return
        if _is_of_this_machine(status):
            if _is_alive(status):
                raise self._going_on(status)
            return
        age_s = self._silence_s(status)
        if not status and age_s < SILENCE_S:
            raise self._going_on(status)
        if not status or age_s >= CLOCKS_DIFFER_S:
            return
        wait_s = max(SILENCE_S - age_s, 2 * HEARTBEAT_S + 1)
        tell(
            f"{self.path}: process {status.get('pid')} on {status.get('host')} was alive {age_s:.0f} s ago; "
            f"waiting up to {wait_s:.0f} s for its next sign of life"
        )
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            time.sleep(1.0)
            now = read_json(self._status_path)
            if now.get("heartbeat") != status.get("heartbeat"):
                raise self._going_on(now)

    def take_over(self, found: FoundRun) -> None:
        """Claims the folder, with the run that was ``found`` in it, for this process. Of several exactly one succeeds.

        Raises:
            ConfigError: another process was faster.
        """
        with _locked(self.path):
            if read_json(self._status_path) != found.status:
                raise ConfigError(f"run_dir={self.path}: another process has just taken it; choose another run_dir.")
            self._status = _new_status()
            self._write_status()

    def refuse_any(self) -> None:
        """Makes sure, for a run that never goes on with one, that no run is in the folder. Changes nothing.

        Raises:
            ConfigError: one is.
        """
        if self._status_path.exists():
            self._finished_summary()
            raise ConfigError(
                f"run_dir={self.path}: holds a finished run, and resume=never starts in a new directory alone; "
                "choose another run_dir."
            )

    def create(self) -> dict[str, Any] | None:
        """Makes the folder if need be and claims it for this process, with state ``running``.

        Of two processes that claim one folder at the same moment exactly one succeeds. A folder that exists
        without a run in it (Hydra makes it beforehand) is fine.

        Returns:
            None when the folder is ours; where the run in it is finished, what its summary.json says, empty if there
            is none.

        Raises:
            ConfigError: it holds another run, or files that this run would overwrite; it is left untouched.
        """
        status = _new_status()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = os.open(self._status_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return self._finished_summary()
        except OSError as error:
            raise ConfigError(f"run_dir={self.path}: cannot be made: {error.strerror}.") from error
        with naming_file(self._status_path), os.fdopen(file, "w", encoding="utf-8") as stream:
            stream.write(strict_json(status, indent=2) + "\n")
        found = [name for name in FILES_OF_A_RUN if (self.path / name).exists()]
        if found:
            self._status_path.unlink()
            raise ConfigError(
                f"run_dir={self.path}: holds {', '.join(found)}, which this run would overwrite; "
                "choose another run_dir, or move them away."
            )
        self._status = status
        return None

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes config.yaml, from which OmegaConf reads back exactly ``config`` (resolved, plain)."""
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Writes env.json."""
        write_text(self.path / "env.json", strict_json(environment, indent=2) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes summary.json."""
        write_text(self.path / "summary.json", strict_json(summary, indent=2) + "\n")

    def set_status(
        self, state: str, *, error: str | None = None, module: int | None = None, exit_code: int | None = None
    ) -> None:
        """Replaces status.json; a reader sees the old one or the new one, never half of one.

        Args:
            state: one of STATES.
            error: the first cause, if it failed.
            module: where that happened (from 1).
            exit_code: of the command, once it is known.

        Raises:
            TakenOver: the run is another process's by now.
            RunFailed: the disk is full, or the like; the folder is gone.
        """
        self._status |= {"state": state, "error": error, "module": module, "exit_code": exit_code}
        self._renew_status()

    def heartbeat(self) -> None:
        """Says that the run is alive; call it as often as you like, it writes every HEARTBEAT_S seconds.

        Raises:
            TakenOver: another machine has taken this process for gone, as one that was stopped for long.
            RunFailed: the disk is full, or the like; the folder is gone.
        """
        if abs(time.time() - self._status["heartbeat"]) >= HEARTBEAT_S:  # the clock may have been put back
            self._renew_status()

    def refuse_if_gone(self) -> None:
        """Makes sure that the run's files still go where it began.

        Raises:
            RunFailed: its folder was removed, or moved away, and perhaps another one made in its place.
        """
        with naming_file(self._status_path):
            is_there = self._status_path.exists()
        if not is_there:
            raise gone(self._status_path)

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Says so from a thread while what is inside may take longer than a reader waits for the next sign of life."""
        done = threading.Event()

        def beat() -> None:
            with contextlib.suppress(RunFailed):  # the next heartbeat of the run's own tells of it
                while not done.wait(1.0):
                    self.heartbeat()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _renew_status(self) -> None:
        self.refuse_if_gone()
        with naming_file(self._status_path), _locked(self.path):
            try:
                now = read_json(self._status_path)
            except ConfigError as error:  # a run that has begun is no mistake in the config
                raise RunFailed(str(error)) from error
            if any(now.get(key, self._status[key]) != self._status[key] for key in ("pid", "host", "started")):
                raise TakenOver(
                    f"{self.path}: process {now.get('pid')} on {now.get('host')} has taken over the run, because this "
                    "one gave no sign of life for a while; it goes on there, and ends here"
                )
            self._write_status()

    def _write_status(self) -> None:
        self._status["heartbeat"] = time.time()
        text = strict_json(self._status, indent=2) + "\n"
        try:
            write_text(self._status_path, text)
        except RunFailed:
            # No room for a second file. Of the first, which is shorter than a block, there is: how a run ended is worth
            # more than what a reader sees at this very moment.
            with naming_file(self._status_path), self._status_path.open("r+", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                stream.truncate()

    def _finished_summary(self) -> dict[str, Any]:
        where = f"run_dir={self.path}"
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{where}: is a file; choose another run_dir.")
        status = read_json(self._status_path)
        state = status.get("state")
        if state == "finished":
            return read_json(self.path / "summary.json")
        if state in ("failed", "interrupted"):
            ended = "failed" if state == "failed" else "was interrupted"
            raise ConfigError(
                f"{where}: holds a run that {ended}; choose another run_dir, or remove the folder "
                "(resume=auto would go on with it)."
            )
        age_s = self._silence_s(status)
        if age_s < SILENCE_S or (_is_of_this_machine(status) and _is_alive(status)):
            raise self._going_on(status)
        raise ConfigError(
            f"{where}: holds a run that was cut off ({age_s:.0f} s without a sign of life); "
            "choose another run_dir, or remove the folder (resume=auto would go on with it)."
        )

    def _going_on(self, status: dict[str, Any]) -> ConfigError:
        if not status.keys() >= {"pid", "host"}:
            return ConfigError(
                f"run_dir={self.path}: a run is going on there that has not yet said whose, or its status.json is "
                "damaged; choose another run_dir."
            )
        owner = f"process {status['pid']} on {status['host']}"
        return ConfigError(f"run_dir={self.path}: a run is going on there ({owner}); choose another run_dir.")

    def _silence_s(self, status: dict[str, Any]) -> float:
        last_s = status.get("heartbeat", self._status_path.stat().st_mtime)
        return max(0.0, time.time() - last_s)  # of a clock that is ahead the last sign of life lies in the future


def rank_log(run_directory: Path, number: int) -> Path:
    """The log of the process whose first module has ``number`` (from 1)."""
    return run_directory / f"rank_{number}.log"


def await_directory(path: Path, patience_s: float = 15.0) -> None:
    """Waits until the run directory that another process made is seen here: a network's file system may lag.

    Raises:
        ConfigError: it is not.
    """
    deadline = time.monotonic() + patience_s
    while not (path / "status.json").exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"run_dir={path}: {socket.gethostname()} does not see what rank 0 has written there; it must be on a "
                "file system that all machines share"
            )
        time.sleep(0.1)


def _new_status() -> dict[str, Any]:
    now = time.time()
    return {
        "state": "running",
        "error": None,
        "module": None,
        "exit_code": None,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "pid_namespace": _pid_namespace(),
        "heartbeat": now,
        "started": now,
    }


def _pid_namespace() -> str | None:
    """Which processes the numbers of processes here are of: containers with one host name may each have their own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _is_of_this_machine(status: dict[str, Any]) -> bool:
    """Whether its process would be seen here."""
    namespace = _pid_namespace()
    is_seen = status.get("pid_namespace", namespace) == namespace  # an older version did not say
    return is_seen and status.get("host") == socket.gethostname()


def _is_alive(status: dict[str, Any]) -> bool:
    """Whether the process of ``status``, of this machine, is there: not just another one that got its number."""
    try:
        # Bytes, since a program's name, which is in it, may be no text.
        fields = Path(f"/proc/{status['pid']}/stat").read_bytes().rpartition(b")")[2].split()
        boot_s = next(int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if "btime" in line)
        heartbeat_s = status["heartbeat"]
    except (OSError, KeyError, StopIteration):
        return False
    started_s = boot_s + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return fields[0] != b"Z" and started_s < heartbeat_s + 2  # the two clocks differ by a rounded second


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out, where the file system has locks for folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
