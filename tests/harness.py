"""Runs of the real program on tiny problems: in this process (serial) or in K real ones."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import io
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fr_bench.cli import main
from fr_bench.launching.checkpoint_book import CheckpointBook
from fr_bench.launching.launch import Run, run_training
from fr_bench.launching.resume import decide
from fr_bench.planning.plan import make_plan
from fr_bench.processes.board import Board
from fr_bench.processes.reporter import Reporter
from fr_bench.records.run_directory import RunDirectory
from fr_bench.records.sinks import JsonLinesSink
from fr_bench.transport.open import ModulePorts
from fr_bench.workers.worker import WorkerTask, run_worker

METHODS: dict[str, dict[str, Any]] = {
    "bp": {"_target_": "fr_bench.methods.bp.Backpropagation", "name": "bp"},
    "fr": {"_target_": "fr_bench.methods.fr.FeaturesReplay", "name": "fr"},
    "ddg": {"_target_": "fr_bench.methods.ddg.DecoupledDelayedGradients", "name": "ddg"},
    "dni": {
        "_target_": "fr_bench.methods.dni.DecoupledNeuralInterfaces",
        "name": "dni",
        "conditional": False,
        "num_hidden": 1,
        "hidden_channels": 8,
        "kernel_size": 5,
        "clip_norm": 1.0,
        "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.05, "momentum": 0.9},
    },
}

METHODS["dgl"] = {
    "_target_": "fr_bench.methods.dgl.DecoupledGreedyLearning", "name": "dgl", "num_convolutions": 2, "num_hidden": 1,
}  # fmt: skip
METHODS["cdni"] = {**METHODS["dni"], "name": "cdni", "conditional": True}

# Nothing in it depends on the other images of a batch, and no buffer moves.
WITHOUT_NORM = {"_target_": "tiny_models.without_norm", "name": "without_norm"}

# What torch's own libraries exchange: these run over processes only.
PEERS: dict[str, dict[str, Any]] = {
    "gpipe": {"_target_": "fr_bench.methods.pipeline.GPipe", "name": "gpipe", "microbatches": 4},
    "1f1b": {"_target_": "fr_bench.methods.pipeline.OneForwardOneBackward", "name": "1f1b", "microbatches": 4},
    "zero_bubble": {"_target_": "fr_bench.methods.pipeline.ZeroBubble", "name": "zero_bubble", "microbatches": 4},
    "ddp": {"_target_": "fr_bench.methods.data_parallel.DataParallel", "name": "ddp"},
}

CONFIG: dict[str, Any] = {
    "model": {"_target_": "tiny_models.residual", "name": "tiny"},
    "dataset": {
        "_target_": "fr_bench.data.synthetic.load",
        "name": "synthetic",
        "channels": 3,
        "height": 8,
        "width": 8,
        "num_classes": 4,
        "num_train": 44,
        "num_test": 22,
        "limit": None,
        "validation": 0,
        "augmentation": {"crop_padding": 1, "flip": True},
    },
    "optimizer": {"_target_": "torch.optim.SGD", "name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"_target_": "fr_bench.schedules.MultiStep", "name": "multistep", "milestones": [0.5], "gamma": 0.1},
    "replicas": 1,
    "seed": 3,
    "epochs": 2,
    "max_steps": None,
    "batch_size": 8,
    "eval_every": 1,
    "precision": "fp32",
    "device": "cpu",
    "devices": None,
    "threads": 1,
    "partition": "equal",
    "memory_limit_gb": None,
    "channels_last": True,
    "compile": False,
    "cuda_graphs": False,
    "streams": True,
    "deterministic": False,
    "module_lr": None,
    "clip_norm": None,
    "label_smoothing": 0.0,
    "freeze": [],
    "dry_run": False,
    "log_every": 1,
    "diagnostics": {"sigma": {"every": 0, "window": 1}},
    "trace": 0,
    "profile": 0,
    "checkpoint": {"every": None, "minutes": None, "keep": 2},
    "resume": "auto",
    "max_time": None,
    "hang_timeout": 60.0,
    "run_dir": "unused",
    "wandb": {"mode": "disabled", "project": "fr-bench", "entity": None, "group": None, "name": None, "tags": []},
    "console": "off",
}


def tiny_config(method: str, /, k: int, transport: str = "serial", **changes: Any) -> dict[str, Any]:
    """A run of 10 iterations of 8 images on a small convolutional network with batch norm.

    ``changes`` are top-level keys; a dict updates the group of that name.
    """
    config = copy.deepcopy(CONFIG)
    config |= {"method": copy.deepcopy((METHODS | PEERS)[method]), "k": k, "transport": transport}
    for key, value in changes.items():
        if isinstance(value, dict) and "_target_" not in value:
            config[key] |= value
        else:
            config[key] = value
    return config


# A locale without any letters but ASCII's, as in many a container; none of Python's own remedies.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


class Result:
    """What a run left: records by kind, weights by name; and where its network was cut, if that is known."""

    def __init__(
        self, records: list[dict[str, Any]], weights: dict[str, torch.Tensor], cuts: list[int] | None = None
    ) -> None:
        self.records = records
        self.weights = weights
        self.cuts = cuts or []

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.of("train")]

    @property
    def evaluations(self) -> list[tuple[float, ...]]:
        keys = ("train_loss", "train_error", "test_loss", "test_error")
        return [tuple(record[key] for key in keys) for record in self.of("eval")]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record.get("kind", record.get("event")) == kind]


def read_weights(run_directory: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for path in sorted((run_directory / "checkpoints" / "final").glob("*.safetensors")):
        weights |= load_file(path)
    return weights


def read_records(run_directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, in ``folder`` and in this process, which has paid for its imports and its process server. For runs
    that are not sent signals."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def run_processes(config: dict[str, Any], run_directory: Path) -> Result:
    """The whole program below the command line: parent, processes, files."""
    run_training(config, run_directory)
    return Result(read_records(run_directory), read_weights(run_directory))


class ListConnection:
    """Stands where the pipe to the parent is."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def send(self, event: dict[str, Any]) -> None:
        self.events.append(event)


