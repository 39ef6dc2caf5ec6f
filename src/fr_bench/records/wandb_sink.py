"""Weights & Biases: mirrors a run's records. The only file that imports wandb, and only when a sink is made."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from fr_bench.errors import ConfigError, RunFailed, nearest
from fr_bench.planning.environment import installed_version
from fr_bench.records.reading import KINDS_BY_MODULE, OF_EVERY_MODULE, POSITION
from fr_bench.records.run_files import read_json, strict_json, write_text
from fr_bench.records.wandb_server import server_url, setting
from fr_bench.unread import tell

MODES = ("offline", "online", "disabled")
OLD_NAMES = {"dryrun": "offline", "run": "online"}  # which wandb still takes in WANDB_MODE
# How long the end of a run waits for uploads, seconds: what is not uploaded by then stays on disk.
FINISH_WITHIN_S = 60.0
# Beside W&B's own files: the run's name there, and the rows that it has of records that were dropped.
RUN_ID, MADE_BEFORE = "run_id", "made_before.json"


def resolve_mode(config_mode: str) -> str:
    """Returns ``offline``, ``online`` or ``disabled``: what the variable WANDB_MODE says, else the config.

    Raises:
        ConfigError: WANDB_MODE is set to something else.
    """
    if not os.environ.get("WANDB_MODE", config_mode):  # set, but empty: wandb, which reads it too, would refuse it
        del os.environ["WANDB_MODE"]
    mode = os.environ.get("WANDB_MODE", config_mode)
    mode = OLD_NAMES.get(mode, mode)
    if mode not in MODES:
        raise ConfigError(f"WANDB_MODE={mode}: must be one of {', '.join(MODES)}.{nearest(mode, MODES)}")
    return mode


def check_wandb(mode: str) -> None:
    """Checks that ``mode`` (resolved) can work here, without the network.

    Raises:
        ConfigError: wandb is not installed, or ``online`` has no key; the message says how to mend it.
    """
    if mode == "disabled":
        return
    if installed_version("wandb") is None:
        raise ConfigError(
            f"wandb.mode={mode}: wandb is not installed; pip install wandb, or use wandb.mode=disabled "
            "(all records are in metrics.jsonl either way)."
        )
    if mode == "online" and find_credentials() is None:
        raise ConfigError(
            f"wandb.mode=online: no API key for {_host()}; run `wandb login` or set WANDB_API_KEY, "
            "or use wandb.mode=offline and `wandb sync` the run later."
        )
    _check_variables()


def _import() -> ModuleType:
    """Of wandb: late, since it is large.

    Raises:
        RunFailed: it is installed, but does not work.
    """
    try:
        import wandb
    except Exception as error:  # of whatever it imports in turn
        raise RunFailed(
            f"wandb is installed but cannot be imported ({type(error).__name__}: {error}); reinstall it, or use "
            "wandb.mode=disabled (all records are in metrics.jsonl either way)."
        ) from error
    return wandb


def _check_variables() -> None:
    """Raises ConfigError for a variable WANDB_... that wandb would not take."""
    names = [name for name in os.environ if name.startswith("WANDB_")]
    if not names:
        return
    wandb = _import()
    for name in names:
        try:
            wandb.Settings().update_from_env_vars({name: os.environ[name]})
        except (ValueError, wandb.Error) as error:
            value = "..." if "KEY" in name else os.environ[name]
            raise ConfigError(f"{name}={value}: W&B refuses it ({_reason(error)}); correct it or unset it.") from error


def _reason(error: Exception) -> str:
    """In one line, without what pydantic adds."""
    messages = [problem["msg"] for problem in error.errors()] if hasattr(error, "errors") else [str(error)]
    return " ".join("; ".join(messages).split())


def find_credentials() -> str | None:
    """Says where wandb will find its key for the server in use, never the key itself; None if nowhere."""
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return variable
    if setting("api_key"):
        return "settings file of wandb"
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(_host()):
                return path
        except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
            continue
    return None


def _host() -> str:
    return urlsplit(server_url()).netloc


def _settings() -> Any:
    import wandb

    bounded: dict[str, Any] = {"finish_timeout": FINISH_WITHIN_S, "finish_timeout_raises": True}
    known = {
        name: value for name, value in bounded.items() if name in wandb.Settings.model_fields
    }  # older ones lack them
    return wandb.Settings(console="off", silent=True, **known)


def remember_rows(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Of ``records``, which are dropped because a run that goes on makes them once more, keeps which rows those are in
    the W&B run in ``folder``, if there is one: W&B cannot replace a row. Those of earlier times stay, since the run may
    have been cut off again before it had made them.

    Raises:
        RunFailed: the disk is full, or the like.
    """
    rows = {_identity(record) for record in records}
    if rows and (folder / RUN_ID).exists():
        write_text(folder / MADE_BEFORE, strict_json({"rows": list(rows | _made_before(folder))}) + "\n")


