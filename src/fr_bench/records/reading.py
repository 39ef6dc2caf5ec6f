"""The lines of a metrics.jsonl, whatever state it is in: which are records, and what is wrong with the others."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]

KINDS_BY_MODULE = ("memory", "time", "method", "sigma", "profile")
POSITION = ("step", "epoch", "train_time")  # where in a run a record is; all have it
OF_EVERY_MODULE = {"kind", "module", *POSITION}  # fields that all records by module have


class Line(NamedTuple):
    """One line.

    Attributes:
        number: from 1.
        problem: what is wrong with it; None for a record.
        record: empty if something is.
    """

    number: int
    problem: str | None
    record: Record


def read_lines(path: Path) -> Iterator[Line]:
    """All lines of the file; none of one that is not there, and the last one may be torn.

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line_number, line in enumerate(lines, start=1):
        yield Line(line_number, *_parse(line))


def number(record: Record, key: str) -> float | None:
    """``record[key]`` if it is a finite number, else None."""
    value = record.get(key)
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return value if good else None


def deciding_error(record: Record) -> float:
    """By which the best of the `eval` records is chosen: the validation error, without one the test error."""
    validation_error = number(record, "validation_error")
    return record["test_error"] if validation_error is None else validation_error


def _parse(line: bytes) -> tuple[str | None, Record]:
    """Returns what is wrong with the line (None if nothing), and the record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return "not a whole JSON object", {}
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return "a record without a kind", {}
    for key in POSITION:
        if number(record, key) is None:
            return f"a {record['kind']} record without a number for '{key}'", {}
    if record["kind"] in KINDS_BY_MODULE and type(record.get("module")) is not int:
        return f"a {record['kind']} record that names no module", {}
    return None, record
