"""Which functions a run's config.yaml may name where the config comes from somebody else.

A ``_target_`` is called with what stands beside it, so a config is a program: ``os.system`` is a function too.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Any

from fr_bench.planning.own_code import targets


def foreign_targets(config: Any) -> list[str]:
    """The targets in ``config``, at any depth, that no config file of this program names."""
    return sorted(set(targets(config)) - _own_targets())


def references(node: Any) -> Iterator[str]:
    """Every string in ``node``, at any depth, that refers to something (``${...}``). A run's config has none, as it was
    written resolved; what builds its components would resolve it, and a resolver may make a ``_target_`` of it."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from references([key, value])
    elif isinstance(node, list):
        for item in node:
            yield from references(item)
    elif isinstance(node, str) and "${" in node:
        yield node


def _own_targets() -> set[str]:
    import yaml

    groups = (folder for folder in resources.files("fr_bench.conf").iterdir() if folder.is_dir())
    files = (file for folder in groups for file in folder.iterdir() if file.name.endswith(".yaml"))
    return {target for file in files for target in targets(yaml.safe_load(file.read_text(encoding="utf-8")))}
