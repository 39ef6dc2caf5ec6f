"""The code of the user's own that a run is made by: a hash of every package that a ``_target_`` of its config names.

env.json has it as ``code``. Where a run went on with other code than before, ``code_before`` has that of the steps
until then, the oldest first.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Code = dict[str, str]

# Whose versions env.json has.
OTHERS = {*sys.stdlib_module_names, "__main__", "fr_bench", "torch", "torchvision"}
INSTALLED_IN = {"site-packages", "dist-packages"}
LARGEST_NUMBER_OF_ENTRIES = 10_000  # of a package's folders: one with a data set in it would take its time
NUM_DIGITS = 16


def targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` in ``node``, at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "_target_":
                yield str(value)
            else:
                yield from targets(value)
    elif isinstance(node, list):
        for item in node:
            yield from targets(item)


def describe_code(config: dict[str, Any]) -> Code:
    """Returns ``{"my_package": "3f2a..."}``: for every top-level package, or module of one file, that a target of
    ``config`` lies in, a hash of its source as it is on disk now. Nothing is imported.

    Left out are fr_bench, torch, torchvision, Python's own and what is installed in site-packages (but not what is
    installed as editable); and what cannot be read, has no source or is larger than LARGEST_NUMBER_OF_ENTRIES.
    """
    names = sorted({target.partition(".")[0] for target in targets(config)} - OTHERS)
    hashes = {name: _hash(name) for name in names}
    return {name: found for name, found in hashes.items() if found is not None}


def code_history(environment: dict[str, Any]) -> list[Code]:
    """What an env.json tells: the code of the run's steps, the oldest first; empty if it tells nothing, as those of
    older versions."""
    before, last = environment.get("code_before"), environment.get("code")
    stages = [*(before if isinstance(before, list) else []), last]
    return [stage for stage, _ in itertools.groupby(stages) if isinstance(stage, dict)]


def changed_since(history: Iterable[Code], now: Code) -> str | None:
    """The packages whose code was another at some time in ``history`` than ``now``, in words; None without any.

    One that has a hash on one side alone, because it is installed now, say, is not known to have changed.
    """
    names = {name for code in history for name in code.keys() & now.keys() if code[name] != now[name]}
    return " and ".join(sorted(names)) or None


def _hash(name: str) -> str | None:
    try:
        sources = sorted(_sources(name))
        content = hashlib.sha256()
        for inside, path in sources:
            source = path.read_bytes()
            content.update(f"{inside}\0{len(source)}\0".encode() + source)
    except Exception:  # of the file system, or of whatever else finds packages here: no reason not to train
        return None
    return content.hexdigest()[:NUM_DIGITS] if sources else None


def _sources(name: str) -> Iterator[tuple[str, Path]]:
    """The .py files of a package, or of a module the one, with their paths inside it."""
    spec = importlib.util.find_spec(name)  # of a top-level name: finds it, and imports nothing
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        path = Path(spec.origin or "")
        if path.suffix == ".py" and _is_own(path):
            yield path.name, path
        return
    for folder in spec.submodule_search_locations:  # several, if it has no __init__.py
        if _is_own(Path(folder)):
            yield from _sources_below(folder)


def _is_own(path: Path) -> bool:
    return INSTALLED_IN.isdisjoint(path.parts)


def _sources_below(top: str) -> Iterator[tuple[str, Path]]:
    num_entries = 0
    for folder, folders, names in os.walk(top, onerror=_refuse):
        # No import statement can name the others: .git, a virtual environment's python3.11, what an editor leaves.
        folders[:] = [each for each in folders if each.isidentifier() and each != "__pycache__"]
        num_entries += len(folders) + len(names)
        if num_entries > LARGEST_NUMBER_OF_ENTRIES:
            raise OSError(f"{top}: more than {LARGEST_NUMBER_OF_ENTRIES} files and folders")
        for each in names:
            if each.endswith(".py") and each.removesuffix(".py").isidentifier():
                path = Path(folder, each)
                yield path.relative_to(top).as_posix(), path


def _refuse(error: OSError) -> None:
    raise error
