"""Files that are replaced whole, and lines that are appended whole, so that nobody ever reads half of one."""

from __future__ import annotations

import contextlib
import os
import re
from io import FileIO
from pathlib import Path


def replace_file(path: Path, content: bytes | memoryview | str) -> None:
    """Makes ``content`` (text as UTF-8) that of ``path``; it is on disk before the old content is gone.

    The temporary name is this process's own: of two that write the same file, one has the last word.

    Raises:
        OSError: the disk is full, or the like; the old content stands, and nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Removes what processes left in ``folder`` that were killed in :func:`replace_file`; nobody else may be in it."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+", path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def append_line(file: FileIO, line: str) -> None:
    """Appends ``line`` and a line feed, whole or not at all, to a ``file`` that was opened to append, unbuffered: what
    cannot be written now must not be tried again when it is closed.

    Raises:
        OSError: the disk is full, or the like.
    """
    rest = memoryview(f"{line}\n".encode())
    size = os.fstat(file.fileno()).st_size
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(size)
        raise
