"""bench.json and simulate.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fr_bench.atomic import replace_file
from fr_bench.errors import RunFailed
from fr_bench.records.run_files import strict_json


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces the file.

    Raises:
        RunFailed: the disk is full, or the like; the old file is as it was.
    """
    try:
        replace_file(path, strict_json(content, indent=1) + "\n")
    except OSError as error:
        raise RunFailed(f"{path}: cannot be written ({error.strerror}); what was measured before is in it") from error
