"""The folder of one run: who owns it, what state the run is in, and the files that describe it.

The files are the truth about a run; W&B and the console mirror them. JSON here is strict: a number that JSON
cannot express (NaN, infinity) is written as null.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fr_bench.errors import ConfigError

STATES = ("running", "finished", "failed", "interrupted")
# A heartbeat older than a few of these means that the process is gone.
HEARTBEAT_S = 5.0
FILES_OF_A_RUN = ("config.yaml", "env.json", "metrics.jsonl", "summary.json")


def strict_json(value: Any, *, indent: int | None = None) -> str:
    """Returns ``value`` as JSON that every parser reads: floats to the last bit, NaN and infinities as null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class FinishedRun:
    """A run that has already been done: there is nothing left to do in its folder.

    Attributes:
        path: the run directory.
        summary: what its summary.json says; empty if there is none.
    """

    path: Path
    summary: dict[str, Any]


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

    def rank_log(self, k: int) -> Path:
        """The log of the process that holds module ``k`` (from 1)."""
        return self.path / f"rank_{k}.log"

    def create(self) -> FinishedRun | None:
        """Makes the folder if need be and claims it for this process, with state ``running``.

        Of two processes that claim one folder at the same moment exactly one succeeds. A folder that exists
        without a run in it (Hydra makes it beforehand) is fine.

        Returns:
            None when the folder is ours; the run in it when that one is finished.

        Raises:
            ConfigError: it holds another run, or files that this run would overwrite; it is left untouched.
        """
        now = time.time()
        status = {
            "state": "running",
            "error": None,
            "module": None,
            "exit_code": None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "heartbeat": now,
            "started": now,
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = os.open(self._status_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return self._finished_run()
        except OSError as error:
            raise ConfigError(f"run_dir={self.path}: cannot be made: {error.strerror}.") from error
        with os.fdopen(file, "w") as stream:
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
        _write(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Writes env.json."""
        _write(self.path / "env.json", strict_json(environment, indent=2) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes summary.json."""
        _write(self.path / "summary.json", strict_json(summary, indent=2) + "\n")

    def set_status(
        self, state: str, *, error: str | None = None, module: int | None = None, exit_code: int | None = None
    ) -> None:
        """Replaces status.json; a reader sees the old one or the new one, never half of one.

        Args:
            state: one of STATES.
            error: the first cause, if it failed.
            module: where that happened (from 1).
            exit_code: of the command, once it is known.
        """
        if state not in STATES:
            raise ValueError(f"state {state!r} is not one of {STATES}")
        self._status |= {"state": state, "error": error, "module": module, "exit_code": exit_code}
        self._write_status()

    def heartbeat(self) -> None:
        """Says that the run is alive; call it as often as you like, it writes every HEARTBEAT_S seconds."""
        if time.time() - self._status["heartbeat"] >= HEARTBEAT_S:
            self._write_status()

    def _write_status(self) -> None:
        self._status["heartbeat"] = time.time()
        _write(self._status_path, strict_json(self._status, indent=2) + "\n")

    def _finished_run(self) -> FinishedRun | None:
        where = f"run_dir={self.path}"
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{where}: is a file; choose another run_dir.")
        status = _read(self._status_path)
        state = status.get("state")
        if state == "finished":
            return FinishedRun(self.path, _read(self.path / "summary.json"))
        if state in ("failed", "interrupted"):
            raise ConfigError(
                f"{where}: holds a run that {_ended(state)}; choose another run_dir, or remove the folder."
            )
        age_s = time.time() - status.get("heartbeat", self._status_path.stat().st_mtime)
        if age_s < 5 * HEARTBEAT_S:
            owner = f" (process {status['pid']} on {status['host']})" if status else ""
            raise ConfigError(f"{where}: a run is going on there{owner}; choose another run_dir.")
        raise ConfigError(
            f"{where}: holds a run that was cut off ({age_s:.0f} s without a sign of life); "
            "choose another run_dir, or remove the folder."
        )


def _ended(state: str) -> str:
    return "failed" if state == "failed" else "was interrupted"


def _read(path: Path) -> dict[str, Any]:
    """Empty if the file is not there, or not yet whole: status.json is created first and filled next."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, text: str) -> None:
    """Atomic, and on disk before the old content is gone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
