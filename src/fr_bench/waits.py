"""What this process waits for now. Its pulse tells the parent: a run in which every module waits never goes on."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple


class Wait(NamedTuple):
    """A wait for another process.

    Attributes:
        number: of the process's waits so far; another number is another wait, even for the same thing.
        what: it waits for, in words: "gradients from module 2 to 1".
    """

    number: int
    what: str


_current: Wait | None = None
_count = 0


class waiting_for:
    """While the body runs, this process does nothing but wait for ``what``. Not to be nested."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        global _current, _count
        _count += 1
        _current = Wait(_count, self._what)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        global _current
        _current = None


def current_wait() -> Wait | None:
    """The one that is under way, if there is one. For any thread."""
    return _current
