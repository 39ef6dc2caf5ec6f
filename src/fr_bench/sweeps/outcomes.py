"""How the jobs of one command ended: recorded by each job, read back by the command that started them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fr_bench.atomic import append_line

FILE_NAME = "jobs.jsonl"
STOPPED = (75, 130)


@dataclass
class Outcome:
    """One job.

    Attributes:
        number: place in the sweep, None outside one.
        state: as in status.json: running, finished, failed, interrupted.
        message: what went wrong.
    """

    number: int | None
    overrides: list[str]
    run_dir: str
    state: str = "running"
    exit_code: int = 1
    message: str | None = None
    best_test_error: float | None = None

    def finish(self, best_test_error: float | None) -> None:
        """Records success."""
        self.state, self.exit_code, self.best_test_error = "finished", 0, best_test_error

    def fail(self, message: str, code: int) -> None:
        """Records a failure or an interruption."""
        self.state = "interrupted" if code in STOPPED else "failed"
        self.exit_code, self.message = code, message


class OutcomeLog:
    """Collects outcomes: in memory for a single run, in ``jobs.jsonl`` of a sweep's folder.

    A launcher may run the jobs of a sweep in other processes or on other machines, which share nothing but
    that folder. What an earlier sweep left there is not ours. A job that is interrupted and requeued records an
    outcome each time; the last one counts.

    Args:
        sweep_dir: None for a single run.
        num_jobs: of the sweep, None if nobody knows.
        shared: overrides that all jobs have, which are not told of each.
    """

    def __init__(self, sweep_dir: Path | None, num_jobs: int | None = None, shared: Sequence[str] = ()) -> None:
        self._path = None if sweep_dir is None else sweep_dir / FILE_NAME
        self._start = self._path.stat().st_size if self._path is not None and self._path.exists() else 0
        self._num_jobs = num_jobs
        self._shared = list(shared)
        self._num_told = 0, 0  # of those that are written, and of those that could not be
        self._outcomes: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """Records one outcome. A disk without room is no reason to end a sweep: this process remembers its own."""
        self._outcomes.append(outcome)
        if self._path is None:
            return
        with contextlib.suppress(OSError), self._path.open("ab", buffering=0) as file:
            # One write is enough for processes of one machine; on a network file system two machines need the lock.
            with contextlib.suppress(OSError):  # where there are no locks
                fcntl.lockf(file, fcntl.LOCK_EX)
            append_line(file, json.dumps(asdict(outcome)))

    def read(self) -> list[Outcome]:
        """Returns the outcomes so far, one a job, in the order of the sweep."""
        found = {outcome.number: outcome for outcome in self._history()}
        return sorted(found.values(), key=lambda outcome: outcome.number or 0)

    def news(self) -> list[Outcome]:
        """Returns what was recorded since the last call, in the order in which it happened."""
        written = self._written()
        unwritten = self._unwritten(written)
        found = written[self._num_told[0] :] + unwritten[self._num_told[1] :]
        self._num_told = len(written), len(unwritten)
        return found

    def line(self, outcome: Outcome) -> str:
        """Returns a line of text for a job that has just ended: how many have, and how this one did."""
        num_done = sum(other.state != "interrupted" for other in self.read())
        of_all = "" if self._num_jobs is None else f"/{self._num_jobs}"
        error = outcome.best_test_error
        how = outcome.message or (f"best test error {100 * error:.2f} %" if error is not None else "")
        what = f"job {outcome.number} {outcome.state}" + (f": {how}" if how else "")
        return f"[{num_done}{of_all} done] {what} ({self._words(outcome)})"

    def table(self) -> str:
        """Returns a sweep's jobs as text, one a line, then why some failed and how many never ran."""
        outcomes = self.read()
        rows = [("job", "state", "best test error", "overrides", "run directory")]
        for outcome in outcomes:
            error = outcome.best_test_error
            rows.append(
                (
                    str(outcome.number),
                    outcome.state,
                    "-" if error is None else f"{100 * error:.2f} %",
                    self._words(outcome),
                    os.path.relpath(outcome.run_dir),
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [f"all jobs: {' '.join(self._shared)}"] if self._shared else []
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        for outcome in outcomes:  # once more: another launcher leaves the message in a log file of its own
            if outcome.message is not None:
                lines.append(f"job {outcome.number} {outcome.state}: {outcome.message}")
        if self._num_jobs is not None and len(outcomes) < self._num_jobs:
            lines.append(f"{self._num_jobs - len(outcomes)} of {self._num_jobs} jobs did not run.")
        return "\n".join(lines)

    def _words(self, outcome: Outcome) -> str:
        return " ".join(word for word in outcome.overrides if word not in self._shared)

    def _history(self) -> list[Outcome]:
        written = self._written()
        return written + self._unwritten(written)

    def _unwritten(self, written: list[Outcome]) -> list[Outcome]:
        """Of our own what a full disk kept out of the file, in which ``written`` are."""
        return [outcome for outcome in self._outcomes if outcome not in written]

    def _written(self) -> list[Outcome]:
        """From the file, which other processes and machines write too."""
        found: list[Outcome] = []
        if self._path is not None and self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._start)
                for line in file:
                    with contextlib.suppress(ValueError, TypeError):  # just being written, or cut off by a full disk
                        found.append(Outcome(**json.loads(line)))
        return found


def exit_code(outcomes: list[Outcome], num_jobs: int | None, hydra_code: int) -> int:
    """Returns the exit code of the command.

    Args:
        outcomes: of the jobs that ran.
        num_jobs: that should have run, None if nobody knows.
        hydra_code: what Hydra would have exited with; counts where no outcome says more.
    """
    codes = [outcome.exit_code for outcome in outcomes]
    stopped = [code for code in codes if code in STOPPED]
    if stopped:
        return stopped[0]
    if num_jobs == 1 and len(codes) == 1:
        return codes[0]
    if hydra_code == 130:
        return 130
    if any(codes) or (num_jobs is not None and len(codes) < num_jobs):
        return 1
    return hydra_code
