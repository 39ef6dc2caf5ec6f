"""How the jobs of one command ended: recorded by each job, read back by the command that started them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

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
    that folder. What an earlier sweep left there is not ours.
    """

    def __init__(self, sweep_dir: Path | None) -> None:
        self._path = None if sweep_dir is None else sweep_dir / FILE_NAME
        self._start = self._path.stat().st_size if self._path is not None and self._path.exists() else 0
        self._outcomes: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """Records one outcome; one write, so that jobs that end together do not mix."""
        if self._path is None:
            self._outcomes.append(outcome)
            return
        line = json.dumps(asdict(outcome)) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def read(self) -> list[Outcome]:
        """Returns all outcomes so far, in the order of the sweep."""
        if self._path is None:
            return list(self._outcomes)
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._start)
            found = [Outcome(**json.loads(line)) for line in file]
        return sorted(found, key=lambda outcome: outcome.number or 0)


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


def table(outcomes: list[Outcome], num_jobs: int | None) -> str:
    """Returns a sweep's jobs as text, one a line, then why some failed and how many never ran."""
    rows = [("job", "state", "best test error", "overrides", "run directory")]
    for outcome in outcomes:
        error = outcome.best_test_error
        rows.append(
            (
                str(outcome.number),
                outcome.state,
                "-" if error is None else f"{100 * error:.2f} %",
                " ".join(outcome.overrides),
                os.path.relpath(outcome.run_dir),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    for outcome in outcomes:  # once more: another launcher leaves the message in a log file of its own
        if outcome.message is not None:
            lines.append(f"job {outcome.number} {outcome.state}: {outcome.message}")
    if num_jobs is not None and len(outcomes) < num_jobs:
        lines.append(f"{num_jobs - len(outcomes)} of {num_jobs} jobs did not run.")
    return "\n".join(lines)