def run_serial(config: dict[str, Any], run_directory: Path) -> Result:
    """All modules in this process, without a parent: the worker itself, fast."""
    plan = make_plan(config | {"transport": "serial"})
    run_directory.mkdir(parents=True, exist_ok=True)
    connection = ListConnection()
    reporter = Reporter(connection, [-1] * plan.k)  # type: ignore[arg-type]
    modules = list(range(1, plan.k + 1))
    threads = torch.get_num_threads()
    try:
        run_worker(WorkerTask(plan, modules, [ModulePorts()] * plan.k, None, run_directory), reporter)
    finally:
        torch.set_num_threads(threads)
    return Result(connection.events, read_weights(run_directory), plan.cuts)


_made: dict[str, Result] = {}


def run_serial_once(config: dict[str, Any]) -> Result:
    """`run_serial`, once for all tests of this process that look at what this config comes to and change none of it.
    Nothing may be patched meanwhile."""
    key = json.dumps(config, sort_keys=True)
    if key not in _made:
        with tempfile.TemporaryDirectory() as folder:
            _made[key] = run_serial(config, Path(folder))
    return _made[key]


def assert_same(one: Result, other: Result) -> None:
    """Bit for bit: every logged loss, every evaluation, every weight, every buffer."""
    assert one.losses == other.losses
    assert one.evaluations == other.evaluations
    assert one.weights.keys() == other.weights.keys()
    for name, value in one.weights.items():
        assert torch.equal(value, other.weights[name]), f"{name} differs"


def assert_close(one: Result, other: Result, tolerance: float = 1e-12) -> None:
    """The same losses, evaluations and weights, but for the order of sums."""
    assert one.losses == pytest.approx(other.losses, abs=tolerance)
    assert one.evaluations == [pytest.approx(values, abs=tolerance) for values in other.evaluations]
    assert one.weights.keys() == other.weights.keys()
    for name, value in other.weights.items():
        torch.testing.assert_close(one.weights[name], value, rtol=0, atol=tolerance)


