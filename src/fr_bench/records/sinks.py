"""Where the records of a run go: files, console, W&B. The parent process alone has sinks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from fr_bench.atomic import append_line
from fr_bench.records.reading import Record
from fr_bench.records.run_files import naming_file, strict_json


class Sink(Protocol):
    """Takes a run's records, flat dicts with ``kind``, ``step``, ``epoch`` and ``train_time``, as they come."""

    def write(self, record: Record) -> None:
        """Takes one record."""

    def finish(self, summary: Record | None, exit_code: int) -> None:
        """The run is over: ``summary`` as in summary.json (None if there is none), ``exit_code`` of the command."""


class JsonLinesSink:
    """metrics.jsonl: one flat object a line, on its way to disk at once.

    Floats read back bit for bit; NaN and infinities are written as null, which strict JSON has no other word for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def write(self, record: Record) -> None:
        """Appends one line, whole or not at all.

        Raises:
            RunFailed: the disk is full, or the like.
        """
        with naming_file(self._path):
            append_line(self._file, strict_json(record))

    def finish(self, summary: Record | None, exit_code: int) -> None:
        """Closes the file."""
        self._file.close()


class SinkGroup:
    """Several sinks as one, in order: put the one that must not miss anything first."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def write(self, record: Record) -> None:
        """Hands the record to every sink."""
        for sink in self._sinks:
            sink.write(record)

    def finish(self, summary: Record | None, exit_code: int) -> None:
        """Finishes every sink, also those behind one that fails; then raises the first failure."""
        failures: list[Exception] = []
        for sink in self._sinks:
            try:
                sink.finish(summary, exit_code)
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]