def _made_before(folder: Path) -> set[tuple[Any, ...]]:
    return {tuple(row) for row in read_json(folder / MADE_BEFORE, complain=lambda _: None).get("rows", [])}


def _identity(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["kind"], record["step"], record.get("module")


class WandbSink:
    """One W&B run for one run directory, under ``<run_dir>/wandb``.

    Keys are ``<kind>/<field>`` and, where a record belongs to a module, ``<kind>/module_<k>/<field>``. Every row
    has ``step``, ``epoch`` and ``train_time``, and any of the three can be the x axis of any plot; ``step`` is the
    default. (W&B's own step counts rows and is never set: it drops rows that come late.)

    W&B is a mirror: if it breaks in the middle of a run, the run goes on without it and says so once.
    """

    def __init__(
        self,
        run_dir: Path,
        config: dict[str, Any],
        *,
        mode: str,
        project: str,
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        """
        Args:
            run_dir: the run directory.
            config: resolved, plain; it becomes the config of the W&B run.
            mode: ``offline`` or ``online`` (see ``resolve_mode``).
            project: in W&B, as are the following.
            entity: default: the key's own.
            group: default ``<dataset>-<model>``.
            name: default ``<method>-k<k>-s<seed>``.
            tags: of the run.

        Raises:
            RunFailed: W&B could not be started.
        """
        wandb = _import()
        method, model, dataset = (config[part]["name"] for part in ("method", "model", "dataset"))
        folder = run_dir / "wandb"
        id_path = folder / RUN_ID
        self.is_new = not id_path.exists()  # no earlier process of the run had it
        folder.mkdir(exist_ok=True)  # or wandb may choose a hidden folder
        try:
            self._run = wandb.init(
                dir=str(run_dir),
                id=None if self.is_new else id_path.read_text(encoding="utf-8").strip(),
                resume="allow",
                reinit="finish_previous",
                mode=mode,
                project=project,
                entity=entity,
                group=group or f"{dataset}-{model}",
                name=name or f"{method}-k{config['k']}-s{config['seed']}",
                tags=tags,
                job_type="train",
                config=config,
                settings=_settings(),
            )
        except (ValueError, RuntimeError, wandb.Error) as error:  # the second for a user without a home
            advice = (
                "With wandb.mode=offline nothing needs the network, and `wandb sync` uploads the run later."
                if mode == "online"
                else "With wandb.mode=disabled a run does without; metrics.jsonl has everything."
            )
            raise RunFailed(f"W&B could not be started ({mode}): {_reason(error)}. {advice}") from error
        id_path.write_text(self._run.id + "\n", encoding="utf-8")
        self._define_metrics()
        self._broken = False
        self._left_out = set() if self.is_new else _made_before(folder)

    def _define_metrics(self) -> None:
        for axis in POSITION:
            self._run.define_metric(axis)
        for kind in ("train", "eval", *KINDS_BY_MODULE):
            self._run.define_metric(f"{kind}/*", step_metric="step")
        for split in ("test", "validation"):
            self._run.define_metric(f"eval/{split}_error", step_metric="step", summary="min")

    def write(self, record: dict[str, Any]) -> None:
        """Logs one record as one row, unless W&B has it already; only numbers."""
        if _identity(record) in self._left_out:
            return
        row = {axis: record[axis] for axis in POSITION}
        prefix = record["kind"] + (f"/module_{record['module']}" if "module" in record else "")
        for field, value in record.items():
            if field not in OF_EVERY_MODULE and isinstance(value, int | float):
                row[f"{prefix}/{field}"] = value
        self._mirror(lambda: self._run.log(row))

    def finish(self, summary: dict[str, Any] | None, exit_code: int) -> None:
        """Ends the W&B run, as failed unless ``exit_code`` is 0, with the run's summary added to its own."""
        self._mirror(lambda: self._run.summary.update(summary or {}))
        self._mirror(lambda: self._end((summary or {}).get("memory") or [], exit_code))

    def _end(self, accounts: list[dict[str, Any] | None], exit_code: int) -> None:
        try:
            self._log_memory_table(accounts)
        finally:  # a user without a home has no place for a table; how the run ended is to be known all the same
            self._run.finish(exit_code=exit_code)

    def _log_memory_table(self, accounts: list[dict[str, Any] | None]) -> None:
        """The last memory account, a row a module, in bytes."""
        import wandb

        rows = {k: account for k, account in enumerate(accounts, start=1) if account}
        if rows:
            categories = list(dict.fromkeys(category for account in rows.values() for category in account))
            data = [[k, *(account.get(category) for category in categories)] for k, account in rows.items()]
            self._run.log({"memory": wandb.Table(columns=["module", *categories], data=data)})

    def _mirror(self, action: Any) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # whatever the service or its socket raises
            self._broken = True
            tell(f"W&B stopped ({error}); the run goes on, and metrics.jsonl has everything")
