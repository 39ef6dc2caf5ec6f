"""What is installed holds everything that the tree has: all modules, and conf/ as fr_bench.conf."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_package_list_is_the_tree():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = ["fr_bench.conf"]
    for file in (ROOT / "src" / "fr_bench").rglob("__init__.py"):
        found.append(".".join(file.parent.relative_to(ROOT / "src").parts))
    assert sorted(packages) == sorted(found)
    folders = {file.parent for file in (ROOT / "src" / "fr_bench").rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fr-bench alone, installed from a wheel; its dependencies come from this environment."""
    pytest.importorskip("setuptools", "70.1", reason="building offline needs setuptools that makes wheels by itself")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: setuptools writes build/ and *.egg-info beside the sources
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE", "README.md", "src", "conf"):
        if (ROOT / name).exists():
            subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    done = subprocess.run(
        [*command, "--target", str(folder / "site"), str(source)], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


def run_installed(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs python with the installed package, and nothing of the repository, on the path."""
    elsewhere = [path for path in sys.path if path and ROOT not in Path(path).parents]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *elsewhere])}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=installed.parent, env=environment)


def test_every_config_file_is_in_the_wheel(installed):
    shipped = {file.relative_to(installed / "fr_bench" / "conf") for file in installed.rglob("conf/**/*.yaml")}
    assert shipped == {file.relative_to(ROOT / "conf") for file in (ROOT / "conf").rglob("*.yaml")}


def test_the_installed_program_finds_its_config(installed):
    done = run_installed(installed, "-c", "import fr_bench.conf; print(fr_bench.conf.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(installed), done.stdout + done.stderr
    done = run_installed(installed, "-m", "fr_bench", "train", "experiment=quickstart", "--cfg", "job")
    assert done.returncode == 0 and "name: resnet20" in done.stdout, done.stderr


def test_the_installed_command_is_fr_bench(installed):
    assert (installed / "bin" / "fr-bench").exists()
    done = run_installed(installed, "-m", "fr_bench", "--help")
    assert done.stdout.startswith("usage: fr-bench")
