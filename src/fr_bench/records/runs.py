"""Run directories as they lie on disk, finished or not: found, read, and what is wrong with them said.

Nothing here raises for a broken file: every problem is one line for ``complain``, and what is good is kept.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fr_bench.records.reading import KINDS_BY_MODULE, POSITION, Line, Record, number, read_lines
from fr_bench.records.run_files import read_json

Complain = Callable[[str], None]

RUN_FILES = ("metrics.jsonl", "status.json")  # a folder with either is a run directory
SWEEP_FILES = ("jobs.jsonl", "multirun.yaml")  # beside the runs of a sweep: `plot multirun/x/*` names them too
FOLDERS_OF_A_RUN = ("checkpoints", "wandb")
LARGEST_NUMBER_OF_COMPLAINTS = 5  # about one file
LARGEST_SIZE = 4096  # modules of all replicas; tables and figures have something for each


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        config: as in config.yaml; empty if that is not readable.
        status, summary, environment, origin: the JSON files; empty if missing.
        records: of metrics.jsonl by ``kind``, in the order of steps; empty if it diverged before the first.
    """

    path: Path
    method: str
    model: str
    dataset: str
    k: int
    seed: int | None
    config: Record
    status: Record
    summary: Record
    environment: Record
    origin: Record
    records: dict[str, list[Record]]

    @property
    def size(self) -> int:
        """Modules of all replicas: the largest number in records by module."""
        return self.k * int(self.config.get("replicas") or 1)

    @cached_property  # figures ask for it hundreds of times, and a long run has ten thousand losses
    def end(self) -> str:
        """``finished``, ``diverged`` or ``unfinished`` (failed, interrupted, cut off, or still running)."""
        if _has_diverged(self.status) or self._has_lost_its_loss():
            return "diverged"
        return "finished" if self.state == "finished" else "unfinished"

    @property
    def state(self) -> str:
        """As status.json has it, or summary.json where that is missing."""
        return str(self.status.get("state") or self.summary.get("state") or "unknown")

    @property
    def takes_over(self) -> bool:
        """Whether its first steps are another run's (``resume=RUN_DIR``), with that run's seconds."""
        return bool(self.origin) or self.config.get("resume") not in (None, "auto", "never")

    @property
    def own_from(self) -> tuple[float, float, float] | None:
        """Step, epoch and train_time after which its records are its own; None if no file tells."""
        if not self.takes_over:
            return 0, 0.0, 0.0
        step, epoch, train_time = (number(self.origin, key) for key in POSITION)
        return None if step is None or epoch is None or train_time is None else (step, epoch, train_time)

    @property
    def is_in_one_piece(self) -> bool:
        """Whether it is as if no other run had made its first steps."""
        if not self.origin:
            return not self.takes_over
        told = self.origin.get("in_one_piece")
        if told is not None:
            return told is True
        plan = self.config.get("plan")  # an older version told otherwise
        num_steps = plan.get("num_steps") if isinstance(plan, dict) else None
        was_whole = self.origin.get("is_exact") is True and self.origin.get("num_steps") == num_steps
        return was_whole and not self.origin.get("origin")

    @property
    def own_evaluations(self) -> list[Record]:
        """The `eval` records, without those of weights that another run trained otherwise than this one would have."""
        records = self.of("eval")
        if self.is_in_one_piece or self.own_from is None:
            return records
        return [record for record in records if record["step"] > self.own_from[0]]

    def of(self, kind: str, module: int | None = None) -> list[Record]:
        """The records of one kind, all or those of one module."""
        found = self.records.get(kind, [])
        return found if module is None else [record for record in found if record["module"] == module]

    def modules(self, kind: str) -> list[int]:
        """The modules that have records of ``kind``, in order."""
        return sorted({record["module"] for record in self.of(kind)})

    def _has_lost_its_loss(self) -> bool:
        """Whether a loss is not a number: strict JSON writes null."""
        losses = [("train", "loss"), ("eval", "train_loss"), ("eval", "test_loss")]
        return any(key in record and number(record, key) is None for kind, key in losses for record in self.of(kind))


