"""A run that is stopped or cut off and goes on equals the run that was left alone, bit for bit; and when it may."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from harness import as_owner_alone, assert_same_run, call, read_records, read_weights, tiny_config, train_here
from safetensors.torch import load_file
from tiny_models import Counting, partly_frozen
from torch import nn

from fr_bench.checkpoints import snapshot
from fr_bench.checkpoints.files import (
    Checkpoint,
    folder_of,
    read_manifest,
    state_file,
    whole_folders,
    write_manifest,
)
from fr_bench.commands.evaluate import evaluate_weights, find_weights, read_config
from fr_bench.errors import ConfigError, RunFailed, TakenOver
from fr_bench.launching import checkpoint_book, resume
from fr_bench.launching.differences import MOVABLE, differences, in_short
from fr_bench.launching.earlier_records import bring_records, resumable_records
from fr_bench.launching.launch import Run, check_plan, run_training
from fr_bench.launching.resume import check_resume, decide
from fr_bench.measuring.stopwatch import Stopwatch
from fr_bench.methods.fr import FeaturesReplay
from fr_bench.modules.module import Module
from fr_bench.modules.network import Network
from fr_bench.modules.optimizer_state import load_state
from fr_bench.modules.passes import Passes
from fr_bench.notebook import load_model
from fr_bench.planning.plan import make_plan
from fr_bench.records import run_directory
from fr_bench.records.collector import Collector
from fr_bench.records.run_directory import RunDirectory
from fr_bench.records.run_files import read_json
from fr_bench.records.runs import find_runs
from fr_bench.records.sinks import SinkGroup
from fr_bench.training.diagnostics import SufficientDirection
from fr_bench.training.memory import Peak, PeakMemory
from fr_bench.training.trainer import Player, Trainer
from fr_bench.workers.resumption import Resumption
from fr_bench.workers.sources import Sources

DROPOUT = {"_target_": "tiny_models.residual", "name": "tiny", "dropout": 0.5}
METHODS = ["bp", "fr", "ddg", "dni", "cdni", "dgl"]
CHANGED = "The code of own_model has changed since"


def stopped(config: dict[str, Any], run: Path, step: int) -> Path:
    """The run after it was asked to stop, which it did after ``step`` iterations."""
    train_here(config, run, stop_at=step - 1)
    (checkpoint,) = whole_folders(run / "checkpoints")[:1]
    assert read_manifest(checkpoint)["step"] == step
    assert max(record["step"] for record in read_records(run)) == step
    assert not (run / "checkpoints" / "final").exists()
    return run


_once: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def folder_of_runs_made_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    _once[:] = [tmp_path_factory.mktemp("once")]


def made_once(config: dict[str, Any], *, stopped_after: int | None = None, cut_off_at: int | None = None) -> Path:
    """The run, for all tests of this process that only read it or take over from it. Nothing may be patched before."""
    key = json.dumps([config, stopped_after, cut_off_at], sort_keys=True)
    run = _once[0] / hashlib.sha256(key.encode()).hexdigest()
    if not run.exists():
        if stopped_after is None:
            train_here(config, run, cut_off_at=cut_off_at)
        else:
            stopped(config, run, stopped_after)
    return run


def copied(run: Path, to: Path) -> Path:
    """For those that go on with it, or change it."""
    return shutil.copytree(run, to, dirs_exist_ok=True)


def assert_goes_on_exactly(config: dict[str, Any], folder: Path, steps: list[int]) -> None:
    """One run, stopped after each of ``steps``. An epoch of these runs has 5 steps, a run 10."""
    train_here(config, folder / "alone")
    for step in steps:
        stopped(config, folder / "run", step)
    train_here(config, folder / "run")
    assert_same_run(folder / "alone", folder / "run")


@pytest.mark.parametrize(("method", "k"), [("bp", 1), *((method, 3) for method in METHODS)])
def test_stopped_and_cut_off_again_and_again_it_is_the_run_left_alone(method: str, k: int, tmp_path: Path) -> None:
    """While the pipe fills, at the end of an epoch, in the middle of one. One that is cut off goes back to its last
    checkpoint, behind which it went on; what it had logged since is not there twice."""
    config, run = tiny_config(method, k, model=DROPOUT, checkpoint={"every": 100}), tmp_path / "run"
    train_here(config, tmp_path / "alone")

    def cut_off(step: int, checkpoint_at: int) -> None:
        train_here(config | {"checkpoint": config["checkpoint"] | {"every": checkpoint_at}}, run, cut_off_at=step)
        assert read_manifest(whole_folders(run / "checkpoints")[0])["step"] == checkpoint_at

    train_here(config, run, cut_off_at=1)  # which has no checkpoint yet
    cut_off(3, checkpoint_at=2)
    stopped(config, run, 5)
    cut_off(9, checkpoint_at=8)
    train_here(config, run)
    assert_same_run(tmp_path / "alone", run)
    # A finished run keeps the checkpoint at its end, so that it can be made longer.
    assert [folder.name for folder in whole_folders(run / "checkpoints")] == ["step_00000010"]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fr", {"warmup": "zero", "bn_stats": "both"}),
        ("bp", {"checkpoint_activations": True}),
        ("dni", {"optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3}}),
    ],
)
def test_with_every_setting_of_a_method_too(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(method, 3)
    config["method"] |= settings
    assert_goes_on_exactly(config, tmp_path, [2, 5, 8])


@pytest.mark.parametrize("method", ["fr", "ddg"])
def test_without_carried_history_too(method: str, tmp_path: Path) -> None:
    """An epoch's first step discards what a checkpoint behind the last one has in flight."""
    config = tiny_config(method, 3, epochs=3)
    config["method"]["carry_history"] = False
    assert_goes_on_exactly(config, tmp_path, [2, 5, 7, 11])


@pytest.mark.parametrize("what", ["skipped", "shared"])
def test_graphs_are_rebuilt_from_the_buffers_that_their_plays_began_with(what: str, tmp_path: Path) -> None:
    """Spectral norm divides by what the vectors in its buffers come to, and moves them in every pass that does not skip
    its block. Of a buffer that two layers have the second sees what the first one made of it."""
    model = {"_target_": "tiny_models.moving", "name": "moving", "what": what}
    assert_goes_on_exactly(tiny_config("ddg", 3, model=model), tmp_path, [4])


def test_epochs_too_short_for_module_1_to_learn_leave_no_gradient_in_flight(tmp_path: Path) -> None:
    """Two steps each: what is on its way at the end of one is thrown away at the start of the next."""
    config = tiny_config("fr", 3, batch_size=22, epochs=4)
    config["method"]["carry_history"] = False
    assert_goes_on_exactly(config, tmp_path, [5])


