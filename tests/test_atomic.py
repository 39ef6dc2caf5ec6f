"""A file is replaced whole or not at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fr_bench.atomic import replace_file


def test_bytes_and_text_take_the_place_of_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    replace_file(path, memoryview(b"\x00\xff"))
    assert path.read_bytes() == b"\x00\xff" and list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "folder", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        replace_file(disk / "file", "old")
        with pytest.raises(OSError, match="No space left"):
            replace_file(disk / "file", bytes(2**17))
        assert (disk / "file").read_text() == "old" and len(list(disk.iterdir())) == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)
