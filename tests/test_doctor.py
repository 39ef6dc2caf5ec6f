"""fr-bench doctor tells what there is, and never a secret."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from fr_bench.cli import main
from fr_bench.commands import doctor
from fr_bench.planning.environment import output_of
from fr_bench.planning.measured_costs import cache_folder
from fr_bench.records.wandb_sink import find_credentials

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


def as_json(capsys: pytest.CaptureFixture[str]) -> dict:
    assert doctor.main(["--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_text_has_a_line_for_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    for part in ("versions", "CPU", "memory", "/dev/shm", "GPU", "transport=serial", "W&B", "Slurm", "data set digits"):
        assert part in text


def test_the_json_is_about_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    report = as_json(capsys)
    assert report["cpu"]["usable_cores"] == len(os.sched_getaffinity(0))
    assert report["cpu"]["memory_bytes"] > report["cpu"]["available_bytes"] > 0
    assert set(report["transports"]["problems"]) == {"serial", "gloo", "ipc", "nccl"}
    assert report["transports"]["problems"]["serial"] is None
    assert report["transports"]["problems"][report["transports"]["auto"]] is None


@pytest.mark.skipif(bool(doctor.gpus()), reason="has a GPU")
def test_a_transport_that_cannot_work_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nccl connects GPUs" in as_json(capsys)["transports"]["problems"]["nccl"]


def test_a_key_is_found_but_never_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert as_json(capsys)["wandb"]["key_from"] is None
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for arguments in ([], ["--json"]):
        doctor.main(arguments)
        text = capsys.readouterr().out
        assert "WANDB_API_KEY" in text and KEY not in text


def test_a_slurm_allocation_is_recognised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("sinfo", "squeue"):
        (tmp_path / name).write_text("#!/bin/sh\necho gpu; echo cpu; echo gpu\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    slurm = as_json(capsys)["slurm"]
    assert slurm["job"] == "17" and {"sinfo", "squeue"} <= set(slurm["commands"])
    assert slurm["partitions"] == ["cpu", "gpu"]
    doctor.main([])
    assert "partitions cpu, gpu; inside job 17; hydra-submitit-launcher" in capsys.readouterr().out
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexit 1\n")
    doctor.main([])
    assert "does not answer" in capsys.readouterr().out


def test_a_mistake_in_the_arguments_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--jsn"]) == 2
    assert "--jsn" in capsys.readouterr().err


def test_every_method_declares_what_it_keeps_and_learns_from(capsys: pytest.CaptureFixture[str]) -> None:
    methods = as_json(capsys)["methods"]
    assert {name: (m["keeps"], m["gradient"], m["weights"], m["extra_forward"]) for name, m in methods.items()} == {
        "bp": ("graph", "true", "current", False),
        "dni": ("graph", "synthetic", "current", False),
        "cdni": ("graph", "synthetic", "current", False),
        "ddg": ("graphs", "delayed", "stale", False),
        "fr": ("inputs", "delayed", "current", True),
        "dgl": ("graph", "local", "current", False),
        "gpipe": ("all micro-batches", "true", "current", False),
        "1f1b": ("few micro-batches", "true", "current", False),
        "zero_bubble": ("parts", "true", "current", False),
        "ddp": ("share", "true", "current", False),
    }
    doctor.main([])
    text = capsys.readouterr().out
    assert (
        "keeps inputs of K-k+1 batches; gradient delayed, of batch t-(K-k), at current weights, after a second" in text
    )


def test_a_user_without_a_home_has_a_cache_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that was given a number for its user."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME", "NETRC", "WANDB_API_KEY", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert cache_folder().is_relative_to(tempfile.gettempdir())
    assert find_credentials() is None


def test_what_a_program_says_need_not_be_text() -> None:
    assert output_of("printf", r"a\377") == "a\ufffd"


def test_gpus_and_their_links_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: {a, b} != {0, 1})
    assert doctor.links() == [[0, 2], [1, 2], [2, 0], [2, 1]]
    gpu = {"name": "G", "memory_bytes": 2**30, "capability": "9.0"}
    rows = doctor._gpu_rows({"gpus": [gpu] * 3, "links": doctor.links(), "driver": "555.1"})
    assert [name for name, _ in rows] == ["GPU 0", "GPU 1", "GPU 2", "GPU links", "driver"]
    assert rows[3][1] == "0 to 2, 1 to 2, 2 to 0, 2 to 1" and rows[4][1] == "555.1"
    assert "main memory" in dict(doctor._gpu_rows({"gpus": [gpu] * 2, "links": [], "driver": None}))["GPU links"]
    assert doctor._gpu_rows({"gpus": [], "driver": None}) == [("GPUs", "none that torch sees")]
    assert doctor._gpu_rows({"gpus": [], "driver": "555.1"})[0][1].endswith("although there is a driver (555.1)")


def test_the_doctor_says_what_wandb_mode_demands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert doctor.wandb_state()["mode_from_environment"] == "offline"
    monkeypatch.setenv("WANDB_MODE", "ofline")
    assert "WANDB_MODE=ofline: must be one of" in doctor.wandb_state()["mode_from_environment"]
    monkeypatch.delenv("WANDB_MODE")
    assert doctor.wandb_state()["mode_from_environment"] is None


def test_every_figure_of_the_text_is_of_its_line() -> None:
    report = {
        "versions": {"torch": "2.0", "wandb": None},
        "cpu": {"model": "C", "usable_cores": 3, "memory_bytes": 4 * 2**30, "available_bytes": 2**30},
        "shared_memory": {"size_bytes": 2**30, "free_bytes": 2**20},
        "gpus": [],
        "driver": None,
        "transports": {
            "devices": ["cpu", "cpu"],
            "problems": {"serial": None, "nccl": "no GPU"},
            "auto": "serial",
            "reason": "why",
        },
        "methods": {},
        "datasets": {"a": {"found": True, "detail": "/there"}, "b": {"found": False, "detail": "not there"}},
        "wandb": {"version": None, "mode_from_environment": None, "key_from": None},
        "slurm": {"commands": [], "partitions": None, "launcher": None, "job": None},
    }
    lines = [re.split(" {2,}", line) for line in doctor.as_text(report).splitlines()]
    assert lines == [
        ["versions", "torch 2.0, wandb missing"],
        ["CPU", "C, 3 cores"],
        ["memory", "4.00 GiB, 1.00 GiB available"],
        ["/dev/shm", "1.00 GiB, 1 MiB free (for transport=ipc)"],
        ["GPUs", "none that torch sees"],
        ["transport=auto", "serial: why (k=2, cpu)"],
        ["transport=serial", "works"],
        ["transport=nccl", "no: no GPU"],
        ["data set a", "found: /there"],
        ["data set b", "not there"],
        ["W&B", "not installed: use wandb.mode=disabled"],
        ["Slurm", "not on the PATH"],
    ]
    nothing = report | {"cpu": {"model": "C", "usable_cores": 3}, "shared_memory": None}
    assert re.findall("(?m)^(?:memory|/dev/shm) +(.*)$", doctor.as_text(nothing)) == [
        "unknown",
        "not there: ipc does not work on the CPU",
    ]


def test_memory_is_in_bytes() -> None:
    told = re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert told is not None and doctor.memory()["memory_bytes"] == 1024 * int(told[1])
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(bytes(2**20))
        file.flush()
        shared = doctor.shared_memory()
        assert shared is not None and shared["size_bytes"] == shutil.disk_usage("/dev/shm").total
        assert 0 <= shared["free_bytes"] <= shared["size_bytes"] - 2**20


@pytest.mark.skipif(bool(doctor.gpus()), reason="has a GPU")
def test_transports_are_those_of_several_modules() -> None:
    assert doctor.transports()["devices"] == ["cpu", "cpu"]