def test_what_draws_from_the_default_generators_goes_on_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user's method may, between the start of an iteration and its first pass, whose blocks have streams of their
    own."""
    original = FeaturesReplay.play_lower
    drawn: list[float] = []

    def play_lower(method: FeaturesReplay, x: torch.Tensor, t: int) -> torch.Tensor:
        drawn.append(float(torch.rand(())))
        return original(method, x * drawn[-1], t)

    monkeypatch.setattr(FeaturesReplay, "play_lower", play_lower)
    config = tiny_config("fr", 2)
    train_here(config, tmp_path / "alone")
    alone, drawn = drawn, []
    train_here(config, tmp_path / "run", stop_at=5)
    assert len(drawn) == 6
    torch.manual_seed(77)
    train_here(config, tmp_path / "run")
    assert drawn == alone
    assert_same_run(tmp_path / "alone", tmp_path / "run")


def test_groups_of_parameters_go_on_with_their_own_state_and_rates(tmp_path: Path) -> None:
    optimizer = {"_target_": "tiny_models.grouped", "name": "grouped", "lr": 0.02, "momentum": 0.9}
    assert_goes_on_exactly(tiny_config("fr", 2, optimizer=optimizer), tmp_path, [3, 7])


def test_what_an_optimizer_keeps_by_group_goes_on(tmp_path: Path) -> None:
    optimizer = {"_target_": "tiny_models.Counting", "name": "counting", "lr": 0.02}
    assert_goes_on_exactly(tiny_config("fr", 2, optimizer=optimizer), tmp_path, [4])


@pytest.mark.parametrize("method", ["dgl", "dni"])
def test_what_an_optimizer_keeps_in_another_type_than_the_weights_goes_on_in_it(method: str, tmp_path: Path) -> None:
    """NAdam's product of momenta is float32; DGL and DNI have an optimizer of their own beside the module's."""
    optimizer = {"_target_": "torch.optim.NAdam", "name": "nadam", "lr": 0.01}
    config = tiny_config(method, 2, optimizer=optimizer, precision="fp64")
    if method == "dni":
        config["method"]["optimizer"] = {"_target_": "torch.optim.NAdam", "_partial_": True, "lr": 0.01}
    assert_goes_on_exactly(config, tmp_path, [4])


def test_what_an_optimizer_keeps_by_group_goes_back_to_the_device_that_it_was_on() -> None:
    """Checkpoints are on the CPU; `meta` stands for a GPU."""
    network = nn.Linear(2, 2, device="meta")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    (group,) = optimizer.param_groups
    group["made"] = torch.zeros((), device="meta")
    saved = {"made": torch.ones(()), "made later": torch.ones(2), "counter": torch.ones(()), "number": 3}
    snapshot.load_optimizer(cast(Module, SimpleNamespace(network=network, optimizer=optimizer)), {}, [saved])
    (group,) = optimizer.param_groups
    devices = {key: value.device.type for key, value in group.items() if isinstance(value, torch.Tensor)}
    assert devices == {"made": "meta", "made later": "meta", "counter": "cpu"}
    assert (group["number"], group["lr"]) == (3, 0.1)


def test_so_it_does_of_what_a_method_trains_beside_a_module() -> None:
    """DGL's and DNI's optimizers; `meta` stands for a GPU."""
    optimizer = Counting([nn.Parameter(torch.ones(2, device="meta"))], lr=0.1)
    load_state(optimizer, Counting([nn.Parameter(torch.ones(2))], lr=0.1).state_dict())
    assert optimizer.param_groups[0]["sum"].is_meta


def test_what_nadam_reads_in_every_step_stays_on_the_host() -> None:
    """On a GPU, for which `meta` stands, every step would wait for it."""
    settings = {"lr": 0.01, "foreach": False}
    saved = torch.optim.NAdam([weight := nn.Parameter(torch.ones(2))], **settings)
    weight.grad = torch.ones(2)
    saved.step()
    optimizer = torch.optim.NAdam([weight := nn.Parameter(torch.ones(2, device="meta"))], **settings)
    load_state(optimizer, saved.state_dict())
    devices = {key: value.device.type for key, value in optimizer.state[weight].items()}
    assert devices == {"step": "cpu", "mu_product": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}
    weight.grad = torch.ones(2, device="meta")
    optimizer.step()  # which reads no number on the GPU: meta has none


def test_copies_of_weights_in_a_checkpoint_go_to_the_device_of_the_weights() -> None:
    """Those of DDG's graphs: scalars come on the host, and `meta` stands for a GPU."""
    with torch.device("meta"):
        network = Network(partly_frozen((3, 8, 8), 4)[:2], seed=0)
        x = torch.empty(2, 3, 8, 8)
    saved = {name: torch.ones((), dtype=p.dtype) if p.dim() == 0 else p for name, p in network.named_parameters()}
    live = Passes(network, "fp32", is_bottom=True, is_top=False).run_on_copies(x, 0, 0, saved, False)
    live.h.sum().backward()
    copies = live.copies or {}
    assert "block1.scale" in copies
    assert all(copy.device.type == "meta" for copy in copies.values())
    assert all((copies[name].grad is not None) is p.requires_grad for name, p in network.named_parameters())


def test_what_is_summed_between_two_records_goes_on(tmp_path: Path) -> None:
    """Losses between `train` records, what a method measures, windows of a diagnostic, an optimizer's own state."""
    adam = {"_target_": "torch.optim.Adam", "name": "adam", "lr": 1e-3}
    sums = {"optimizer": adam, "diagnostics": {"sigma": {"every": 5, "window": 4}}}
    config = tiny_config("dgl", 3, log_every=3, eval_every=2, **sums)
    train_here(config, tmp_path / "alone")
    for step in (4, 7):
        train_here(config, tmp_path / "run", stop_at=step - 1)
        assert read_manifest(folder_of(tmp_path / "run" / "checkpoints", step))["step"] == step
    train_here(config, tmp_path / "run")
    assert_same_run(tmp_path / "alone", tmp_path / "run")
    assert [record["step"] for record in read_records(tmp_path / "run") if record["kind"] == "sigma"][::4] == [4, 9]


def test_a_run_that_ends_before_its_last_evaluation_only_evaluates(tmp_path: Path) -> None:
    config = tiny_config("fr", 2, checkpoint={"every": 100})
    alone = made_once(config)
    copied(alone, tmp_path / "run")
    (tmp_path / "run" / "status.json").write_text(
        (tmp_path / "run" / "status.json").read_text().replace("finished", "failed")
    )
    train_here(config, tmp_path / "run")
    assert_same_run(alone, tmp_path / "run")


def test_a_run_of_an_older_version_goes_on_though_its_config_lacks_settings(tmp_path: Path) -> None:
    config = tiny_config("fr", 2)
    alone, run = made_once(config), copied(made_once(config, stopped_after=5), tmp_path / "run")
    lines = (run / "config.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("replicas:", "compile:", "cuda_graphs:", "streams:"))]
    assert len(kept) == len(lines) - 4
    (run / "config.yaml").write_text("\n".join(kept) + "\n")
    with pytest.raises(ConfigError, match=r"cuda_graphs is false there and true here"):
        decide(config | {"cuda_graphs": True}, RunDirectory(run), print)
    train_here(config, run)
    assert_same_run(alone, run)


def test_what_is_rebuilt_is_rebuilt_on_the_stream_of_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a graph's backward runs on the stream of its forward: all on one, modules would free memory there that
    others still read."""
    streams: list[int] = []
    rebuilt: list[tuple[int, list[int]]] = []

    @contextmanager
    def on_stream(self: Player) -> Iterator[None]:
        streams.append(self.module.k)
        yield
        streams.pop()

    def restore(module: Module, *rest: Any) -> None:
        rebuilt.append((module.k, list(streams)))
        put_back(module, *rest)

    config, put_back = tiny_config("ddg", 3), snapshot.restore
    run = stopped(config, tmp_path / "run", 4)
    monkeypatch.setattr(Player, "on_stream", on_stream)
    monkeypatch.setattr(snapshot, "restore", restore)
    train_here(config, run, cut_off_at=5)
    assert rebuilt == [(k, [k]) for k in (1, 2, 3)]


def test_the_peak_before_it_stopped_is_that_of_the_evaluation_it_goes_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU's allocator tells it, by stretch of training; stopped where an evaluation is due."""

    def take(self: PeakMemory) -> Peak:
        found, self._peak = Peak(self._peak, 0), 0
        return found

    monkeypatch.setattr(PeakMemory, "end", lambda self: self.load_state_dict({"peak": 1000, "reserved": 0}))
    monkeypatch.setattr(PeakMemory, "take", take)
    config = tiny_config("fr", 2)
    train_here(config, stopped(config, tmp_path / "run", 5))
    records = [record for record in read_records(tmp_path / "run") if record["kind"] == "memory"]
    assert [record["step"] for record in records] == [5, 5, 10, 10]
    assert all(record["peak"] == 1000 for record in records)


@pytest.mark.parametrize(
    ("method", "changes"), [("ddg", {"weights": "current"}), ("fr", {"_target_": "tiny_methods.Patient"})]
)
def test_what_cannot_be_saved_resumes_with_an_empty_pipe_and_that_is_said(
    method: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """DDG's graphs at current weights; gradients that are in flight for longer than an iteration."""
    config = tiny_config(method, 3)
    config["method"] |= changes
    said = train_here(config, stopped(config, tmp_path, 5))
    assert any("resumes with an empty pipe" in line for line in said)
    assert [record["step"] for record in read_records(tmp_path) if record["kind"] == "train"] == list(range(1, 11))
    assert read_weights(tmp_path)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 4), (3, 1)])
def test_with_another_k_weights_and_optimizer_go_on_and_the_method_begins_anew(
    before: int, after: int, tmp_path: Path
) -> None:
    """BP keeps nothing from one iteration to the next, so there it is exact even so."""
    config = tiny_config("bp", before)
    alone, source = made_once(config), made_once(config, stopped_after=5)
    said = train_here(tiny_config("bp", after, resume=str(source)), tmp_path / "other")
    assert any(f"That run had k={before}" in line and "anew" in line for line in said)
    for name, value in read_weights(alone).items():
        assert torch.equal(value, read_weights(tmp_path / "other")[name]), name
    modules = {record["module"] for record in read_records(tmp_path / "other") if "module" in record}
    assert modules == set(range(1, after + 1))
    for method in ("fr", "dni")[: 1 if after == 1 else 2]:  # with one module either is BP
        source = made_once(tiny_config(method, before), stopped_after=5)
        train_here(tiny_config(method, after, resume=str(source)), tmp_path / f"{method}-other")
        steps = [record["step"] for record in read_records(tmp_path / f"{method}-other") if record["kind"] == "train"]
        assert steps == list(range(1, 11))


@pytest.mark.parametrize(("before", "after"), [("bp", "fr"), ("fr", "bp"), ("dni", "ddg"), ("fr", "dgl")])
def test_with_another_method_weights_and_optimizer_go_on_and_it_begins_anew(
    before: str, after: str, tmp_path: Path
) -> None:
    source = made_once(tiny_config(before, 3), stopped_after=5)
    said = train_here(tiny_config(after, 3, resume=str(source)), tmp_path / "other")
    told = f"That run had method={before}, k=3: weights and optimizer are taken, the method begins anew with method="
    assert any(line.startswith(f"{told}{after}, k=3") for line in said), said
    records = read_records(tmp_path / "other")
    assert [record["step"] for record in records if record["kind"] == "train"] == list(range(1, 11))
    assert read_json(tmp_path / "other" / "origin.json")["method"] == before
    if {before, after} != {"bp", "fr"}:
        return
    # The same command goes on there, and BP, which keeps nothing, does not depend on K.
    config = tiny_config(after, 3, resume=str(source))
    train_here(config, stopped(config, tmp_path / "in two pieces", 8))
    assert_same_run(tmp_path / "other", tmp_path / "in two pieces")
    if after == "bp":
        train_here(tiny_config("bp", 1, resume=str(source)), tmp_path / "k1")
        for name, value in read_weights(tmp_path / "k1").items():
            assert torch.equal(value, read_weights(tmp_path / "other")[name]), name


