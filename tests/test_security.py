"""What others can reach, read or have us run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import tiny_config
from test_data import cifar_archive, cifar_config
from test_faults import Run, start  # noqa: F401  # start is a fixture
from torchvision.datasets import CIFAR10

from fr_bench.cli import main
from fr_bench.commands.evaluate import refuse_foreign_code
from fr_bench.data.build import build_dataset, prepare_dataset
from fr_bench.errors import ConfigError
from fr_bench.notebook import load_test_set
from fr_bench.settings.trust import foreign_targets, references

LISTENS = "0A"
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def listening_addresses(pid: int) -> list[str]:
    """Of the process's TCP sockets that listen, in the kernel's notation."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and fields[9] in inodes:
                found.append(fields[1].partition(":")[0])
    return found


def test_nobody_outside_the_machine_can_connect_to_a_run(start: Callable[..., Run]) -> None:  # noqa: F811
    run = start("k=2", "transport=gloo", "wandb.mode=offline")
    for pid in (run.process.pid, run.module(1), run.module(2)):
        assert listening_addresses(pid), "nothing listens: this test looks in the wrong place"
    for pid in run.group():
        assert all(address in LOOPBACK for address in listening_addresses(pid)), pid


@pytest.mark.parametrize("place", ["model", "nested", "through a module of ours"])
def test_a_run_of_somebody_else_is_not_evaluated_by_calling_what_it_names(place: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    marker = tmp_path / "was here"
    target = "os.mkdir" if place != "through a module of ours" else "fr_bench.records.run_directory.os.mkdir"
    call = {"_target_": target, "path": str(marker)}
    config = tiny_config("bp", 2, model={"_target_": "fr_bench.models.mlp.mlp", "name": "mlp"})
    config["model"] |= {"width": call} if place == "nested" else call
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "plan": {"cuts": [1]}}))
    assert main(["eval", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"would call {target}" in error and "--trust" in error and error.count("\n") == 1
    assert not marker.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("root", "${oc.create:{_target_:os.mkdir,path:'MARKER'}}"),
        ("${x}", "${oc.create:{_target_:os.mkdir,path:'MARKER'}}"),
        ("root", ["a", {"b": "of ${oc.env:HOME}"}]),
    ],
)
def test_nor_by_what_it_refers_to(key: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A resolver makes a target of a string."""
    marker = tmp_path / "was here"
    config = tiny_config("bp", 2, model={"_target_": "fr_bench.models.mlp.mlp", "name": "mlp"})
    dataset = {"_target_": "fr_bench.data.cifar.load_cifar10", "name": "cifar10", "download": False}
    value = value.replace("MARKER", str(marker)) if isinstance(value, str) else value
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    content = {**config, "dataset": {**dataset, key: value}, "plan": {"cuts": [1]}}
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    assert main(["eval", str(run)]) == 2
    error = capsys.readouterr().err
    assert "which could stand for anything" in error and "--trust" in error and error.count("\n") == 1
    with pytest.raises(ConfigError, match=r"which could stand for anything; .* pass trust=True"):
        load_test_set(run)
    assert not marker.exists()


def test_several_names_of_somebody_else_are_told_as_several() -> None:
    config = {"model": {"_target_": "mine.A"}, "optimizer": {"_target_": "mine.B"}}
    with pytest.raises(ConfigError, match=r"would call mine.A, mine.B, which are not part of fr-bench"):
        refuse_foreign_code(config, Path("run"))
    with pytest.raises(ConfigError, match=r"would call mine.A, which is not part of fr-bench"):
        refuse_foreign_code({"model": config["model"]}, Path("run"))


def test_what_refers_to_something_is_found_in_names_too() -> None:
    assert list(references({"a": [{"${x}": "$"}, "${y}"], "b": 1})) == ["${x}", "${y}"]


def test_every_target_of_our_own_configs_is_trusted_and_a_users_is_not() -> None:
    config = {"model": {"_target_": "fr_bench.models.mlp.mlp"}, "optimizer": {"_target_": "torch.optim.SGD"}}
    assert foreign_targets(config) == []
    assert foreign_targets({**config, "method": {"optimizer": [{"_target_": "mine.Sgd"}]}}) == ["mine.Sgd"]


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_an_archive_writes_nowhere_but_into_its_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one with the right checksum."""
    cifar_archive(tmp_path / "data", CIFAR10, "labels", monkeypatch)
    archive, outside = tmp_path / "data" / CIFAR10.filename, tmp_path / "outside"
    outside.mkdir()
    with tarfile.open(archive) as good:
        members = [(member.name, good.extractfile(member).read()) for member in good.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(archive, "w:gz") as bad:
        if kind == "link":
            link = tarfile.TarInfo(f"{CIFAR10.base_folder}/out")
            link.type, link.linkname = tarfile.SYMTYPE, str(outside)
            bad.addfile(link)
        evil = {
            "parent": "../outside/evil",
            "absolute": str(outside / "evil"),
            "link": f"{CIFAR10.base_folder}/out/evil",
        }
        for name, content in [(evil[kind], b"evil"), *members]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            bad.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    prepare_dataset(cifar_config(tmp_path / "data", download=False))
    assert len(build_dataset(cifar_config(tmp_path / "data")).train.labels) == 30
    assert not list(outside.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "lacks a file"])
def test_an_archive_that_is_not_whole_is_named(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar_archive(tmp_path / "data", CIFAR10, "labels", monkeypatch)
    archive = tmp_path / "data" / CIFAR10.filename
    if damage == "truncated":
        archive.write_bytes(archive.read_bytes()[:-500])
    else:
        monkeypatch.setattr(CIFAR10, "train_list", [*CIFAR10.train_list, ["data_batch_9", "0" * 32]])
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    with pytest.raises(ConfigError, match=re.escape(f"dataset.root={tmp_path / 'data'}: no complete CIFAR-10 there")):
        prepare_dataset(cifar_config(tmp_path / "data", download=False))
