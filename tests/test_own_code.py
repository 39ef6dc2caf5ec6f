"""The hash of the user's own code: what changes it, whose code has one, and that it never stands in a run's way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fr_bench.planning import own_code
from fr_bench.planning.own_code import describe_code


def write(folder: Path, **files: str) -> None:
    """``a__b`` is the file a/b.py."""
    for name, content in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def config_of(target: str, *others: str) -> dict[str, Any]:
    deeper = [{"_target_": other} for other in others]
    return {"model": {"_target_": target, "width": 3}, "method": {"name": "x", "optimizers": deeper}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_every_package_that_a_target_names_has_a_hash_and_is_not_imported(folder: Path) -> None:
    write(folder, hashed_a__models="raise 1", hashed_b__init="", hashed_c="x = 1", hashed_d="")
    config = config_of("hashed_a.models.build", "hashed_c.Method", "hashed_a.other.Root", "torch.optim.SGD")
    code = describe_code(config | {"dataset": {"_target_": "fr_bench.data.digits.load"}})
    assert list(code) == ["hashed_a", "hashed_c"]
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in code.values())
    assert not {"hashed_a", "hashed_c"} & sys.modules.keys()


def test_any_source_file_of_the_package_counts_with_its_name_and_nothing_else(folder: Path) -> None:
    def digest() -> str:
        return describe_code(config_of("counted.models.build"))["counted"]

    write(folder, counted____init__="", counted__models="x = 1", counted__deep__er__data="y = 1")
    found = [digest()]
    (folder / "counted" / "notes.txt").write_text("z")
    write(folder, beside="z = 1")
    write(folder / "counted" / ".git", hook="z = 1")
    (folder / "counted" / ".#models.py").symlink_to("somebody@somewhere")  # while an editor has it open
    assert digest() == found[0]
    write(folder, counted__deep__er__data="y = 2")
    found.append(digest())
    (folder / "counted" / "models.py").rename(folder / "counted" / "model.py")
    found.append(digest())
    write(folder, counted__more="")
    found.append(digest())
    assert len({*found}) == 4


def test_what_is_installed_has_a_version_and_no_hash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder / "site-packages")
    write(folder / "site-packages", shipped____init__="", shipped_file="")
    assert describe_code(config_of("shipped.build", "shipped_file.Method", "yaml.Loader", "json.loads")) == {}


@pytest.mark.parametrize("target", ["nowhere.build", "", ".build", "__main__.build", "locked.build", "large.build"])
def test_what_cannot_be_read_is_left_out(target: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_code, "LARGEST_NUMBER_OF_ENTRIES", 3)
    write(folder, large__a="", large__b="", large__c__d="", kept="")
    write(folder, locked____init__="")
    (folder / "locked" / "models.py").symlink_to("nothing")
    assert list(describe_code(config_of(target, "kept.Method"))) == ["kept"]