def test_a_method_with_other_settings_begins_anew_too(tmp_path: Path) -> None:
    source = made_once(tiny_config("fr", 3), stopped_after=5)
    config = tiny_config("fr", 3, resume=str(source))
    config["method"]["bn_stats"] = "both"
    said = train_here(config, tmp_path / "other", cut_off_at=6)
    assert any(line.startswith("That run had method=fr with other settings, k=3: weights and") for line in said), said


def test_a_method_begins_with_the_weights_that_another_one_left(tmp_path: Path) -> None:
    source = made_once(tiny_config("bp", 2), stopped_after=5)
    train_here(tiny_config("fr", 2, resume=str(source)), tmp_path / "other", cut_off_at=6)
    first = next(r for r in read_records(tmp_path / "other") if r["kind"] == "train" and r["step"] == 6)
    model = load_model(source, trust=True).train()
    plan = make_plan(tiny_config("fr", 2))
    sources = Sources(plan, [1, 2])
    assert sources.images is not None and sources.labels is not None
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(sources.images.batch(5)), sources.labels.batch(5))
    assert first["loss"] == pytest.approx(float(loss))


def sigma_of(run: Path) -> dict[int, list[float]]:
    """By step: of the whole network, then of every module."""
    found: dict[int, list[float]] = {}
    for record in read_records(run):
        if record["kind"] == "sigma":
            found.setdefault(record["step"], []).append(record["sigma"])
    return found


@pytest.mark.parametrize("other", [{"every": 0}, {"every": 4, "window": 2}])
def test_a_run_that_goes_on_elsewhere_may_be_measured_from_there_on(other: dict[str, int], tmp_path: Path) -> None:
    """With K = 3 windows begin in iterations 2, 5 and 8; the one of 2 and 3 cannot be whole any more."""
    measured = {"diagnostics": {"sigma": {"every": 3, "window": 2}}}
    left_alone = made_once(tiny_config("fr", 3, **measured))
    source = stopped(tiny_config("fr", 3, diagnostics={"sigma": {"window": 2} | other}), tmp_path / "source", 3)
    train_here(tiny_config("fr", 3, resume=str(source), **measured), tmp_path / "run")
    alone = sigma_of(left_alone)
    assert list(alone) == [4, 7, 10] and len(alone[4]) == 4
    assert sigma_of(tmp_path / "run") == {step: alone[step] for step in (7, 10)}
    for name, value in read_weights(left_alone).items():
        assert torch.equal(value, read_weights(tmp_path / "run")[name]), name


def test_a_window_of_which_a_checkpoint_does_not_tell_where_it_lies_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of earlier versions, which had the sums alone."""
    config = tiny_config("fr", 3, diagnostics={"sigma": {"every": 3, "window": 2}})
    alone = sigma_of(made_once(config))
    with monkeypatch.context() as earlier:
        earlier.setattr(SufficientDirection, "state_dict", lambda self, index: self.sums[index].state_dict())
        run = stopped(config, tmp_path / "run", 3)
    train_here(config, run)
    assert list(alone) == [4, 7, 10] and sigma_of(run) == {step: alone[step] for step in (7, 10)}


def test_with_another_k_nothing_is_measured_while_the_pipe_fills(tmp_path: Path) -> None:
    """In step 6, the first with K = 3, module 1 has nothing to learn from, nor has it in step 7."""
    measured = {"diagnostics": {"sigma": {"every": 3, "window": 2}}}
    source = stopped(tiny_config("fr", 2, **measured), tmp_path / "source", 5)
    config = tiny_config("fr", 3, resume=str(source), epochs=3, **measured)
    train_here(config, tmp_path / "alone")
    assert list(sigma_of(tmp_path / "source")) == [3] and list(sigma_of(tmp_path / "alone")) == [10, 13]
    for step in (7, 9):  # and again while it fills, and in the middle of a window
        train_here(config, tmp_path / "run", stop_at=step - 1)
    train_here(config, tmp_path / "run")
    assert_same_run(tmp_path / "alone", tmp_path / "run")


@pytest.mark.parametrize(("after", "steps"), [(3, 2), (2, 5)])
def test_the_first_times_after_another_k_are_of_the_steps_since(
    after: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after step 3 of an epoch of 5; with the same k both the times and the steps of before go on."""
    source = made_once(tiny_config("bp", 2), stopped_after=3)
    walls = []

    def add(self: Collector, event: dict[str, Any]) -> list[dict[str, Any]]:
        walls.extend([event["wall_s"]] if event["event"] == "time" else [])
        return collect(self, event)

    def load(self: Trainer, index: int, state: dict[str, Any]) -> None:
        took_long = {"trained_ns": 10**12} if state["trained_ns"] else {}
        load_state(self, index, state | took_long)

    collect, load_state = Collector.add, Trainer.load_state_dict
    monkeypatch.setattr(Collector, "add", add)
    monkeypatch.setattr(Trainer, "load_state_dict", load)
    monkeypatch.setattr(Stopwatch, "take", lambda _: dict.fromkeys(("play_s", "learn_s", "wait_s", "send_s"), 10.0))
    train_here(tiny_config("bp", after, resume=str(source)), tmp_path / "other", cut_off_at=6)
    first = next(record for record in read_records(tmp_path / "other") if record["kind"] == "time")
    assert (first["step"], first["play_s"], first["learn_s"]) == (5, 10 / steps, 10 / steps)
    assert (walls[0] > 100) == (steps == 5)


def test_the_times_since_the_last_record_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("fr", 2)
    folder = folder_of(copied(made_once(config, stopped_after=3), tmp_path) / "checkpoints", 3)
    taken = [torch.load(folder / state_file(k), weights_only=True)["stopwatch"] for k in (1, 2)]
    restored: list[dict[str, int]] = []
    monkeypatch.setattr(Stopwatch, "load_state_dict", lambda _, state: restored.append(state))
    train_here(config, tmp_path, cut_off_at=4)
    assert restored == taken and all(state["play"] > 0 for state in taken)


def test_where_it_took_over_is_kept_when_it_goes_on_itself(tmp_path: Path) -> None:
    config = tiny_config("fr", 2)
    source = made_once(config, stopped_after=5)
    assert not (source / "origin.json").exists()
    moved = tiny_config("fr", 3, resume=str(source))
    stopped(moved, tmp_path / "run", 8)
    origin = json.loads((tmp_path / "run" / "origin.json").read_text())
    assert {key: origin[key] for key in ("run", "step", "epoch", "k", "replicas", "num_steps", "is_exact")} == {
        "run": str(source), "step": 5, "epoch": 1.0, "k": 2, "replicas": 1, "num_steps": 10, "is_exact": False,
    }  # fmt: skip
    train_here(moved | {"resume": "auto"}, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "origin.json").read_text()) == origin
    train_here(tiny_config("fr", 3, epochs=3, resume=str(tmp_path / "run")), tmp_path / "third", cut_off_at=11)
    third = json.loads((tmp_path / "third" / "origin.json").read_text())
    assert third["origin"] == origin and third["num_steps"] == 10  # of the run before, not its own 15


def test_a_run_that_begins_anew_after_all_has_no_origin(tmp_path: Path) -> None:
    """It took over, but has no checkpoint of its own to go on from."""
    source = made_once(tiny_config("fr", 2), stopped_after=5)
    train_here(tiny_config("fr", 2, resume=str(source)), tmp_path / "run", cut_off_at=6)
    assert (tmp_path / "run" / "origin.json").exists()
    assert any("it starts anew" in line for line in train_here(tiny_config("fr", 2), tmp_path / "run"))
    assert not (tmp_path / "run" / "origin.json").exists()


@pytest.mark.parametrize("k", [2, 3])
def test_a_run_is_in_one_piece_if_all_its_pieces_are(k: int, tmp_path: Path) -> None:
    """The third goes on exactly from the second; the second did so from the first if that had as many modules."""
    first = made_once(tiny_config("fr", 2), stopped_after=5)
    second = stopped(tiny_config("fr", k, resume=str(first)), tmp_path / "second", 7)
    third = stopped(tiny_config("fr", k, resume=str(second)), tmp_path / "third", 9)
    origins = [json.loads((run / "origin.json").read_text()) for run in (second, third)]
    assert [origin["is_exact"] for origin in origins] == [k == 2, True]
    assert [origin["in_one_piece"] for origin in origins] == [k == 2, k == 2]


