"""Settings that are paths, which Hydra's grammar would read as something else: ``run_dir=k=4,lr=0.1``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

PATHS = ("resume", "run_dir", "sweep_dir", "dataset.path", "dataset.root")


def with_quoted_paths(words: Sequence[str]) -> list[str]:
    """The words of a command line, with paths in quotes where Hydra would not take them as they are.

    What it reads as several values stays a sweep, unless there is a path of that name. What is in quotes stays too.
    """
    return [_with_quoted_path(word) for word in words]


def quoted(text: str) -> str:
    """Returns ``text`` as a value of an override."""
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text)
    return f"'{escaped}'"


def _with_quoted_path(word: str) -> str:
    key, _, path = word.partition("=")
    name = key.lstrip("+")
    if name not in PATHS or path.startswith(("'", '"')):
        return word
    if "." not in name:  # loaders know it themselves
        path = os.path.expanduser(path)  # zsh leaves ~ alone behind a =
        word = f"{key}={path}"
    try:
        value: Any = OverridesParser.create().parse_override(f"{key}={path}").value()
    except HydraException:
        several = path.split(",")
        if name == "resume" and not os.path.exists(path) and all(map(os.path.exists, several)):
            return f"{key}={','.join(map(quoted, several))}"
        # Nor is the ~ of somebody who is not known: a folder of that name would be a trap.
        return word if path.startswith("~") and "." not in name else f"{key}={quoted(path)}"
    if value is None or value == path:
        return word
    is_number = isinstance(value, int | float)  # 2024_01 would be 202401
    return f"{key}={quoted(path)}" if is_number or os.path.exists(path) else word
