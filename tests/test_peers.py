"""The peers: what a user would run instead, on their own for the bench and as methods of `train`."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from harness import (
    PEERS,
    WITHOUT_NORM,
    ListConnection,
    Result,
    assert_close,
    assert_same,
    run_processes,
    run_serial,
    tiny_config,
)
from reference import Reference
from torch import Tensor, nn

from fr_bench.cli import main
from fr_bench.commands.dry_run import report
from fr_bench.components import check_method
from fr_bench.data import SampleSpec
from fr_bench.errors import ConfigError, RunFailed
from fr_bench.launching.launch import run_training
from fr_bench.launching.signal_watch import watch_signals
from fr_bench.launching.supervisor import Supervisor
from fr_bench.measuring.categories import CATEGORIES
from fr_bench.measuring.stopwatch import Stopwatch
from fr_bench.methods.pipeline import GPipe
from fr_bench.models import build_blocks
from fr_bench.peers import PeerTask
from fr_bench.peers.step_clock import StepClock
from fr_bench.planning.plan import make_plan
from fr_bench.processes.reporter import Reporter

NUM_STEPS = 5
SHAPE, NUM_CLASSES = (3, 8, 8), 4


def run_peer(peer: str, tmp_path: Path, num_processes: int, **settings: Any) -> tuple[list[float], list[Any]]:
    """The losses of a peer that runs in processes of its own, and its tasks."""
    config = tiny_config("bp", 1)
    tasks: list[Any] = []

    def make(_: Any, store_port: int | None) -> list[Any]:
        task = PeerTask(
            peer, config, sample=SampleSpec(SHAPE, NUM_CLASSES), num_processes=num_processes, threads=1,
            num_steps=NUM_STEPS, store_port=store_port, keep_losses=True, **settings,
        )  # fmt: skip
        tasks.extend(task.in_every_process())
        return tasks

    with (
        watch_signals() as signals,
        Supervisor(make, num_processes, tmp_path, needs_store=num_processes > 1) as supervisor,
    ):
        events = [event for event in supervisor.events(signals) if event and event["event"] == "peer"]
    assert sorted(event["module"] for event in events) == list(range(1, num_processes + 1))
    assert all(len(event["ends_ns"]) == NUM_STEPS for event in events)
    return next(event["losses"] for event in events if event["losses"]), tasks


def plain_losses(batches: list[tuple[Tensor, Tensor]], num_parts: int) -> list[float]:
    """A loop in plain PyTorch that adds up the gradients of ``num_parts`` equal parts of each batch."""
    config = tiny_config("bp", 1)
    blocks = build_blocks(config["model"], SHAPE, NUM_CLASSES, config["seed"])
    network = nn.Sequential(*(block for _, block in blocks)).to(memory_format=torch.channels_last)
    settings = {key: value for key, value in config["optimizer"].items() if key not in ("_target_", "name")}
    optimizer = torch.optim.SGD(network.parameters(), **settings)
    losses = []
    torch.set_num_threads(1)
    for step in range(NUM_STEPS):
        x, y = batches[step % len(batches)]
        parts = [
            F.cross_entropy(network(each), labels, reduction="sum") / len(x)
            for each, labels in zip(x.chunk(num_parts), y.chunk(num_parts), strict=True)
        ]
        for part in parts:
            part.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(torch.stack(parts).sum().item())
    return losses


def test_the_plain_loop_is_a_plain_loop(tmp_path: Path) -> None:
    losses, tasks = run_peer("plain", tmp_path, 1)
    assert losses == plain_losses(tasks[0].batches(), 1)


def test_the_plain_loop_under_autocast_is_the_recipe_of_pytorch(tmp_path: Path) -> None:
    def run(precision: str, **settings: Any) -> list[dict[str, Any]]:
        connection, threads = ListConnection(), torch.get_num_threads()
        task = PeerTask(
            "plain", tiny_config("bp", 1, precision=precision), sample=SampleSpec(SHAPE, NUM_CLASSES),
            num_processes=1, threads=1, num_steps=NUM_STEPS, store_port=None, keep_losses=True, **settings,
        )  # fmt: skip
        try:
            task.run(Reporter(connection, [-1]))  # type: ignore[arg-type]
        finally:
            torch.set_num_threads(threads)
        return [event for event in connection.events if event["event"] == "peer"]

    (plain,), (bf16,) = run("fp32"), run("bf16", profile=2, folder=tmp_path)
    assert bf16["losses"] == pytest.approx(plain["losses"], abs=0.1) and bf16["losses"] != plain["losses"]
    assert len(bf16["ends_ns"]) == NUM_STEPS and "busy_s" not in plain
    assert (bf16["busy_s"], bf16["num_kernels"]) == (None, None)  # of a GPU
    assert (tmp_path / "profile_1.json").exists()


class FakeEvent:
    """Reached a millisecond after the one before; the longer apart two are, the less exact is what lies between."""

    made: ClassVar[list[FakeEvent]] = []

    def __init__(self) -> None:
        self.waits = 0
        self.made.append(self)

    def record(self) -> None:
        self.at_ms = float(len(self.made))

    def synchronize(self) -> None:
        self.waits += 1

    def elapsed_time(self, end_event: FakeEvent) -> float:
        assert end_event.at_ms - self.at_ms == 1.0
        return 1.0


def test_on_a_gpu_a_peers_steps_are_timed_by_events_and_nobody_waits_before_the_end() -> None:
    clock = StepClock("cuda:0", FakeEvent)
    for _ in range(4):
        clock.tick()
    assert len(FakeEvent.made) == 5 and not any(event.waits for event in FakeEvent.made)
    ends_ns = clock.ends_ns()
    assert [event.waits for event in FakeEvent.made] == [0, 0, 0, 0, 1]
    assert [b - a for a, b in itertools.pairwise(ends_ns)] == [10**6] * 3 and len(ends_ns) == 4


def test_a_peer_pays_for_no_more_than_our_modules_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``deterministic``, which by default has torch fill all memory that is not yet written."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    task = PeerTask(
        "plain", tiny_config("bp", 1, deterministic=True), sample=SampleSpec(SHAPE, NUM_CLASSES), num_processes=1,
        threads=1, num_steps=1, store_port=None,
    )  # fmt: skip
    threads = torch.get_num_threads()
    try:
        task.run(Reporter(ListConnection(), [-1]))  # type: ignore[arg-type]
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("peer", "cuts", "num_microbatches"),
    [
        ("gpipe", [3], 1),
        ("gpipe", [3], 4),
        ("1f1b", [3], 4),
        ("zero_bubble", [3], 4),
        ("interleaved", [1, 3, 5], 4),
    ],
)
def test_a_pipeline_of_its_own_equals_adding_up_micro_batches(
    peer: str, cuts: list[int], num_microbatches: int, tmp_path: Path
) -> None:
    losses, tasks = run_peer(peer, tmp_path, 2, cuts=cuts, num_microbatches=num_microbatches)
    assert losses == plain_losses(tasks[0].batches(), num_microbatches)


def test_ddp_of_its_own_equals_adding_up_the_shares(tmp_path: Path) -> None:
    losses, tasks = run_peer("ddp", tmp_path, 2)
    torch.testing.assert_close(losses, plain_losses(tasks[0].batches(), 2), rtol=1e-6, atol=1e-6)


# As methods of `train`


class MicroBatched:
    """The reference: the tiny run in one process, in plain PyTorch, with gradients added up over micro-batches."""

    def __init__(self, config: dict[str, Any], num_microbatches: int) -> None:
        self.reference = Reference(config, [])
        self.errors: list[float] = []
        network, optimizer = self.reference.w[1], self.reference.optimizers[0]
        for t in range(self.reference.T):
            x, y = self.reference.images.batch(t), self.reference.labels.batch(t)
            logits = [network(each) for each in x.chunk(num_microbatches)]
            parts = [
                F.cross_entropy(each, labels, reduction="sum") / len(x)
                for each, labels in zip(logits, y.chunk(num_microbatches), strict=True)
            ]
            for part in parts:
                part.backward()
            optimizer.param_groups[0]["lr"] = self.reference.lr(t)
            optimizer.step()
            optimizer.zero_grad()
            self.reference.losses.append(torch.stack(parts).sum().item())
            self.errors.append((torch.cat(logits).argmax(dim=1) != y).sum().item() / len(x))

    def assert_equals(self, result: Result) -> None:
        """Every logged loss and error, weight and batch-norm buffer, bit for bit."""
        assert result.losses == self.reference.losses
        assert [record["error"] for record in result.of("train")] == self.errors
        weights = self.reference.weights()
        assert result.weights.keys() == weights.keys()
        for name, value in result.weights.items():
            assert torch.equal(value, weights[name]), f"{name} differs"


DROPOUT = {"_target_": "tiny_models.residual", "name": "tiny", "dropout": 0.3}


@pytest.mark.parametrize("method", ["gpipe", "1f1b", "zero_bubble"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"_target_": "tiny_models.faulty", "name": "faulty"},
            r"ArithmeticError: the bug in .* \(.*tiny_models.py:\d+",
        ),
        ({"_target_": "tiny_models.bad_day", "name": "bad", "what": "torch", "at": 9}, "ran out of memory in step"),
    ],
)
def test_what_a_block_raises_in_a_pipeline_is_the_first_cause(
    method: str, model: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Torch puts an error of its own around it, which names a stage and shapes."""
    with pytest.raises(RunFailed, match=rf"^module \d .*{message}"):
        run_training(tiny_config(method, 2, "auto", method={"microbatches": 2}, model=model), tmp_path)