def test_a_run_that_goes_on_elsewhere_says_what_of_the_machine_differs(tmp_path: Path) -> None:
    """Where the settings leave it to the machine."""
    config = tiny_config("fr", 2, "serial")
    run = copied(made_once(config, stopped_after=5), tmp_path / "run")
    described = yaml.safe_load((run / "config.yaml").read_text())
    there = {"devices": ["cuda:0", "cuda:1"], "transport": "nccl", "threads": 4}
    (run / "config.yaml").write_text(yaml.safe_dump(described | {"plan": described["plan"] | there}))
    _, note = decide(config, RunDirectory(run), print).notes
    assert note == (
        "The machine differs, and with it the last bits may: devices ['cuda:0', 'cuda:1'] is now ['cpu', 'cpu']; "
        "transport nccl is now serial; threads 4 is now 1."
    )


def test_with_the_same_modules_the_cuts_go_on_whatever_they_would_be_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine where blocks take other times."""
    source = made_once(tiny_config("fr", 3), stopped_after=5)
    cuts = read_manifest(whole_folders(source / "checkpoints")[0])["cuts"]
    today = {"partition": [1, 2]}
    monkeypatch.setattr(
        resume, "make_plan", lambda config: make_plan(config | (today if config["partition"] == "equal" else {}))
    )
    start = decide(tiny_config("fr", 3, resume=str(source)), RunDirectory(tmp_path), print)
    assert start.plan is not None and start.plan.cuts == cuts != today["partition"]
    other = decide(tiny_config("ddg", 3, resume=str(source)), RunDirectory(tmp_path), print)
    assert other.plan is not None and other.plan.cuts == today["partition"]


def test_in_another_directory_with_the_same_k_it_is_exact(tmp_path: Path) -> None:
    config = tiny_config("fr", 3)
    alone = made_once(config)
    source = stopped(config, tmp_path / "source", 7)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    again = config | {"resume": str(source), "log_every": 1}
    # Cut off once more before it has a checkpoint of its own: the same command begins where it began.
    train_here(again, tmp_path / "run", cut_off_at=9)
    train_here(again, tmp_path / "run")
    assert_same_run(alone, tmp_path / "run")
    assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}


def test_a_finished_run_is_made_longer_in_another_directory(tmp_path: Path) -> None:
    schedule = {"_target_": "fr_bench.schedules.Constant", "name": "constant"}
    short = tiny_config("fr", 3, schedule=schedule, epochs=1, checkpoint={"every": 100})
    train_here(short, tmp_path / "short")
    long = tiny_config("fr", 3, schedule=schedule, epochs=2)
    train_here(long, tmp_path / "alone")
    train_here(long | {"resume": str(tmp_path / "short")}, tmp_path / "longer")
    assert_same_run(tmp_path / "alone", tmp_path / "longer")


SCHEDULES: dict[str, dict[str, Any]] = {
    "two steps": {"_target_": "fr_bench.schedules.MultiStep", "milestones": [0.5, 0.75], "gamma": 0.1},
    "a step at the end": {"_target_": "fr_bench.schedules.MultiStep", "milestones": [1], "gamma": 0.1},
    "cosine": {"_target_": "fr_bench.schedules.Cosine"},
    "constant": {"_target_": "fr_bench.schedules.Constant"},
}


def made_longer(schedule: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run of 2 epochs, which is there, and its config with 4, which goes on from it."""
    config = tiny_config("fr", 2, schedule=SCHEDULES[schedule] | {"name": schedule}, checkpoint={"every": 100})
    return config, config | {"epochs": 4, "resume": str(made_once(config))}


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("two steps", ("0.1", "0.01")), ("cosine", ("0.5", "0")), ("a step at the end", None), ("constant", None)],
)
def test_a_longer_run_says_where_its_schedule_goes_on_with_another_factor(
    schedule: str, factors: tuple[str, str] | None, tmp_path: Path
) -> None:
    _, longer = made_longer(schedule)
    first, *others = decide(longer, RunDirectory(tmp_path / "longer"), print).notes
    assert first.startswith("Goes on after step 10 of 20")
    if factors is None:
        assert not others
        return
    (note,) = others
    now, before = factors
    assert "2 there and 4 here" in note and "in the next step, 11" in note
    assert f"learning rate is {now}, where that run's would be {before}." in note
    rates = {record["step"]: record["lr"] for record in read_records(made_once(longer)) if record["kind"] == "train"}
    assert rates[11] == pytest.approx(0.05 * float(now))


def test_a_run_that_did_not_take_over_from_the_one_named_is_refused(tmp_path: Path) -> None:
    config = tiny_config("fr", 2)
    source, other = (copied(made_once(config, stopped_after=5), tmp_path / name) for name in ("source", "other"))
    longer = config | {"epochs": 3}
    stopped(longer, tmp_path / "by itself", 8)
    train_here(longer, tmp_path / "finished by itself")
    stopped(longer | {"resume": str(source)}, tmp_path / "taken over", 8)
    for name, why in (
        ("by itself", "began by itself"),
        ("finished by itself", "began by itself"),
        ("taken over", f"took over from {source}"),
    ):
        with pytest.raises(ConfigError, match=f"{why}; choose another run_dir, or resume=auto"):
            decide(longer | {"resume": str(other)}, RunDirectory(tmp_path / name), print)
        with pytest.raises(ConfigError, match=why):
            check_plan(longer | {"resume": str(other), "run_dir": str(tmp_path / name)})
    (tmp_path / "link").symlink_to(source)
    for name in (str(source), str(tmp_path / "link"), str(other / ".." / "source")):
        assert decide(longer | {"resume": name}, RunDirectory(tmp_path / "taken over"), print).resumption is not None


def test_a_run_that_was_cut_off_before_it_took_over_does_so_after_all(tmp_path: Path) -> None:
    source = made_once(tiny_config("fr", 2), stopped_after=5)
    config = tiny_config("fr", 2, epochs=3, resume=str(source))
    directory = RunDirectory(tmp_path)
    directory.create()
    directory.write_config(config)
    directory.set_status("interrupted")
    start = decide(config, RunDirectory(tmp_path), print)
    assert start.resumption is not None and start.source == source
    assert start.found is not None and start.found.state == "interrupted"  # so that its folder is taken over, too


def test_a_finished_run_is_not_taken_over_for_no_step_at_all(tmp_path: Path) -> None:
    config = tiny_config("fr", 2, checkpoint={"every": 100})
    copied(made_once(config), tmp_path / "source")
    same_end = config | {"epochs": 4, "max_steps": 10, "resume": str(tmp_path / "source")}
    with pytest.raises(ConfigError, match="after step 10, this run ends after 10; more epochs"):
        decide(same_end, RunDirectory(tmp_path / "run"), print)
    # Cut off behind its last checkpoint, it still had its evaluation to make.
    train_here(tiny_config("fr", 2, checkpoint={"every": 5}), tmp_path / "cut off", cut_off_at=10)
    folder_of(tmp_path / "source" / "checkpoints", 10).rename(folder_of(tmp_path / "cut off" / "checkpoints", 10))
    assert decide(same_end | {"resume": str(tmp_path / "cut off")}, RunDirectory(tmp_path / "run"), print).notes


@pytest.mark.parametrize(("schedule", "in_one_piece"), [("constant", True), ("two steps", False), ("cosine", False)])
def test_whether_the_first_steps_are_those_the_run_would_have_made_is_kept(
    schedule: str, in_one_piece: bool, tmp_path: Path
) -> None:
    """Steps divide the rate by 10 in the middle: of 2 epochs there, of 4 here."""
    config, longer = made_longer(schedule)
    run = made_once(longer)
    origin = json.loads((run / "origin.json").read_text())
    assert origin["in_one_piece"] is in_one_piece
    assert origin["settings"] == {"cuts": [3], "epochs": 2, "freeze": [], "module_lr": None}
    train_here(config | {"epochs": 5, "resume": str(run)}, tmp_path / "third", cut_off_at=21)
    assert json.loads((tmp_path / "third" / "origin.json").read_text())["in_one_piece"] is in_one_piece


def test_first_steps_that_end_where_only_there_the_rate_falls_are_the_runs_own(tmp_path: Path) -> None:
    source = made_once(tiny_config("fr", 2), stopped_after=5)  # the rate falls in the sixth step, here in the eleventh
    train_here(tiny_config("fr", 2, epochs=4, resume=str(source)), tmp_path, cut_off_at=6)
    assert json.loads((tmp_path / "origin.json").read_text())["in_one_piece"] is True


def test_records_of_as_many_other_modules_are_left_behind(tmp_path: Path) -> None:
    source = made_once(tiny_config("fr", 4), stopped_after=5)
    config = tiny_config("fr", 2, transport="gloo", replicas=2, resume=str(source))
    directory = RunDirectory(tmp_path / "run")
    start = decide(config, directory, print)
    directory.create()
    kept = bring_records(start, directory).kept
    assert kept and not any("module" in record for record in kept)