def find_runs(arguments: Iterable[str], complain: Complain) -> list[Run]:
    """Reads the runs that ``arguments`` name: run directories, paths inside one, folders of runs at any depth,
    or patterns such as ``'outputs/**'``. A run that is named twice is read once.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        for path in _expand(argument, complain):
            directories = _run_directories(path)
            if not directories and path.name not in SWEEP_FILES:
                complain(f"{path}: no run in it (a run directory has {' or '.join(RUN_FILES)})")
            for directory in directories:
                found.setdefault(directory.resolve(), directory)
    runs = [read_run(directory, complain) for directory in found.values()]
    return [run for run in runs if run is not None]


def _expand(argument: str, complain: Complain) -> list[Path]:
    if os.path.exists(argument):  # which raises for no name, however long
        return [Path(argument)]
    matches = glob.glob(argument, recursive=True) if glob.has_magic(argument) else []
    if not matches:
        complain(f"{argument}: no such file or folder")
    return sorted(map(Path, matches))


def _run_directories(path: Path) -> list[Path]:
    below = list(_below(path)) if path.is_dir() else []
    if below:
        return below
    around = path.absolute()
    return [folder for folder in (around, *around.parents) if _is_run(folder)][:1]


def _below(path: Path) -> Iterator[Path]:
    for name, folders, _ in os.walk(path):
        folder = Path(name)
        folders.sort()
        if _is_run(folder):
            yield folder
            folders[:] = [each for each in folders if each not in FOLDERS_OF_A_RUN]
        # Links, which os.walk does not follow, lest it goes round in circles: those to a run are its other name.
        yield from (link for each in folders if (link := folder / each).is_symlink() and _is_run(link))


def _is_run(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in RUN_FILES)  # False, too, where we may not look


def read_run(directory: Path, complain: Complain) -> Run | None:
    """Reads one run directory; None, and a complaint, if it has no records or does not say what it ran.

    A run that diverged before its first record is kept: left out, it would be missing among those that diverged.
    """
    config = _read_yaml(directory / "config.yaml", complain)
    status, summary, environment, origin = (
        read_json(directory / name, complain) for name in ("status.json", "summary.json", "env.json", "origin.json")
    )
    method, model, dataset = (_name(config, summary, key) for key in ("method", "model", "dataset"))
    k = config.get("k", summary.get("k"))
    records = read_records(directory / "metrics.jsonl", complain)
    if not records and not (config and _has_diverged(status)):
        complain(f"{directory}: no records; {_why_it_ended(status)}; left out")
        return None
    if not (method and model and dataset and type(k) is int and k >= 1):
        complain(f"{directory}: neither config.yaml nor summary.json says its method, model, dataset and k; left out")
        return None
    seed = config.get("seed", summary.get("seed"))
    if problem := _what_no_run_has(k, seed, config):
        complain(f"{directory}: {problem}; left out")
        return None
    run = Run(directory, method, model, dataset, k, seed, config, status, summary, environment, origin, records)
    if run.end != "finished":
        taken = "taken as far as it went" if records else "counted, without any records"
        complain(f"{directory}: {_why_it_ended(status)}; {taken}")
    return run


def _what_no_run_has(k: int, seed: Any, config: Record) -> str | None:
    """What only somebody's editor can have written; None if nothing is."""
    replicas, plan = config.get("replicas"), config.get("plan")
    replicas = 1 if replicas is None else replicas
    if not (type(replicas) is int and replicas >= 1 and k * replicas <= LARGEST_SIZE):
        return f"k and replicas must be integers from 1, and at most {LARGEST_SIZE} when multiplied"
    if not (seed is None or type(seed) is int):
        return "its seed is no integer"
    if not (plan is None or isinstance(plan, dict)):
        return "the plan in config.yaml is none"
    if named := [key for key in ("cuts", "devices") if not isinstance((plan or {}).get(key), list | None)]:
        return f"plan.{named[0]} in config.yaml is no list"
    return None


def read_records(path: Path, complain: Complain) -> dict[str, list[Record]]:
    """Reads metrics.jsonl, by kind. A run that went back to a checkpoint repeats steps: the later record counts."""
    records: dict[str, list[Record]] = {}
    newest: dict[tuple[str, int | None], list[Record]] = {}
    num_bad = 0
    for line_number, problem, record in _lines(path, complain):
        if problem:
            num_bad += 1
            if num_bad <= LARGEST_NUMBER_OF_COMPLAINTS:
                complain(f"{path}:{line_number}: {problem}; line left out")
            continue
        kind = record["kind"]
        series = newest.setdefault((kind, record["module"] if kind in KINDS_BY_MODULE else None), [])
        while series and series[-1]["step"] >= record["step"]:
            series.pop()
        series.append(record)
    if num_bad > LARGEST_NUMBER_OF_COMPLAINTS:
        complain(f"{path}: {num_bad - LARGEST_NUMBER_OF_COMPLAINTS} more such lines left out")
    for (kind, _), series in newest.items():
        records.setdefault(kind, []).extend(series)
    return {kind: sorted(found, key=lambda record: record["step"]) for kind, found in records.items()}


def _lines(path: Path, complain: Complain) -> list[Line]:
    try:
        return list(read_lines(path))
    except OSError as error:
        complain(f"{path}: cannot be read: {error.strerror}")
        return []


def _name(config: Record, summary: Record, key: str) -> str | None:
    node = config.get(key)
    name = node.get("name") if isinstance(node, dict) else node
    name = name if name is not None else summary.get(key)
    return None if name is None else str(name)


def _has_diverged(status: Record) -> bool:
    return str(status.get("error")).startswith("diverged")


def _why_it_ended(status: Record) -> str:
    state = status.get("state", "unknown: no status.json")
    if status.get("error"):
        return f"{state}: {' '.join(str(status['error']).split())}"
    return f"its state is {state}"


def _read_yaml(path: Path, complain: Complain) -> Record:
    if not path.exists():
        return {}
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # PyYAML and OmegaConf each have a family of their own
        complain(f"{path}: cannot be read: {str(error).splitlines()[0]}")
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