def test_gpipe_with_one_micro_batch_is_bp_with_its_dropout(tmp_path: Path) -> None:
    config = tiny_config("gpipe", 2, "auto", method={"microbatches": 1}, model=DROPOUT)
    bp = run_serial(tiny_config("bp", 1, model=DROPOUT), tmp_path / "bp")
    assert_same(run_processes(config, tmp_path / "gpipe"), bp)


def test_every_micro_batch_draws_random_numbers_of_its_own() -> None:
    pipeline = GPipe.__new__(GPipe)
    pipeline.module = SimpleNamespace(watch=Stopwatch())  # type: ignore[assignment]
    pipeline._network, pipeline._num_microbatches = SimpleNamespace(key=None), 4  # type: ignore[assignment]
    keys = []
    for pipeline._t in range(3):
        for microbatch in range(4):
            with pipeline._observe("play", microbatch):
                keys.append(pipeline._network.key)
    assert keys == list(range(12))


@pytest.mark.parametrize(
    ("method", "k", "num_microbatches"),
    [
        ("gpipe", 2, 4),
        ("1f1b", 2, 8),
        ("1f1b", 3, 4),
        ("zero_bubble", 3, 8),
        ("gpipe", 1, 2),
    ],
)
def test_a_pipeline_equals_adding_up_micro_batches(method: str, k: int, num_microbatches: int, tmp_path: Path) -> None:
    config = tiny_config(method, k, "auto", method={"microbatches": num_microbatches})
    result = run_processes(config, tmp_path)
    MicroBatched(config, num_microbatches).assert_equals(result)
    accounts = [record for record in result.of("memory") if record["step"] == 10]
    assert [account["module"] for account in accounts] == list(range(1, k + 1))
    for account in accounts:
        assert account["activations"] > 0
        if method == "zero_bubble":
            assert "predicted" not in account
            continue
        assert_as_predicted(account, config)
    times = [record for record in result.of("time") if record["step"] == 10]
    assert all(record["play_s"] > 0 and record["learn_s"] > 0 and record["wait_s"] > 0 for record in times)
    assert all(0 < record["efficiency"] <= 1 for record in times)


