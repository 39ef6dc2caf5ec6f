"""The files of a run: strict JSON, written whole, and trouble with the disk told with the file's name.

Strict: a number that JSON cannot express (NaN, infinity) is written as null.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fr_bench.atomic import replace_file
from fr_bench.errors import ConfigError, RunFailed


def strict_json(value: Any, *, indent: int | None = None) -> str:
    """Returns ``value`` as JSON that every parser reads: floats to the last bit, NaN and infinities as null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, complain: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Returns the object in a file; empty if it is not there, or not yet whole: status.json is created first and
    filled next.

    Args:
        path: of the file.
        complain: is told of a file that is there and cannot be read, or is not whole; it counts as empty then.

    Raises:
        ConfigError: it is there and cannot be read, and there is nobody to complain to.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        if complain is not None:
            complain(f"{path}: cannot be read: {error}")
        elif isinstance(error, OSError):
            raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
        return {}
    return content if isinstance(content, dict) else {}


def write_text(path: Path, text: str) -> None:
    """Replaces the file.

    Raises:
        RunFailed: the disk is full, or the like; the old file is as it was.
    """
    with naming_file(path):
        replace_file(path, text)


def cannot_write(
    path: Path, error: OSError, done: str = "What was logged until then is there", module: int | None = None
) -> RunFailed:
    """What to tell instead of ``error``.

    Args:
        path: of a run.
        error: of the disk.
        done: what there is all the same.
        module: whose file it is (from 1).
    """
    if error.errno == errno.ENOENT and not os.path.exists(path):
        return gone(path)
    mended = "there is room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "it can be"
    return RunFailed(
        f"{path}: cannot be written ({error.strerror}). {done}; once {mended}, the same command goes on from the last "
        "checkpoint",
        module,
    )


def gone(path: Path) -> RunFailed:
    """What to tell where a file of a run, or a folder that it is in, is no longer there."""
    missing = [each for each in (path, *path.parents) if not os.path.exists(each)] or [path]
    return RunFailed(
        f"{missing[-1]}: was removed or moved away while the run was going on, which therefore ends. What was logged "
        "until then is in its metrics.jsonl, wherever that is now; the same command with the run_dir that has it goes "
        "on from the last checkpoint"
    )


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """An error of the disk inside is told with the file's name: see :func:`cannot_write`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error
