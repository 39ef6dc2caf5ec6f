"""What can go wrong for a user, as types; only the command line turns them into exit codes.

Exit codes: 0 done, 1 a run failed, 2 a mistake in the command or the config, 75 stopped but resumable,
130 Ctrl-C.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FrBenchError(Exception):
    """Base of all errors that end in one clear message instead of a traceback."""

    exit_code = 1


class ConfigError(FrBenchError):
    """A mistake in the command or the config, found before anything is started."""

    exit_code = 2


class RunFailed(FrBenchError):
    """A run that began and failed. The message names the first cause, its module and its step."""

    exit_code = 1

    def __init__(self, message: str, module: int | None = None) -> None:
        super().__init__(message)
        self.module = module


class TakenOver(RunFailed):
    """The run goes on in another process, to which its directory belongs: nothing more may be written there."""


class Diverged(RunFailed):
    """A loss or a gradient became infinite or not a number; ``step`` counts from 1, as in the records."""

    def __init__(self, step: int, module: int) -> None:
        super().__init__(
            f"diverged at step {step} in module {module}: its loss or gradient is not finite; "
            "a lower optimizer.lr or a clip_norm may help",
            module,
        )
        self.step = step


class Interrupted(FrBenchError):
    """A run that was stopped from outside: 130 for Ctrl-C, 75 for a signal that means 'continue later'."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ToldElsewhere(FrBenchError):
    """The end of a process of a job whose cause another one tells the user."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(word: str, choices: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the closest of ``choices``, or an empty string if none is close."""
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""