def assert_as_predicted(account: dict[str, Any], config: dict[str, Any]) -> None:
    """To the byte: of one micro-batch's labels, which are a view, those of the batch are kept."""
    name, num_microbatches, k = config["method"]["name"], config["method"]["microbatches"], account["module"]
    # Before torch 2.13 module K-1 holds a message to the top, which is on its way, for longer.
    is_sending = torch.__version__ < (2, 13) and name == "1f1b" and k == config["k"] - 1
    late = 4 * 8 * 8 * 8 * config["batch_size"] // num_microbatches if is_sending else 0  # bytes
    for category in CATEGORIES:
        expected = account[f"predicted_{category}"] + (late if category == "activations" else 0)
        assert account[category] == expected, (k, category)


@pytest.mark.parametrize("method", ["gpipe", "1f1b"])
def test_a_pipeline_whose_messages_its_graphs_save_holds_what_is_predicted(method: str, tmp_path: Path) -> None:
    """Both messages come out of a ReLU; those of the other tests out of a sum, which saves nothing."""
    config = tiny_config(method, 3, "auto", model=WITHOUT_NORM, partition=[1, 2], epochs=1)
    accounts = [record for record in run_processes(config, tmp_path).of("memory") if record["step"] == 5]
    assert [account["module"] for account in accounts] == [1, 2, 3]
    for account in accounts:
        assert_as_predicted(account, config)


