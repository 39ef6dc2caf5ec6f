"""What can go wrong for a user, as types; only the command line turns them into exit codes.

Exit codes: 0 done, 1 a run failed, 2 a mistake in the command or the config, 75 stopped but resumable,
130 Ctrl-C.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path

# By what it is called here: what people type who come from other programs.
CALLED_ELSEWHERE = {
    "batch_size": ("batch", "bs"),
    "bf16": ("fp16", "half", "float16", "amp"),
    "cuda": ("gpu",),
    "fp32": ("float32", "float", "single"),
    "fp64": ("float64", "double"),
    "lr": ("learning_rate",),
    "weight_decay": ("wd",),
}
SHORTEST_BEGINNING = 3  # letters; with less than that many words begin
CLOSE = 0.5
MOST_SUGGESTED = 5


class FrBenchError(Exception):
    """Base of all errors that end in one clear message instead of a traceback."""

    exit_code = 1


class ConfigError(FrBenchError):
    """A mistake in the command or the config, found before anything is started."""

    exit_code = 2


class NoSuchChoice(ConfigError):
    """A config group has ``options``, and not the one that was asked for."""

    def __init__(self, group: str, choice: str, options: Sequence[str]) -> None:
        available = ", ".join(options) or "none"
        super().__init__(
            f"{group}={choice}: there is no such {group}.{nearest(choice, options)} Available: {available}."
        )
        self.group = group
        self.options = options


class RunFailed(FrBenchError):
    """A run that began and failed. The message names the first cause, its module and its step."""

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
        self.spreads_down = True  # with error gradients; else, with features, up

    @property
    def order(self) -> list[int]:
        """Of those that several modules found the least is where it began."""
        assert self.module is not None
        return [self.step, -self.module if self.spreads_down else self.module]


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


def place_of(error: BaseException) -> str:
    """``file:line`` where ``error`` came from: in the user's own code, if that called what raised it, else in ours,
    else in a library. Empty where nobody raised it."""
    ours, pythons = f"{Path(__file__).parent}{os.sep}", f"{sysconfig.get_path('stdlib')}{os.sep}"

    def nearness(frame: traceback.FrameSummary) -> tuple[bool, bool]:
        name = frame.filename
        is_library = name.startswith((pythons, "<")) or f"{os.sep}site-packages{os.sep}" in name
        return not is_library, not name.startswith(ours)

    frames = traceback.extract_tb(error.__traceback__)
    nearest_frame = max(reversed(frames), key=nearness, default=None)  # the last of the nearest
    return "" if nearest_frame is None else f"{nearest_frame.filename}:{nearest_frame.lineno}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for what of ``choices`` may be meant, or an empty string if nothing is close."""
    return suggestion(meant(word, choices))


def suggestion(names: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x' or 'y'?"``, or an empty string where there are no names, or too many."""
    *others, last = [f"'{name}'" for name in names] or [""]
    if not last or len(others) >= MOST_SUGGESTED:
        return ""
    return f" Did you mean {', '.join(others)} or {last}?" if others else f" Did you mean {last}?"


def meant(word: str, choices: Iterable[str]) -> list[str]:
    """What of ``choices`` may be meant by ``word``: what is called so, else what begins with it, else the closest.

    Several are equally good: to single one out would mislead.
    """
    choices, word = list(dict.fromkeys(choices)), word.lower()
    if named := called(word, choices):
        return named
    if len(word) >= SHORTEST_BEGINNING and (longer := [each for each in choices if each.lower().startswith(word)]):
        return longer
    likeness = {each: SequenceMatcher(None, each.lower(), word).ratio() for each in choices}
    most = max(likeness.values(), default=0.0)
    return [each for each in choices if likeness[each] == most] if most >= CLOSE else []


def called(word: str, choices: Iterable[str]) -> list[str]:
    """Those of ``choices`` that are ``word`` but for the case of its letters, or are called so elsewhere."""
    word = word.lower()
    return [each for each in choices if each.lower() == word or word in CALLED_ELSEWHERE.get(each, ())]
