"""What of an earlier run's records a run that goes on from it keeps, and what it makes again.

A checkpoint lies in the middle of its step s: behind the `train`, `method`, `time` and `profile` records of s and
before all others of s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fr_bench.atomic import remove_temporaries
from fr_bench.checkpoints.files import remove_after
from fr_bench.errors import RunFailed
from fr_bench.launching.resume import Start, has_modules_of
from fr_bench.records.reading import POSITION, Record, number, read_lines
from fr_bench.records.run_directory import RunDirectory
from fr_bench.records.run_files import strict_json, write_text
from fr_bench.records.wandb_sink import remember_rows

BEFORE_THE_CUT = ("train", "method", "time", "profile")
# What records of a kind have, beside their position.
NUMBERS_OF = {
    "eval": ("test_error",),
    "memory": ("module", "peak"),
    "time": ("module", "play_s", "learn_s", "send_s"),  # and wait_s, if it has one
    "method": ("module",),
    "sigma": ("module",),
    "profile": ("module", "iterations"),
}
OPTIONAL = ("wait_s", "validation_error", "iterations")
LARGEST = 1e300


@dataclass(frozen=True)
class Records:
    """Of the run that another goes on from.

    Attributes:
        kept: up to the checkpoint; they are in metrics.jsonl.
        lost: what to tell of those that should be there and are not; empty if all are.
    """

    kept: list[Record]
    lost: list[str]


def bring_records(start: Start, directory: RunDirectory) -> Records:
    """Leaves in the run's metrics.jsonl exactly what comes before its start, and removes checkpoints behind it and
    files that were never finished.

    Raises:
        RunFailed: they cannot be read, the disk is full, or the like; metrics.jsonl is as it was.
    """
    own = start.source is None or start.source == directory.path
    source = directory if own else RunDirectory(start.source or directory.path)
    step = start.resumption.step if start.resumption is not None else 0
    kept: list[Record] = []
    dropped: list[Record] = []
    for record in resumable_records(source.metrics):
        (kept if _is_before(record, step) else dropped).append(record)
    if not own:  # of an attempt in the run's own directory, which came to no checkpoint
        dropped = [record for record in resumable_records(directory.metrics) if not _is_before(record, step)]
    if start.resumption is None:
        dropped, kept = [*kept, *dropped], []
    elif start.plan is not None and not has_modules_of(start.resumption.checkpoint, start.plan):
        kept = [record for record in kept if "module" not in record]  # those were other modules
    remember_rows(directory.wandb, dropped)  # first: the run may be cut off at any time
    if kept or directory.metrics.exists():
        write_text(directory.metrics, "".join(strict_json(record) + "\n" for record in kept))
    remove_after(directory.checkpoints, step if start.resumption is not None and own else -1)
    for folder in (directory.path, directory.checkpoints, directory.checkpoints / "final"):
        remove_temporaries(folder)
    return Records(kept, _lost(start, kept, source.metrics))


def _is_before(record: Record, step: int) -> bool:
    """Whether it lies before the checkpoint after ``step`` iterations."""
    return bool(record["step"] < step or (record["step"] == step and record["kind"] in BEFORE_THE_CUT))


def _lost(start: Start, kept: list[Record], path: Path) -> list[str]:
    """A checkpoint is younger than the `train` records before it, but files can be removed, or restored from a copy."""
    if start.resumption is None:
        return []
    step, manifest = start.resumption.step, start.resumption.checkpoint.manifest
    last = max((record["step"] for record in kept if record["kind"] == "train"), default=0)
    told = [module["steps_since_record"] for module in manifest["modules"] if "steps_since_record" in module]
    # Older checkpoints do not tell. `log_every` does not either where it was another in an attempt before.
    since_record = told[0] if told else manifest["config"]["log_every"] - 1
    if step - last <= since_record:
        return []
    return [f"{path} has no record of steps {last + 1} to {step}: they count in no figure and in no table."]


def resumable_records(path: Path) -> list[Record]:
    """All whole records of a metrics.jsonl that have what a run that goes on with them adds up.

    Raises:
        RunFailed: it is there and cannot be read.
    """
    try:
        lines = list(read_lines(path))
    except OSError as error:
        raise RunFailed(f"{path}: cannot be read ({error.strerror})") from error
    return [line.record for line in lines if line.problem is None and _adds_up(line.record)]


def _adds_up(record: Record) -> bool:
    numbers = [number(record, key) for key in (*POSITION, *NUMBERS_OF.get(record["kind"], ()))]
    numbers += [number(record, key) for key in OPTIONAL if key in record]
    is_bounded = all(value is not None and abs(value) < LARGEST for value in numbers)
    return is_bounded and type(record["step"]) is int and type(record.get("module", 0)) is int