def test_1f1b_holds_fewer_graphs_than_gpipe(tmp_path: Path) -> None:
    """K = 2, M = 8: K-k+1 micro-batches instead of 8, by measurement; zero bubble lies between."""
    held = {}
    for method in ("gpipe", "1f1b", "zero_bubble"):
        config = tiny_config(method, 2, "gloo", method={"microbatches": 8}, epochs=1)
        accounts = run_processes(config, tmp_path / method).of("memory")
        held[method] = [account["activations"] for account in accounts if account["step"] == 5]
    assert held["1f1b"][1] == pytest.approx(held["gpipe"][1] / 8, rel=0.02)
    assert held["1f1b"][0] < held["gpipe"][0] / 2
    assert all(
        least <= some < most for least, some, most in zip(held["1f1b"], held["zero_bubble"], held["gpipe"], strict=True)
    )


def test_a_gradient_that_is_not_contiguous_reaches_the_module_below(tmp_path: Path) -> None:
    config = tiny_config("1f1b", 2, "gloo", model=WITHOUT_NORM, epochs=1)
    MicroBatched(config, 4).assert_equals(run_processes(config | {"partition": [2]}, tmp_path))


@pytest.mark.parametrize("peer", ["ddp", "1f1b"])
def test_peers_smooth_labels_as_bp_does(peer: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model": WITHOUT_NORM, "label_smoothing": 0.2, "precision": "fp64"}
    bp = run_serial(tiny_config("bp", 1, **changes), tmp_path / "bp")
    assert_close(run_processes(tiny_config(peer, 2, "gloo", **changes), tmp_path / "peer"), bp)


def test_ddp_without_batch_norm_is_bp(tmp_path: Path) -> None:
    changes = {"model": WITHOUT_NORM, "precision": "fp64", "log_every": 2, "dataset": {"validation": 4, "num_test": 23}}
    bp = run_serial(tiny_config("bp", 1, **changes), tmp_path / "bp")
    ddp = run_processes(tiny_config("ddp", 2, "auto", **changes), tmp_path / "ddp")
    for ours, theirs in ((ddp.losses, bp.losses), (ddp.evaluations, bp.evaluations)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert ddp.weights.keys() == bp.weights.keys()
    for name, value in ddp.weights.items():
        torch.testing.assert_close(value, bp.weights[name], rtol=1e-12, atol=1e-12, msg=f"{name} differs")


def test_ddp_with_batch_norm_leaves_all_that_a_run_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config("ddp", 2, "gloo", model=DROPOUT)
    result = run_processes(config, tmp_path)
    assert [record["step"] for record in result.of("train")] == list(range(1, 11))
    assert result.weights["block1.norm.num_batches_tracked"] == 10, "training alone moves the statistics"
    accounts = [record for record in result.of("memory") if record["step"] == 10]
    assert [account["module"] for account in accounts] == [1, 2]
    for account in accounts:
        for category in CATEGORIES:
            assert account[category] == account[f"predicted_{category}"], category
    times = result.of("time")
    assert {record["module"] for record in times} == {1, 2}
    assert all("wait_s" not in record and "efficiency" not in record for record in times)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["waiting_share"] == [None, None] and summary["cuts"] == [] and summary["k"] == 2
    assert main(["eval", str(tmp_path), "--json", "--trust"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["test_error"] == result.of("eval")[-1]["test_error"]


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("gpipe", {"method": {"microbatches": 3}}, "method.microbatches=3: must divide batch_size=8"),
        ("gpipe", {"method": {"microbatches": 0}}, "method.microbatches=0: must be a number of at least 1"),
        (
            "1f1b",
            {"k": 4, "method": {"microbatches": 2}},
            "method.microbatches=2: 1f1b needs at least as many micro-batches as processes, 4",
        ),
        ("zero_bubble", {"method": {"microbatches": 1}}, "at least as many micro-batches as processes"),
        ("zero_bubble", {"batch_size": 10, "method": {"microbatches": 5}}, "take a multiple of 2"),
        ("zero_bubble", {"memory_limit_gb": 1.0}, "memory_limit_gb=1: the memory of method=zero_bubble is not"),
        ("gpipe", {"transport": "serial"}, "transport=serial: the method's messages are carried by a library"),
        ("ddp", {"transport": "ipc"}, "transport=ipc: the method's messages are carried by a library"),
        ("ddp", {"k": 3}, "batch_size=8: cannot be shared equally by the k=3 processes of method=ddp"),
        ("ddp", {"freeze": [1]}, "freeze=[1]: every process of method=ddp has the whole network"),
        ("ddp", {"module_lr": [2.0, 1.0]}, "module_lr=[2.0, 1.0]: every process of method=ddp"),
        ("ddp", {"partition": [3]}, "partition=[3]: every process of method=ddp has the whole network"),
        ("ddp", {"diagnostics": {"sigma": {"every": 2, "window": 1}}}, "diagnostics.sigma.every=2: every process"),
    ],
)
def test_what_a_peer_cannot_do_is_refused_before_anything_starts(
    method: str, changes: dict[str, Any], words: str
) -> None:
    config = tiny_config(method, **{"k": 2, "transport": "auto", **changes})
    with pytest.raises(ConfigError, match=re.escape(words)):
        make_plan(config)


@pytest.mark.parametrize("method", ["1f1b", "ddp"])
def test_a_killed_process_is_the_first_cause_by_name(method: str, tmp_path: Path) -> None:
    model = {"_target_": "tiny_models.killed", "name": "killed", "at": 30}
    with pytest.raises(RunFailed, match="module 2 was killed by SIGKILL") as failure:
        run_processes(tiny_config(method, 2, "auto", model=model, epochs=200), tmp_path)
    assert failure.value.module == 2 and failure.value.exit_code == 1
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["module"], status["exit_code"]) == ("failed", 2, 1)


@pytest.mark.parametrize("method", PEERS)
def test_a_plan_predicts_what_the_policy_tells(method: str) -> None:
    plan = make_plan(tiny_config(method, 2, "gloo", partition="auto"))
    policy = check_method(plan.config["method"])[0].policy()
    assert plan.num_parts == policy.num_microbatches and plan.num_replicas == (2 if method == "ddp" else 1)
    assert all(bool(found) == policy.is_predictable for found in plan.predicted_memory)
    assert [each["batch_delay"] for each in plan.staleness] == [0, 0]


@pytest.mark.parametrize(("method", "k"), [("1f1b", 2), ("ddp", 3)])  # sums of two have no order
def test_a_peer_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(method: str, k: int, tmp_path: Path) -> None:
    config = tiny_config(method, k, "gloo", batch_size=12, checkpoint={"every": 3})
    whole = run_processes(config | {"max_steps": 7}, tmp_path / "whole")
    run_processes(config | {"max_steps": 4}, tmp_path / "first")
    rest = run_processes(config | {"max_steps": 7, "resume": str(tmp_path / "first")}, tmp_path / "rest")
    assert rest.losses == whole.losses and rest.evaluations[-1] == whole.evaluations[-1]
    assert rest.weights.keys() == whole.weights.keys()
    assert all(torch.equal(value, whole.weights[name]) for name, value in rest.weights.items())


def test_a_dry_run_tells_a_pipelines_time_and_why_zero_bubbles_memory_is_not_predicted() -> None:
    text = report(tiny_config("zero_bubble", 2, "auto", memory_limit_gb=None))
    assert "what the method keeps depends on more than its policy tells" in text
    assert "predicted time" in text and "a micro-batch is taken to cost its share of the batch" in text


def test_the_sufficient_direction_of_a_pipeline_is_that_of_bp(tmp_path: Path) -> None:
    """Without batch norm a sum over micro-batches is the gradient of the batch."""
    changes = {"model": WITHOUT_NORM, "precision": "fp64", "diagnostics": {"sigma": {"every": 2, "window": 1}}}
    result = run_processes(tiny_config("1f1b", 2, "auto", trace=2, **changes), tmp_path)
    assert {record["module"] for record in result.of("sigma")} == {0, 1, 2}
    assert all(record["sigma"] == pytest.approx(1, abs=1e-12) for record in result.of("sigma"))
    names = {event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"play", "backward", "loss", "step", "wait neighbours"} <= names
