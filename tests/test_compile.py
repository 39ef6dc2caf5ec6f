"""compile=true: the same numbers, whatever the cuts, and nothing is compiled on the training clock."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import assert_close, assert_same, assert_same_run, run_processes, run_serial, tiny_config, train_here
from torch._dynamo.utils import counters

from fr_bench.bench.contenders import make_contenders
from fr_bench.bench.settings import make_settings
from fr_bench.cli import main
from fr_bench.errors import ConfigError
from fr_bench.planning.compilation import check_compiler
from fr_bench.planning.plan import make_plan
from fr_bench.training.trainer import Trainer

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler, and there is none here"
)
MODEL = {"_target_": "tiny_models.residual", "name": "tiny", "depth": 2, "dropout": 0.3}


def config_of(method: str, k: int, transport: str = "serial", **changes: Any) -> dict[str, Any]:
    """In float64 throughout: what was compiled once is found again in torch's cache on the disk."""
    return tiny_config(method, k, transport, **{"compile": True, "model": MODEL, "precision": "fp64", **changes})


@pytest.fixture(autouse=True)
def nothing_is_compiled() -> None:
    torch._dynamo.reset()


def num_graphs() -> int:
    """How many were compiled in this process."""
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("method", ["fr", "ddg", "dgl"])
def test_the_numbers_are_those_without_and_all_is_compiled_before_the_clock_starts(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with dropout, evaluations and memory accounts in between. BP has no pass that FR has not."""
    eager = run_serial(config_of(method, 3, compile=False), tmp_path / "eager")
    before, compiled_on_the_clock = num_graphs(), []
    train = Trainer._train

    def watched(self: Trainer, start: int, stop: int) -> int:
        at_start = num_graphs()
        end = train(self, start, stop)
        compiled_on_the_clock.append(num_graphs() - at_start)
        return end

    monkeypatch.setattr(Trainer, "_train", watched)
    compiled = run_serial(config_of(method, 3), tmp_path / "compiled")
    assert num_graphs() > before and set(compiled_on_the_clock) == {0}
    assert_close(compiled, eager)


def test_cuts_and_processes_change_no_bit(tmp_path: Path) -> None:
    whole = run_serial(config_of("bp", 1), tmp_path / "whole")
    assert_same(run_serial(config_of("bp", 2), tmp_path / "bp"), whole)
    fr = run_serial(config_of("fr", 2), tmp_path / "fr")
    assert_same(run_processes(config_of("fr", 2, "ipc"), tmp_path / "processes"), fr)


def test_stopped_and_started_again_it_is_the_run_left_alone(tmp_path: Path) -> None:
    """DDG, whose graphs are built again."""
    train_here(config_of("ddg", 2), tmp_path / "alone")
    train_here(config_of("ddg", 2), tmp_path / "run", stop_at=4)
    train_here(config_of("ddg", 2), tmp_path / "run")
    assert_same_run(tmp_path / "alone", tmp_path / "run")


def test_memory_is_measured_and_not_predicted(tmp_path: Path) -> None:
    accounts = run_serial(config_of("fr", 2), tmp_path).of("memory")
    assert {account["module"] for account in accounts} == {1, 2}
    assert all(account["activations"] > 0 and "predicted" not in account for account in accounts)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("1f1b", {}, "the library that method=1f1b brings runs the blocks itself"),
        ("bp", {"checkpoint_activations": True}, "recomputes blocks as they are"),
        ("ddg", {"weights": "current"}, "method.weights=current"),
    ],
)
def test_what_cannot_be_compiled_is_refused(method: str, settings: dict[str, Any], message: str) -> None:
    config = config_of(method, 2, "gloo")
    config["method"] |= settings
    with pytest.raises(ConfigError, match=f"^compile=true: .*{message}"):
        make_plan(config)


def test_without_a_compiler_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"compile=true: .* needs a C\+\+ compiler"):
        make_plan(config_of("fr", 2))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ConfigError, match=r"compile=true: on a GPU .* needs a C compiler"):
        check_compiler(config_of("fr", 2), ["cuda:0", "cuda:0"])
    monkeypatch.setenv("CC", "/opt/cc")
    check_compiler(config_of("fr", 2), ["cuda:0", "cuda:0"])


def test_blocks_that_are_timed_are_not_compiled_and_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "debug=fast", "compile=true", "k=2"]
    assert main([*words, "partition=measured"]) == 2
    assert "partition=measured: times blocks that are not compiled" in capsys.readouterr().err
    assert main([*words, "dry_run=true"]) == 0
    told = capsys.readouterr().out
    assert "compiled ones take less" in told and "is not predicted with compile=true" in told


def test_in_a_bench_methods_are_compiled_and_peers_are_not() -> None:
    def config_of_words(words: list[str]) -> dict[str, Any]:
        values = dict(word.split("=", 1) for word in words)
        config = tiny_config(values["method"], int(values["k"]), "gloo", max_steps=int(values["max_steps"]))
        return config | {"compile": values.get("compile") == "true"}

    settings = make_settings({"methods": ["fr compile=true"], "k": [2]})
    found = {each.label: each.plan.config["compile"] for each in make_contenders(settings, config_of_words)}
    assert found == {"bp K=1": False, "bp K=2": False, "fr compile=true K=2": True}
    with pytest.raises(ConfigError, match="the peers run as they are"):
        make_contenders(make_settings({"methods": ["ddp compile=true"], "k": [2]}), config_of_words)
