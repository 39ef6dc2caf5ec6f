"""Dependencies point one way: what computes does not know what configures, launches or logs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "fr_bench"

# The packages, and the files that belong to none, from the top down: each sees only what stands further down.
LAYERS = """
notebook
cli
commands
sweeps
bench
figures
peers report simulation
launching
settings
workers
records
planning
data models
training
checkpoints
methods
modules
processes
transport
measuring
components schedules
errors memory_errors seeds atomic unread waits
"""
RANK = {name: rank for rank, names in enumerate(LAYERS.split("\n")) for name in names.split()}

# What stands below the worker sees neither the config system nor W&B, not even through something it imports.
COMPUTING = ("training", "checkpoints", "methods", "modules", "processes", "transport", "measuring", "schedules")
FORBIDDEN = ("hydra", "omegaconf", "wandb", "rich", "matplotlib")


def imported_in(file: Path) -> set[str]:
    """The packages of fr_bench, and its files that belong to none, that are imported anywhere in ``file``."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fr_bench":
            names |= {f"fr_bench.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("fr_bench.")} - {"__version__"}


@pytest.mark.parametrize("name", RANK)
def test_a_package_sees_only_those_below_it(name: str) -> None:
    files = sorted((SOURCE / name).glob("*.py")) or [SOURCE / f"{name}.py"]
    above = {file.name: {other for other in imported_in(file) - {name} if RANK[other] <= RANK[name]} for file in files}
    assert not any(above.values()), above


def test_every_package_has_its_place() -> None:
    packages = {file.parent.name for file in SOURCE.glob("*/__init__.py")}
    files = {file.stem for file in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert set(RANK) == packages | files


def test_the_map_of_the_source_has_them_in_this_order() -> None:
    rows = (SOURCE.parents[1] / "docs" / "source.md").read_text().split("|---|---|\n")[1].splitlines()
    assert [name.strip(" `") for row in rows for name in row.split("|")[1].split(",")] == [*RANK]


def test_what_computes_does_not_see_what_configures_and_shows() -> None:
    """Nor do methods see more than their module, in particular nothing of the transport."""
    names = [f"fr_bench.{name}" for name in COMPUTING]
    names += [f"fr_bench.{name}.{file.stem}" for name in COMPUTING for file in sorted((SOURCE / name).glob("[!_]*.py"))]
    program = f"""
import importlib, sys
sys.modules |= dict.fromkeys({FORBIDDEN!r})  # None: importing it raises ImportError, which names it
import fr_bench.methods.fr, fr_bench.methods.ddg, fr_bench.methods.dni, fr_bench.methods.dgl, fr_bench.methods.bp
import fr_bench.methods.pipeline, fr_bench.methods.data_parallel
seen = {{name.split(".")[1] for name in sys.modules if name.startswith("fr_bench.")}}
if too_much := seen - {{"methods", "modules", "measuring", "seeds", "errors", "memory_errors"}}:
    sys.exit(f"methods import {{too_much}}")
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