# Fields that depend on how fast the machine is, or on what else the process did.
WALL = ("train_time", "images_per_s", "play_s", "learn_s", "wait_s", "send_s", "efficiency", "peak", "reserved")


def comparable(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What two runs of the same numbers share. The order in a file depends on whose pipe was read first."""
    found = [{key: value for key, value in record.items() if key not in WALL} for record in records]
    return sorted(found, key=lambda record: (record["step"], record["kind"], record.get("module", 0)))


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: every record of metrics.jsonl but for times, every final weight and buffer."""
    assert comparable(read_records(one)) == comparable(read_records(other))
    weights, others = read_weights(one), read_weights(other)
    assert weights and weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), f"{name} differs"
    times = [record["train_time"] for record in read_records(other) if record["kind"] == "train"]
    assert times == sorted(times)


@contextlib.contextmanager
def as_owner_alone() -> Iterator[None]:
    """What this thread may do with a file is what its mode says, also where root runs the tests."""
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version and thread; see capget(2)
    libc = ctypes.CDLL(None)
    libc.capget(header, data)
    effective = data[0]
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    libc.capset(header, data)
    try:
        yield
    finally:
        data[0] = effective
        libc.capset(header, data)


class CutOff(BaseException):
    """The moment at which a run in this process is given up."""


class PatientBoard(Board):
    """Has a checkpoint wait for the one before, which real ones do not: tiny steps are faster than any disk."""

    def is_settled(self, step: int) -> bool:
        while not super().is_settled(step):
            time.sleep(0.001)
        return True


class ParentConnection:
    """The parent's work on an event, in the process of the modules. Asks to stop, or cuts the run off, when the
    `train` record of a step comes."""

    def __init__(
        self, run: Run, board: Board, book: CheckpointBook, stop_at: int | None, cut_off_at: int | None
    ) -> None:
        self.run, self.board, self.book = run, board, book
        self.stop_at, self.cut_off_at = stop_at, cut_off_at
        self.sink = JsonLinesSink(run.directory.metrics)

    def send(self, event: dict[str, Any]) -> None:
        for record in self.run.collector.add(event):
            self.sink.write(record)
        self.book.add(event)
        if event["event"] == "train" and event["step"] == self.stop_at:
            self.board.request_stop()  # heard at the start of the next iteration, after which all modules stop
        if event["event"] == "train" and event["step"] == self.cut_off_at:
            raise CutOff


def train_here(
    config: dict[str, Any], run_directory: Path, *, stop_at: int | None = None, cut_off_at: int | None = None
) -> list[str]:
    """A run, or what is left of one, as the parent would do it, with all modules in this process and no signal.

    Returns:
        What the user is told.
    """
    config = config | {"transport": "serial"}
    said: list[str] = []
    directory = RunDirectory(run_directory)
    start = decide(config, directory, said.append)
    if start.found is not None:
        directory.take_over(start.found)
    else:
        assert start.finished is None and directory.create() is None
    assert start.plan is not None
    run = Run(start.plan, directory, start)
    board = PatientBoard()
    metrics = directory.metrics
    clock = run.collector.clock
    book = CheckpointBook(run.plan, directory.checkpoints, metrics, board, clock, said.append, code=run.code)
    connection = ParentConnection(run, board, book, stop_at, cut_off_at)
    reporter = Reporter(connection, [-1] * run.plan.k)  # type: ignore[arg-type]
    modules, threads = list(range(1, run.plan.k + 1)), torch.get_num_threads()
    ports = [ModulePorts()] * run.plan.k
    state = "interrupted"
    try:
        run_worker(WorkerTask(run.plan, modules, ports, None, run_directory, board, start.resumption), reporter)
        state = "finished" if board.stop_step is None else "interrupted"
    except CutOff:
        for thread in threading.enumerate():  # what a process's end would do to it is another test's
            if thread.name.startswith("checkpoint"):
                thread.join()
    finally:
        torch.set_num_threads(threads)
        connection.sink.finish(None, 0)
        directory.set_status(state)
    return said + start.notes
