"""Output that nobody reads any more, as of ``fr-bench train | head``."""

from __future__ import annotations

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
    found = any(event & select.POLLERR for _, event in poll.poll(0))
    if found:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return found


@contextmanager
def heard_or_not() -> Iterator[None]:
    """What is printed inside is for whoever reads stdout; a run does not end because that one has gone."""
    try:
        yield
    except BrokenPipeError:
        if not is_unread(sys.stdout):
            raise
        print("fr-bench: nobody reads the output any more; training goes on, and is logged as ever", file=sys.stderr)
