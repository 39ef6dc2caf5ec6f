"""Output that nobody reads any more, as of ``fr-bench train | head``, or that has no room where it goes."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


def is_unread(stream: TextIO) -> bool:
    """Whether nobody reads ``stream`` any more. Then it leads nowhere from now on, so that neither the next line nor
    the interpreter at its end complains."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    found = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))  # of a pipe, of a socket
    if found:
        lead_nowhere(stream)
    return found


def lead_nowhere(stream: TextIO) -> None:
    """What was and will be written to ``stream`` is lost."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell(line: str) -> None:
    """Writes a line to stderr for whoever reads it; nothing goes otherwise because that one has gone."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        lead_nowhere(sys.stderr)


def say(line: str) -> None:
    """Tells the user something in the program's name."""
    tell(f"fr-bench: {line}")


def open_to_all() -> None:
    """Has stdout and stderr take whatever is printed: where they are closed, and letters that a terminal lacks."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # For as long as the process lives; under its number, or a file that is opened later would get it, and
            # processes that we start would have none.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        else:
            stream.reconfigure(errors="replace")


@contextmanager
def heard_or_not(then: str = "training goes on, and is logged as ever") -> Iterator[None]:
    """What is printed inside is for whoever reads stdout; a run does not end because that one has gone, or has no
    room. ``then``: what it does instead."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not is_unread(sys.stdout):
            raise
        _tell(f"nobody reads the output any more; {then}")
    except OSError as error:
        lead_nowhere(sys.stdout)
        _tell(f"the output cannot be written ({error.strerror}); {then}")


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):
        # Not sys.stderr, which a live display leads to stdout.
        print(f"fr-bench: {line}", file=sys.__stderr__, flush=True)