def test_the_cuts_in_use_are_kept_whatever_the_partition_says_today(tmp_path: Path) -> None:
    """Balanced cuts follow from costs, which another version may count otherwise."""
    config = tiny_config("fr", 3, partition="auto")
    run = stopped(config, tmp_path / "run", 5)
    found = (run / "config.yaml").read_text()
    plan = decide(config, RunDirectory(run), print).plan
    assert plan is not None
    moved = [plan.cuts[0], plan.cuts[1] + (1 if plan.cuts[1] < 5 else -1)]
    text = "\n".join(f"  - {cut}" for cut in plan.cuts)
    assert text in found
    (run / "config.yaml").write_text(found.replace(text, "\n".join(f"  - {cut}" for cut in moved)))
    with pytest.raises(
        ConfigError, match="none of the run's checkpoints can be used"
    ):  # those of other cuts do not fit
        decide(config, RunDirectory(run), print)
    shutil.rmtree(run / "checkpoints")
    start = decide(config, RunDirectory(run), print)
    assert start.plan is not None and start.plan.cuts == moved and start.plan.config["partition"] == "auto"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "module_2.state.pt").write_bytes(b"short"),
        lambda folder: _flip(folder / "module_1.safetensors"),
        lambda folder: _flip(folder / "manifest.json"),
        lambda folder: (folder / "module_3.safetensors").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"step": '),
        lambda folder: (folder / "manifest.json").write_text("[]"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(damage: Any, tmp_path: Path) -> None:
    config = tiny_config("fr", 3, checkpoint={"every": 3})
    copied(made_once(config, cut_off_at=8), tmp_path / "run")
    newest, before = whole_folders(tmp_path / "run" / "checkpoints")
    assert (newest.name, before.name) == ("step_00000006", "step_00000003")
    damage(newest)
    said = train_here(config, tmp_path / "run")
    assert any(str(newest) in line and "trying the one before" in line for line in said), said
    assert any("Goes on after step 3 of 10" in line for line in said)
    assert_same_run(made_once(tiny_config("fr", 3)), tmp_path / "run")


def test_a_checkpoint_that_cannot_be_looked_into_is_passed_over_and_stays(tmp_path: Path) -> None:
    config = tiny_config("fr", 2, checkpoint={"every": 3})
    copied(made_once(config, cut_off_at=8), tmp_path / "run")
    newest = whole_folders(tmp_path / "run" / "checkpoints")[0]
    newest.chmod(0)
    said: list[str] = []
    with as_owner_alone():
        decide(config, RunDirectory(tmp_path / "run"), said.append)
    newest.chmod(0o755)
    assert said == [f"checkpoint {newest}: manifest.json cannot be read: Permission denied; trying the one before"]


def test_a_run_whose_checkpoints_cannot_be_listed_is_not_begun_anew(tmp_path: Path) -> None:
    """They would seem to be none."""
    config = tiny_config("fr", 2, checkpoint={"every": 3})
    copied(made_once(config, cut_off_at=8), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.chmod(0)
    with as_owner_alone(), pytest.raises(ConfigError, match=f": {checkpoints} cannot be read: Permission denied"):
        decide(config, RunDirectory(tmp_path / "run"), print)
    checkpoints.chmod(0o755)


def _flip(path: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_of_whose_checkpoints_none_can_be_used_is_not_thrown_away(tmp_path: Path) -> None:
    """A disk that does not answer, or an older version of the program, may be all that is wrong."""
    config = tiny_config("fr", 2, checkpoint={"every": 3})
    run, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    copied(made_once(config, cut_off_at=8), run)
    for folder in whole_folders(checkpoints):
        _flip(folder / "module_1.state.pt")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said: list[str] = []
    with pytest.raises(ConfigError, match=f"none of the run's checkpoints can be used.*move {checkpoints} away"):
        decide(config, RunDirectory(run), said.append)
    assert sum("is damaged" in line for line in said) == 2
    assert ["trying the one before" in line for line in said] == [True, False], said
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    checkpoints.rename(run / "damaged")
    assert any("it starts anew" in line for line in train_here(config, run))
    assert_same_run(made_once(tiny_config("fr", 2)), run)


def test_a_checkpoint_that_the_run_there_removes_meanwhile_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stopped(tiny_config("bp", 1), tmp_path / "source", 5)

    def decide_and_lose_it(*arguments: Any) -> Any:
        start = decide(*arguments)
        assert start.resumption is not None
        shutil.rmtree(start.resumption.checkpoint.folder)
        return start

    monkeypatch.setattr("fr_bench.launching.launch.decide", decide_and_lose_it)
    with pytest.raises(RunFailed, match=r"step_00000005 was there a moment ago and is gone.*takes a newer one"):
        run_training(tiny_config("bp", 1, epochs=3, resume=str(source)), tmp_path / "run")


def test_records_that_cannot_be_written_again_end_a_run_that_goes_on_in_one_line_and_stay(tmp_path: Path) -> None:
    config = tiny_config("bp", 1, log_every=1)
    run = copied(made_once(config, stopped_after=5), tmp_path)
    before = (run / "metrics.jsonl").read_bytes()
    start = decide(config, RunDirectory(run), print)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(RunFailed, match=r"metrics.jsonl: cannot be written \(File too large\)"):
            bring_records(start, RunDirectory(run))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_records_that_cannot_be_read_are_not_thrown_away(tmp_path: Path) -> None:
    config = tiny_config("bp", 1)
    run = copied(made_once(config, stopped_after=5), tmp_path)
    start = decide(config, RunDirectory(run), print)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()  # which is read by nobody
    with pytest.raises(RunFailed, match=r"metrics.jsonl: cannot be read \(Is a directory\)"):
        bring_records(start, RunDirectory(run))


def test_a_checkpoint_that_cannot_be_made_whole_goes_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(checkpoint_book, "write_manifest", refuse)
    said = train_here(tiny_config("fr", 2, checkpoint={"every": 4}), tmp_path)
    assert said == [
        "the checkpoint after step 4 could not be written (no room); training goes on, and this is not said again"
    ]
    assert not list((tmp_path / "checkpoints").glob("step_*")) and read_records(tmp_path)[-1]["step"] == 10


def test_what_was_being_written_when_its_process_was_killed_goes(tmp_path: Path) -> None:
    config = tiny_config("fr", 2)
    run = copied(made_once(config, stopped_after=5), tmp_path)
    final = run / "checkpoints" / "final"
    final.mkdir()
    left = [run / ".status.json.71", run / "checkpoints" / ".last.71", final / ".module_1.safetensors.72"]
    for path in left:
        path.write_text("half")
    (run / ".notes").write_text("mine")
    train_here(config, run, cut_off_at=6)
    assert not any(path.exists() for path in left) and (run / ".notes").exists()


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path: Path) -> None:
    config = tiny_config("fr", 2)
    run = copied(made_once(config, stopped_after=5), tmp_path / "run")
    other = stopped(tiny_config("fr", 2, seed=4), tmp_path / "other", 7)
    folder_of(other / "checkpoints", 7).rename(folder_of(run / "checkpoints", 7))
    said: list[str] = []
    start = decide(config, RunDirectory(run), said.append)
    assert start.resumption is not None and start.resumption.step == 5
    assert "seed is 4 there and 3 here" in said[0]


def test_a_finished_run_without_its_config_is_not_taken_for_the_one_asked_for(tmp_path: Path) -> None:
    config = tiny_config("bp", 1, run_dir=str(tmp_path))
    train_here(config, tmp_path)
    (tmp_path / "config.yaml").rename(tmp_path / "away")
    for refuse in (lambda: check_plan(config), lambda: run_training(config, tmp_path)):
        with pytest.raises(ConfigError, match=f"run_dir={tmp_path}: holds a finished run without config.yaml"):
            refuse()
    (tmp_path / "away").rename(tmp_path / "config.yaml")
    assert decide(config, RunDirectory(tmp_path), print).finished is not None


def test_data_that_changed_in_between_are_not_gone_on_with(tmp_path: Path) -> None:
    """Other data of the same length may be wanted, and are possible in another directory."""
    text = tmp_path / "text"
    dataset = {"_target_": "fr_bench.data.text.load", "name": "text", "path": str(text), "length": 4}
    model = {
        "_target_": "fr_bench.models.transformer.causal",
        "name": "transformer",
        "width": 8,
        "depth": 3,
        "heads": 2,
    }
    dataset |= {"limit": None, "validation": 0, "augmentation": None}
    before = b"to be, or not to be, that is the question. " * 4
    text.write_bytes(before)
    config = tiny_config("fr", 2, dataset=dataset, model=model, run_dir=str(tmp_path / "run"))
    train_here(config, tmp_path / "alone")
    run = tmp_path / "run"
    train_here(config, run, stop_at=5)
    taking_over = config | {"resume": str(run), "run_dir": str(tmp_path / "other")}

    text.write_bytes(before * 2)
    for each, where, how in ((config, "run_dir", "choose another run_dir"), (taking_over, "resume", "begin anew")):
        told = f"{where}={run}: the data set has changed since .*: an epoch had 4 steps, and has 9 now; .* {how}"
        with pytest.raises(ConfigError, match=told):
            run_training(each, Path(each["run_dir"]))
    text.write_bytes(before.swapcase())
    with pytest.raises(ConfigError, match=f"run_dir={run}: the data set has changed .*: its labels are others.*{run}"):
        run_training(config, run)
    assert not (tmp_path / "other").exists()
    assert any("data set has changed" in note for note in train_here(taking_over, tmp_path / "other"))
    assert not any("data set" in note for note in decide(taking_over, RunDirectory(tmp_path / "other"), print).notes)

    text.write_bytes(before)
    assert not any("data set" in note for note in train_here(config, run))
    assert_same_run(tmp_path / "alone", run)


def test_a_run_of_an_older_version_goes_on_though_it_kept_nothing_of_its_labels(tmp_path: Path) -> None:
    config = tiny_config("fr", 2)
    run = copied(made_once(config, stopped_after=5), tmp_path)
    lines = (run / "config.yaml").read_text().splitlines()
    kept = [line for line in lines if "label_digest" not in line and "steps_per_epoch" not in line]
    assert len(kept) == len(lines) - 2
    (run / "config.yaml").write_text("\n".join(kept) + "\n")
    assert decide(config, RunDirectory(run), print).resumption is not None


def test_another_config_is_refused_with_what_differs(tmp_path: Path) -> None:
    run = copied(made_once(tiny_config("fr", 2), stopped_after=5), tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = tiny_config("fr", 2, optimizer={"lr": 0.5}, epochs=9, run_dir=str(run))
    for refuse in (lambda: check_plan(other), lambda: run_training(other, run)):
        with pytest.raises(ConfigError, match=r"optimizer.lr is 0.05 there and 0.5 here; epochs is 2 there and 9 here"):
            refuse()
    # What is only written down may change, and where it is written.
    decide(tiny_config("fr", 2, log_every=5, trace=2, console="plain", run_dir="elsewhere"), RunDirectory(run), print)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_where_the_data_lie_makes_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is requeued may have them copied elsewhere. What a loader of the user's own means by `root` is its
    own affair, and another text is another data set."""
    own = {"_target_": "fr_bench.data.fashion_mnist.load", "root": "data", "download": True, "limit": 5}
    monkeypatch.chdir(tmp_path)
    for there, here, words in (
        (own, own | {"root": "/scratch/17/data", "download": False}, []),
        (own, own | {"root": "/data", "limit": 6}, ["dataset.limit is 5 there and 6 here"]),
        ({"_target_": "fr_bench.data.text.load", "path": "a"}, {"path": f"{tmp_path}/b/../a"}, []),
        ({"_target_": "fr_bench.data.text.load", "path": "~/a"}, {"path": os.path.expanduser("~/a")}, []),
        ({"_target_": "fr_bench.data.text.load", "path": "a"}, {"path": "b"}, ["dataset.path is"]),
        ({"_target_": "own.load", "root": "a"}, {"root": "b"}, ['dataset.root is "a" there and "b" here']),
    ):
        found = differences({"k": 2, "dataset": there}, {"k": 2, "dataset": there | here})
        assert len(found) == len(words) and all(map(str.startswith, found, words)), found


def test_a_run_goes_on_with_data_that_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of an older version, which kept a relative path."""
    (tmp_path / "text").write_bytes(b"to be, or not to be, that is the question. " * 30)
    monkeypatch.chdir(tmp_path)
    text = {"_target_": "fr_bench.data.text.load", "name": "text", "path": "text", "length": 8, "limit": None}
    model = {"_target_": "fr_bench.models.transformer.causal", "name": "t", "depth": 2, "width": 8, "heads": 1}
    config = tiny_config("fr", 2, model=model, dataset=text, channels_last=False, max_steps=10)
    run = stopped(config, tmp_path / "run", 5)
    moved = config | {"dataset": text | {"path": str(tmp_path / "text")}}
    for changes in ({"run_dir": str(run)}, {"run_dir": "new", "resume": str(run)}):
        check_plan(moved | changes)
    start = decide(moved, RunDirectory(run), print)
    assert start.resumption is not None and start.resumption.step == 5


def test_what_may_change_from_another_run_and_what_may_not(tmp_path: Path) -> None:
    source = str(made_once(tiny_config("fr", 2), stopped_after=5))
    directory = RunDirectory(tmp_path / "new")
    start = decide(tiny_config("fr", 2, epochs=4, max_steps=17, threads=1, resume=source), directory, print)
    assert start.plan is not None and start.plan.num_steps == 17 and start.resumption is not None
    for change, why in (
        ({"batch_size": 4}, "batch_size is 8 there and 4 here; only method, epochs, max_steps, k"),
        ({"max_steps": 3}, "after step 5, this run ends after 3; more epochs"),
        ({"partition": [1]}, "partition is"),
    ):
        refused = tiny_config("fr", 2, resume=source, run_dir=str(directory.path), **change)
        with pytest.raises(ConfigError, match=why):
            decide(refused, directory, print)
        with pytest.raises(ConfigError, match=why):  # before anything of a sweep has begun
            check_plan(refused)
    for nowhere in ("atuo", "a" * 300):
        with pytest.raises(ConfigError, match="must be auto, never or the directory of a run"):
            check_plan(tiny_config("fr", 2, resume=nowhere, run_dir=str(tmp_path / "new")))
    assert not directory.path.exists()


def test_a_null_and_a_key_that_is_not_there_are_the_same() -> None:
    assert differences({"a": 1}, {"a": 1, "new": None}) == []
    assert differences({"a": {"b": [1, 2]}}, {"a": {"b": [1]}}) == ["a.b is [1, 2] there and [1] here"]


def test_an_unfinished_run_is_evaluated_at_its_last_checkpoint(tmp_path: Path) -> None:
    """Which lies before the evaluation of its step, so the two must agree."""
    config = tiny_config("fr", 3)
    run = made_once(config, stopped_after=5)
    folder, which = find_weights(run / "checkpoints", 2)
    assert which == "weights after step 5"
    found = evaluate_weights(read_config(run) | {"transport": "serial"}, folder)
    (record, _) = [record for record in read_records(made_once(config)) if record["kind"] == "eval"]
    assert found["test_loss"] == record["test_loss"]


def test_never_starts_in_a_new_directory_alone(tmp_path: Path) -> None:
    config = tiny_config("fr", 2)
    run = copied(made_once(config, stopped_after=5), tmp_path / "run")
    with pytest.raises(ConfigError, match="choose another run_dir"):
        run_training(config | {"resume": "never"}, run)
    copied(made_once(config), tmp_path / "finished")
    with pytest.raises(ConfigError, match=r"holds a finished run.*choose another run_dir"):
        run_training(config | {"resume": "never"}, tmp_path / "finished")
    for there in ("run", "finished"):  # before anything is started, too
        with pytest.raises(ConfigError, match="choose another run_dir"):
            check_resume(config | {"resume": "never", "run_dir": str(tmp_path / there)})
    check_resume(config | {"resume": "never", "run_dir": str(tmp_path / "nowhere")})


def test_a_finished_run_is_said_to_be_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config("fr", 2)
    copied(made_once(config), tmp_path)
    directory = RunDirectory(tmp_path)
    directory.write_summary({"best_test_error": 0.5})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_training(config, tmp_path) == {"best_test_error": 0.5}
    assert "holds this run, finished; nothing to do" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def with_status(run: Path, **fields: Any) -> None:
    status = json.loads((run / "status.json").read_text()) | fields
    (run / "status.json").write_text(json.dumps(status))


def own_model(folder: Path, comment: str = "") -> dict[str, Any]:
    """A model of the user's own, whose code is another with another ``comment``."""
    (folder / "own_model").mkdir(exist_ok=True)
    (folder / "own_model" / "models.py").write_text(f"from tiny_models import residual as build\n# {comment}\n")
    return {"_target_": "own_model.models.build", "name": "own"}


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("own_model", "own_model.models"):  # of the next test it is another
        sys.modules.pop(name, None)


def environment_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "env.json").read_text())


def test_a_run_that_goes_on_with_other_code_of_the_users_own_says_so(own_folder: Path) -> None:
    config = tiny_config("fr", 2, model=own_model(own_folder))
    run = stopped(config, own_folder / "run", 3)
    first = environment_of(run)["code"]
    assert not any(CHANGED in line for line in train_here(config, run, stop_at=4))
    assert environment_of(run)["code"] == first and "code_before" not in environment_of(run)
    own_model(own_folder, "edited")
    for stop_at in (6, None):  # also when it goes on once more, with the code that is there now
        said = train_here(config, run, stop_at=stop_at)
        assert said.count(f"{CHANGED} this run began: it goes on with what is there now.") == 1
        assert environment_of(run)["code"] != first and environment_of(run)["code_before"] == [first]


def test_code_whose_steps_are_lost_is_no_code_of_the_run(own_folder: Path) -> None:
    """As that of an attempt which failed at once, and was mended."""
    config = tiny_config("fr", 2, model=own_model(own_folder))
    run = stopped(config, own_folder / "run", 3)
    first = environment_of(run)["code"]
    own_model(own_folder, "broken")
    train_here(config, run, cut_off_at=4)
    assert environment_of(run)["code_before"] == [first]
    copied(run, own_folder / "mended")
    own_model(own_folder, "mended")
    train_here(config, own_folder / "mended")
    assert environment_of(own_folder / "mended")["code_before"] == [first]
    own_model(own_folder)
    assert not any(CHANGED in line for line in train_here(config, run))
    assert environment_of(run)["code"] == first and "code_before" not in environment_of(run)


def test_weights_that_do_not_fit_the_code_are_left_with_advice_that_can_be_followed(own_folder: Path) -> None:
    config = tiny_config("fr", 2, model=own_model(own_folder))
    run = stopped(config, own_folder / "run", 3)
    wider = "from functools import partial\nfrom tiny_models import residual\nbuild = partial(residual, width=16)\n"
    (own_folder / "own_model" / "models.py").write_text(wider)
    sys.modules.pop("own_model.models")
    advice = "put back the code that made it, or choose another run_dir, in which resume=auto begins anew"
    with pytest.raises(RunFailed, match=f"does not fit: .*; {advice}"):
        train_here(config, run)


def test_a_run_that_starts_anew_is_made_by_the_code_that_is_there_now(own_folder: Path) -> None:
    config = tiny_config("fr", 2, model=own_model(own_folder))
    train_here(config, own_folder / "run", cut_off_at=2)
    own_model(own_folder, "edited")
    said = train_here(config, own_folder / "run")
    assert any("starts anew" in line for line in said) and not any(CHANGED in line for line in said)
    assert "code_before" not in environment_of(own_folder / "run")


def test_a_checkpoint_of_which_other_code_calls_the_blocks_otherwise_is_not_taken(own_folder: Path) -> None:
    config = tiny_config("fr", 2, model=own_model(own_folder))
    run = stopped(config, own_folder / "run", 5)
    renamed = "def build(*args, **settings):\n    return [(f'new_{n}', x) for n, x in residual(*args, **settings)]\n"
    (own_folder / "own_model" / "models.py").write_text(f"from tiny_models import residual\n\n\n{renamed}")
    sys.modules.pop("own_model.models")
    said: list[str] = []
    with pytest.raises(ConfigError, match="none of the run's checkpoints can be used"):
        decide(config, RunDirectory(run), said.append)
    assert "is of another model or other cuts" in said[0]


def test_a_run_that_takes_over_from_one_of_other_code_says_so(own_folder: Path) -> None:
    config = tiny_config("fr", 2, model=own_model(own_folder))
    source = stopped(config, own_folder / "source", 5)
    own_model(own_folder, "edited")
    said = train_here(config | {"resume": str(source)}, own_folder / "run")
    assert said.count(f"{CHANGED} that run began: this one goes on with what is there now.") == 1
    assert environment_of(own_folder / "run")["code_before"] == [environment_of(source)["code"]]


@pytest.mark.parametrize("is_sweep", [False, True])
def test_a_finished_run_needs_its_data_no_more(is_sweep: bool, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 50)
    words = ["train", "method=bp", "model=transformer", "optimizer=adam", "dataset=text", "dataset.path=text.txt"]
    words += ["max_steps=1", "batch_size=8", "device=cpu", "transport=serial", "wandb.mode=disabled"]
    words += ["-m", "k=1,2", "sweep_dir=sweep"] if is_sweep else ["k=1", "run_dir=run"]
    done = call(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    (tmp_path / "text.txt").unlink()
    again = call(tmp_path, *words)
    assert again.returncode == 0 and again.stderr.count("holds this run, finished; nothing to do") == 1 + is_sweep


def test_a_finished_run_of_other_code_is_said_to_be_one(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = tiny_config("fr", 2, model=own_model(own_folder)), own_folder / "run"
    train_here(config, run)
    run_training(config, run)
    assert capsys.readouterr().err == f"fr-bench: {run} holds this run, finished; nothing to do\n"
    own_model(own_folder, "edited")
    run_training(config, run)
    note = f"fr-bench: {run} was made by other code of own_model than is there now; remove {run} to run it again.\n"
    assert capsys.readouterr().err.endswith(note)


@pytest.mark.parametrize("code", [None, {}, "unknown"])
def test_of_code_that_nobody_knows_nothing_is_said(code: Any, own_folder: Path) -> None:
    """As of runs of older versions, and of packages that were installed then."""
    config = tiny_config("fr", 2, model=own_model(own_folder))
    run = stopped(config, own_folder / "run", 5)
    told = environment_of(run) | {"code": code}
    (run / "env.json").write_text(json.dumps({key: value for key, value in told.items() if value is not None}))
    (folder,) = whole_folders(run / "checkpoints")
    manifest = {key: value for key, value in read_manifest(folder).items() if key != "code"}
    write_manifest(run / "checkpoints", manifest | ({"code": [{}]} if code == {} else {}))
    own_model(own_folder, "edited")
    assert len(decide(config, RunDirectory(run), print).notes) == 1  # from which step it goes on


def test_of_older_versions_checkpoints_env_json_tells_the_code(own_folder: Path) -> None:
    config = tiny_config("fr", 2, model=own_model(own_folder))
    run = stopped(config, own_folder / "run", 5)
    (folder,) = whole_folders(run / "checkpoints")
    write_manifest(run / "checkpoints", {key: value for key, value in read_manifest(folder).items() if key != "code"})
    own_model(own_folder, "edited")
    assert decide(config, RunDirectory(run), print).code_before == [environment_of(run)["code"]]


def test_a_run_whose_process_is_alive_is_refused(tmp_path: Path) -> None:
    config = tiny_config("fr", 2)
    run = copied(made_once(config, stopped_after=5), tmp_path)
    alive = {"state": "running", "pid": os.getpid(), "host": socket.gethostname()}
    with_status(run, **alive, heartbeat=time.time())
    with pytest.raises(ConfigError, match=f"a run is going on there .process {os.getpid()} on"):
        run_training(config, run)
    # Silent for an hour: nobody is there, or another process has its number by now.
    with_status(run, **alive, heartbeat=time.time() - 3600)
    assert decide(config, RunDirectory(run), print).resumption is not None
    # Killed a moment ago, on this machine: its process is seen to be gone, whatever the heartbeat says.
    with_status(run, state="running", pid=2**22 + 1, host=socket.gethostname(), heartbeat=time.time())
    assert decide(config, RunDirectory(run), print).resumption is not None


def test_a_sign_of_life_from_another_machine_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cluster may start a job again elsewhere a second after it killed it here."""
    config = tiny_config("fr", 2)
    run = copied(made_once(config, stopped_after=5), tmp_path)
    monkeypatch.setattr(run_directory, "HEARTBEAT_S", 0.5)
    with_status(run, state="running", pid=1, host="another-machine", heartbeat=time.time() - 23)
    assert decide(config, RunDirectory(run), print).resumption is not None
    assert "waiting up to" in capsys.readouterr().err


def test_a_run_on_a_machine_whose_clock_is_behind_is_alive_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config("fr", 2)
    run = copied(made_once(config, stopped_after=5), tmp_path)
    monkeypatch.setattr(run_directory, "HEARTBEAT_S", 0.5)
    elsewhere = {"state": "running", "pid": 1, "host": "another-machine"}
    with_status(run, **elsewhere, heartbeat=time.time() - 100)
    beat = threading.Timer(0.3, lambda: with_status(run, **elsewhere, heartbeat=time.time() - 100))
    beat.start()
    with pytest.raises(ConfigError, match=r"a run is going on there .process 1 on another-machine"):
        decide(config, RunDirectory(run), print)
    beat.join()
    assert decide(config, RunDirectory(run), print).resumption is not None  # it was its last sign of life
    assert capsys.readouterr().err.count("waiting up to 2 s for its next sign of life") == 2


def test_a_run_on_a_machine_whose_clock_is_ahead_is_not_waited_for_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config("fr", 2)
    run = copied(made_once(config, stopped_after=5), tmp_path)
    monkeypatch.setattr(run_directory, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(run_directory, "SILENCE_S", 1.0)
    with_status(run, state="running", pid=1, host="another-machine", heartbeat=time.time() + 5)
    assert decide(config, RunDirectory(run), print).resumption is not None
    assert "was alive 0 s ago; waiting up to 1 s for its next sign of life" in capsys.readouterr().err


class TakenAway:
    """Processes of a run that another machine takes over while this one is stopped."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.monkeypatch = run, monkeypatch

    def __enter__(self) -> TakenAway:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def events(self, _: Any) -> Iterator[dict[str, Any]]:
        with_status(self.run, pid=7, host="another-machine")
        now = time.time()
        self.monkeypatch.setattr(run_directory.time, "time", lambda: now + 60)
        yield {"event": "train", "time_ns": time.monotonic_ns(), "step": 1, "loss": 0.0, "error": 0.0, "lr": 0.1}


def test_a_run_that_another_machine_has_taken_over_ends_and_leaves_its_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "_processes", lambda self, board: TakenAway(tmp_path, monkeypatch))
    finished: list[object] = []  # W&B's summary is the other's, too
    monkeypatch.setattr(SinkGroup, "finish", lambda self, *outcome: finished.append(outcome))
    with pytest.raises(TakenOver, match="process 7 on another-machine has taken over the run"):
        run_training(tiny_config("fr", 2), tmp_path)
    assert finished == [(None, 1)]
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["pid"]) == ("running", 7)
    assert not (tmp_path / "summary.json").exists() and not read_records(tmp_path)


def test_of_two_that_find_the_same_run_one_gets_it(tmp_path: Path) -> None:
    config = tiny_config("fr", 2)
    run = copied(made_once(config, stopped_after=5), tmp_path)
    one, two = RunDirectory(run), RunDirectory(run)
    first, second = one.find(), two.find()
    assert first is not None and second is not None
    one.take_over(first)
    with pytest.raises(ConfigError, match="another process has just taken it"):
        two.take_over(second)


def test_records_behind_the_checkpoint_and_a_torn_line_go(tmp_path: Path) -> None:
    config = tiny_config("fr", 2, checkpoint={"every": 5, "keep": 1})
    train_here(config, tmp_path, cut_off_at=8)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "step": 9, "lo')
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run_id").write_text("abcd1234\n")
    start = decide(config, RunDirectory(tmp_path), print)
    records = bring_records(start, RunDirectory(tmp_path))
    left = read_records(tmp_path)
    assert left == records.kept and len(left) == 5 + 2
    assert {(record["kind"], record["step"]) for record in left} == {*[("train", s) for s in range(1, 6)], ("time", 5)}
    made_before = read_json(tmp_path / "wandb" / "made_before.json")["rows"]
    assert {(kind, step) for kind, step, _ in made_before} == {
        *[("train", s) for s in (6, 7, 8)], ("eval", 5), ("memory", 5),
    }  # fmt: skip


@pytest.mark.parametrize("key", ["module", "iterations"])
def test_a_profile_record_that_lacks_what_is_added_up_goes(key: str, tmp_path: Path) -> None:
    config = tiny_config("fr", 2)
    run = copied(made_once(config, stopped_after=5), tmp_path / "run")
    record = {"kind": "profile", "step": 4, "epoch": 0.8, "train_time": 0.1, "module": 1, "iterations": 1}
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({name: value for name, value in record.items() if name != key}) + "\n")
    train_here(config, run, cut_off_at=6)
    assert not [record for record in read_records(run) if record["kind"] == "profile"]


def test_records_that_are_no_longer_there_are_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a checkpoint after seven steps."""
    for log_every, num_left, last in (
        (2, None, 0), (2, 0, 0), (2, 4, 4), (2, 6, None), (2, 7, None), (1, 6, 6)
    ):  # fmt: skip
        config, run = tiny_config("bp", 2, log_every=log_every), tmp_path / f"{log_every}-{num_left}"
        source = tmp_path / f"{log_every}"
        if not source.exists():
            train_here(config, source, stop_at=6)
        copied(source, run)
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        if num_left is None:
            (run / "metrics.jsonl").unlink()
        else:
            left = [line for line in lines if json.loads(line)["step"] <= num_left]
            (run / "metrics.jsonl").write_text("".join(left))
        lost = bring_records(decide(config, RunDirectory(run), print), RunDirectory(run)).lost
        steps = f"of steps {0 if last is None else last + 1} to 7"
        missed = f"{run}/metrics.jsonl has no record {steps}: they count in no figure and in no table."
        assert lost == ([] if last is None else [missed])
    run_training(config, run)
    assert missed in capsys.readouterr().err
    assert read_records(run)[-1]["step"] == 10


def test_no_records_are_missed_where_fewer_were_asked_for_before(tmp_path: Path) -> None:
    """Cut off before its first record, a run goes on with more of them, and is cut off before the next is due."""
    directory, checkpoint = RunDirectory(tmp_path / "run"), {"every": 1}
    few, more = (tiny_config("bp", 2, log_every=log_every, checkpoint=checkpoint) for log_every in (9, 5))
    train_here(few, directory.path, cut_off_at=9)
    train_here(more, directory.path, cut_off_at=10)
    start = decide(more, directory, print)
    assert start.resumption is not None and start.resumption.step == 9
    assert bring_records(start, directory).lost == []


def test_a_checkpoint_is_read_without_running_code_and_named_by_blocks() -> None:
    checkpoints = made_once(tiny_config("fr", 3), stopped_after=5) / "checkpoints"
    folder = folder_of(checkpoints, 5)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(
        ["manifest.json", *[f"module_{k}.{end}" for k in (1, 2, 3) for end in ("safetensors", "state.pt")]]
    )
    assert (checkpoints / "last").read_text() == "step_00000005\n"
    weights = {name for k in (1, 2, 3) for name in load_file(folder / f"module_{k}.safetensors")}
    assert {name.partition(".")[0] for name in weights} == {"stem", "head", *[f"block{n}" for n in range(1, 5)]}
    state = torch.load(folder / "module_1.state.pt", weights_only=True)
    assert [batch for batch, _ in state["method"]["kept"]] == [3, 4]
    manifest = read_manifest(folder)
    assert manifest["cuts"] == [2, 4] and manifest["config"]["method"]["name"] == "fr"


def test_a_run_that_takes_over_from_itself_goes_on(tmp_path: Path) -> None:
    """And is, for the tables, one that was never stopped."""
    config = tiny_config("fr", 2, max_steps=7)
    run = stopped(config, tmp_path, 5)
    check_plan(config | {"resume": str(run), "run_dir": str(run)})
    run_training(config | {"resume": str(run), "run_dir": str(run)}, run)
    (found,) = find_runs([str(run)], print)
    assert found.end == "finished" and not found.takes_over


def test_a_run_that_could_go_on_for_longer_says_how(tmp_path: Path) -> None:
    run = copied(made_once(tiny_config("fr", 2), stopped_after=5), tmp_path)
    with pytest.raises(ConfigError, match="resume=RUN_DIR, with this one, goes on from its last checkpoint"):
        check_plan(tiny_config("fr", 2, epochs=9, run_dir=str(run)))
    with pytest.raises(ConfigError, match=r"choose another run_dir[.]$"):
        check_plan(tiny_config("fr", 2, optimizer={"lr": 0.5}, epochs=9, run_dir=str(run)))


@pytest.mark.parametrize(("is_exact", "has_trace"), [(True, False), (False, True)])
def test_other_processes_are_told_all_of_where_a_run_goes_on_from(
    is_exact: bool, has_trace: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = Resumption(Checkpoint(Path("here"), {"step": 3}), is_exact, has_trace).description()
    heard = Resumption.from_description(json.loads(json.dumps(told)))
    assert heard == Resumption(Checkpoint(tmp_path / "here", {"step": 3}), is_exact, has_trace)
    assert Resumption.from_description(None) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 9), ("max_steps", 3), ("k", 3), ("replicas", 2), ("transport", "gloo"), ("device", "cuda"),
        ("devices", [1]), ("threads", 9), ("cuda_graphs", True), ("streams", "other"),
        ("diagnostics", {"sigma": {"every": 9, "window": 1}}), ("method", {"name": "another"}),
    ],
)  # fmt: skip
def test_each_setting_that_may_change_elsewhere_makes_another_run_here(key: str, value: Any) -> None:
    before = tiny_config("fr", 2)
    now = before | {key: value}
    assert differences(before, now) and not differences(before, now, MOVABLE)


@pytest.mark.parametrize(
    ("key", "value"), [("partition", [1]), ("module_lr", [1.0, 2.0]), ("freeze", [1]), ("memory_limit_gb", 3.0)]
)
def test_what_goes_with_k_may_change_with_it_or_the_method_alone(key: str, value: Any) -> None:
    before = tiny_config("fr", 2)
    now = before | {key: value}
    assert differences(before, now, MOVABLE)
    assert not differences(before, now | {"k": 3}, MOVABLE)
    assert not differences(before, now | {"method": {"name": "another"}}, MOVABLE)


def test_asking_for_the_cuts_in_use_is_no_difference() -> None:
    before = tiny_config("fr", 3)
    now = before | {"partition": [1, 2]}
    assert differences(before, now, MOVABLE, cuts=[1, 2]) == []
    assert differences(before, now, MOVABLE, cuts=[1, 3]) != []


def test_of_many_differences_the_first_are_named_and_the_others_counted() -> None:
    assert in_short(list("abcdefgh")) == "a; b; c; d; e; f; and 2 more"
    assert in_short(list("abcdef")) == "a; b; c; d; e; f"


@pytest.mark.parametrize(
    ("kind", "change", "goes"),
    [
        ("eval", {}, False), ("eval", {"test_error": None}, True), ("eval", {"validation_error": "x"}, True),
        ("memory", {}, False), ("memory", {"peak": "x"}, True), ("memory", {"module": 1.0}, True),
        ("time", {}, False), ("time", {"wait_s": None}, True), ("time", {"send_s": None}, True),
        ("time", {"iterations": 1e301}, True), ("train", {"step": 1.0}, True), ("train", {"module": True}, True),
    ],
)  # fmt: skip
def test_a_record_of_which_something_cannot_be_added_up_goes(
    kind: str, change: dict[str, Any], goes: bool, tmp_path: Path
) -> None:
    whole = {"kind": kind, "step": 1, "epoch": 1.0, "train_time": 1.0}
    whole |= {
        "eval": {"test_error": 0.1, "validation_error": 0.1},
        "memory": {"module": 1, "peak": 1},
        "time": {"module": 1, "play_s": 0.1, "learn_s": 0.1, "wait_s": 0.1, "send_s": 0.1},
    }.get(kind, {})
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(whole | change) + "\n")
    assert resumable_records(path) == ([] if goes else [whole | change])
