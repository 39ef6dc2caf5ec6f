"""D replicas of K modules: the same numbers as one network that sees the whole batch, resumed and accounted for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import (
    METHODS,
    WITHOUT_NORM,
    assert_close,
    assert_same_run,
    read_records,
    run_processes,
    run_serial,
    tiny_config,
)
from safetensors.torch import save_file

from fr_bench.checkpoints.files import Checkpoint, state_file, weights_file
from fr_bench.errors import ConfigError, Interrupted, RunFailed
from fr_bench.launching.launch import run_training
from fr_bench.modules.meter import LossMeter
from fr_bench.modules.module import BatchResult
from fr_bench.planning.plan import make_plan
from fr_bench.transport.replicas import BUCKET_BYTES, Replicas
from fr_bench.workers.resumption import Resumption, restore
from fr_bench.workers.worker import build_modules

# 1.2 MB of weights in a layer: several buckets in every module.
SEVERAL_BUCKETS = WITHOUT_NORM | {"width": 128, "depth": 4}


def config_of(method: str, k: int, transport: str, **changes: Any) -> dict[str, Any]:
    """In float64, with a learning rate at which the weights move far, and without batch norm, which normalises over a
    replica's share: so the numbers are those of one network."""
    settings: dict[str, Any] = {"model": WITHOUT_NORM, "precision": "fp64", "optimizer": {"lr": 0.5}}
    config = tiny_config(method, k, transport, **(settings | changes))
    if method in ("dni", "cdni"):
        config["method"]["num_hidden"] = 0  # its hidden layers have batch norm
    if method == "dgl":
        config["method"] |= {"num_convolutions": 0, "num_hidden": 0}  # likewise
    return config


@pytest.mark.parametrize(
    ("method", "k", "replicas", "transport", "model"),
    [
        *[(method, 2, 2, "ipc", WITHOUT_NORM) for method in METHODS],
        ("fr", 2, 2, "gloo", SEVERAL_BUCKETS),
        ("ddg", 2, 2, "gloo", SEVERAL_BUCKETS),
        ("bp", 1, 4, "gloo", WITHOUT_NORM),
    ],
)
def test_replicas_with_a_part_of_the_batch_are_one_with_all_of_it(
    method: str, k: int, replicas: int, transport: str, model: dict[str, Any], tmp_path: Path
) -> None:
    one = run_serial(config_of(method, k, transport, model=model), tmp_path / "one")
    several = run_processes(config_of(method, k, transport, model=model, replicas=replicas), tmp_path / "several")
    assert_close(several, one)


def test_what_a_method_measures_is_of_the_images_of_each(tmp_path: Path) -> None:
    one = run_processes(config_of("dgl", 2, "gloo"), tmp_path / "one").of("method")
    several = run_processes(config_of("dgl", 2, "gloo", replicas=2), tmp_path / "several").of("method")
    assert [record["module"] for record in several] == [1, 3] * len(one)
    for field in ("auxiliary_loss", "auxiliary_error"):
        means = [(a[field] + b[field]) / 2 for a, b in zip(several[::2], several[1::2], strict=True)]
        assert means == pytest.approx([record[field] for record in one], abs=1e-12)
        assert several[0][field] != several[1][field]


@pytest.mark.parametrize(("kind", "method"), [("Compensated", "ddg"), ("Doubled", "fr")])
def test_methods_that_change_gradients_do_so_to_those_of_all_replicas(kind: str, method: str, tmp_path: Path) -> None:
    def config_with(replicas: int, **settings: Any) -> dict[str, Any]:
        config = config_of(method, 2, "gloo", replicas=replicas)
        config["method"] |= {"_target_": f"tiny_methods.{kind}", "name": kind, **settings}
        return config

    one = run_serial(config_with(1, sums=False), tmp_path / "one")
    two = run_processes(config_with(2, sums=True), tmp_path / "two")
    assert_close(two, one)
    plain = run_serial(config_of(method, 2, "gloo"), tmp_path / "plain")
    assert plain.losses != one.losses
    with pytest.raises(RunFailed, match=r"gradients.*self\.module\.sum_gradients\(t\) first"):
        run_processes(config_with(2, sums=False), tmp_path / "wrong")


def test_what_a_method_trains_beside_a_module_must_stay_the_same_in_all_replicas(tmp_path: Path) -> None:
    config = config_of("bp", 2, "gloo", replicas=2)
    config["method"] = {"_target_": "tiny_methods.Accompanied", "name": "accompanied", "sums": True}
    run_processes(config, tmp_path / "right")
    config["method"]["sums"] = False
    with pytest.raises(RunFailed, match=r"beside module 1 .* in all replicas: .*self\.module\.replicas\.add_up\("):
        run_processes(config, tmp_path / "wrong")


def test_the_cuts_of_several_are_those_of_one() -> None:
    """Though what does not fit into the cache with a whole batch may do so with a part of it."""
    model = {"_target_": "fr_bench.models.preactivation.resnet", "name": "resnet20", "depth": 20, "norm": "group"}
    images = {"height": 32, "width": 32, "num_train": 128}
    for method in ("fr", "ddg"):
        changes = {"model": model, "dataset": images, "batch_size": 64, "partition": "auto"}
        plans = [make_plan(tiny_config(method, 4, "gloo", replicas=replicas, **changes)) for replicas in (1, 2, 4)]
        assert plans[0].cuts == plans[1].cuts == plans[2].cuts
        one, two = (sum(plan.predicted_memory[0][kind] for kind in ("history", "activations")) for plan in plans[:2])
        assert two < 0.6 * one  # memory is that of its share


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "fr_bench.models.basic.resnet", "name": "resnet20_basic", "depth": 20, "norm": "group"},
        {"_target_": "fr_bench.models.preactivation.resnet", "name": "resnet20", "depth": 20, "norm": "none"},
        {"_target_": "fr_bench.models.mlp.mlp", "name": "mlp", "norm": "none"},
    ],
    ids=lambda model: f"{model['name']} {model['norm']}",
)
def test_so_are_our_own_models_without_batch_norm(model: dict[str, Any], tmp_path: Path) -> None:
    changes = {"model": model, "optimizer": {"lr": 0.02}}
    one = run_serial(config_of("fr", 2, "gloo", **changes), tmp_path / "one")
    two = run_processes(config_of("fr", 2, "gloo", replicas=2, **changes), tmp_path / "two")
    assert_close(two, one)


def test_a_clipped_gradient_is_that_of_all_replicas(tmp_path: Path) -> None:
    one = run_serial(config_of("fr", 2, "gloo", clip_norm=0.05), tmp_path / "one")
    two = run_processes(config_of("fr", 2, "gloo", clip_norm=0.05, replicas=2), tmp_path / "two")
    free = run_serial(config_of("fr", 2, "gloo"), tmp_path / "free")
    assert two.losses == pytest.approx(one.losses, abs=1e-12) and two.losses != pytest.approx(free.losses, abs=1e-6)


def test_so_is_that_of_a_synthesizer(tmp_path: Path) -> None:
    def config_with(replicas: int, clip_norm: float) -> dict[str, Any]:
        config = config_of("dni", 2, "gloo", replicas=replicas)
        config["method"]["clip_norm"] = clip_norm
        return config

    one = run_serial(config_with(1, 1e-3), tmp_path / "one")
    two = run_processes(config_with(2, 1e-3), tmp_path / "two")
    assert_close(two, one)
    assert run_serial(config_with(1, 1.0), tmp_path / "free").losses != pytest.approx(one.losses, abs=1e-9)


def test_sigma_is_that_of_all_replicas(tmp_path: Path) -> None:
    changes = {"diagnostics": {"sigma": {"every": 3, "window": 2}}}
    one = run_processes(config_of("fr", 2, "gloo", **changes), tmp_path / "one").of("sigma")
    two = run_processes(config_of("fr", 2, "gloo", replicas=2, **changes), tmp_path / "two").of("sigma")
    assert len(one) == len(two) > 0
    for ours, theirs in zip(two, one, strict=True):
        for key in ("sigma", "cosine", "norm_ratio"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-9), (ours, theirs)


def test_each_draws_random_numbers_of_its_own(tmp_path: Path) -> None:
    """Of two replicas that saw the same images, dropout would otherwise make one network."""
    dropout = {"_target_": "tiny_models.residual", "name": "tiny", "dropout": 0.5}
    plan = make_plan(tiny_config("fr", 2, "gloo", model=dropout, replicas=2))
    below, other = build_modules(plan, [1])[0], build_modules(plan, [3])[0]
    x = torch.ones(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    first, again, second = below.play(x, 5).h, below.play(x, 5).h, other.play(x, 5).h
    assert torch.equal(first, again) and not torch.equal(first, second)
    streams = [module.stream(batch) for module in (below, other) for batch in range(10)]
    assert len(set(streams)) == 20


def test_settings_of_a_module_are_those_of_its_replicas() -> None:
    plan = make_plan(tiny_config("fr", 2, "gloo", replicas=2, freeze=[1], module_lr=[1, 3]))
    modules = build_modules(plan, [1, 2, 3, 4])
    assert [module.frozen for module in modules] == [True, False, True, False]
    assert [module.lr_multiplier for module in modules] == [1.0, 3.0, 1.0, 3.0]


@pytest.mark.parametrize("method", ["fr", "ddg"])
def test_records_and_memory_are_by_number(method: str, tmp_path: Path) -> None:
    """Module k of replica d is number (d - 1) K + k, and what it holds is as predicted."""
    result = run_processes(tiny_config(method, 2, "ipc", replicas=2, epochs=1), tmp_path)
    memory = result.of("memory")
    assert sorted(record["module"] for record in memory) == [1, 2, 3, 4]
    assert [record["module"] for record in result.of("time")] == [1, 2, 3, 4]
    assert len(result.of("eval")) == 1 and result.of("train")[-1]["images_per_s"] > 0
    one = run_processes(tiny_config(method, 2, "ipc", epochs=1), tmp_path / "one").of("memory")
    for record in memory:
        for category in ("gradients", "optimizer", "history", "stash", "buffers"):
            assert record[category] == record[f"predicted_{category}"], (category, record)
        alone = one[(record["module"] - 1) % 2]
        # Half of the messages between neighbours, and a place for the sum of the gradients.
        assert record["buffers"] == alone["buffers"] / 2 + alone["gradients"]
        assert record["history"] == alone["history"] / 2 and record["stash"] == alone["stash"]


def test_stopped_and_started_again_they_are_the_run_left_alone(tmp_path: Path) -> None:
    """The word to pause reaches replicas whose modules hear nothing of replica 1 otherwise."""
    config = tiny_config("fr", 2, "gloo", replicas=2, epochs=24, eval_every=8, checkpoint={"every": 7})
    run_training(config, tmp_path / "alone")
    stopped = 0
    for minutes in (0.0001, 0.01):
        with pytest.raises(Interrupted, match="stopped by max_time"):
            run_training(config | {"max_time": minutes}, tmp_path / "run")
        steps = [record["step"] for record in read_records(tmp_path / "run")]
        assert max(steps) > stopped
        stopped = max(steps)
    run_training(config, tmp_path / "run")
    assert stopped < 120
    assert_same_run(tmp_path / "alone", tmp_path / "run")


def test_a_run_may_go_on_with_other_replicas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_training(config_of("fr", 2, "gloo", replicas=2, epochs=1, checkpoint={"every": 5}), tmp_path / "two")
    config = config_of("fr", 2, "gloo", epochs=2, resume=str(tmp_path / "two"))
    run_training(config, tmp_path / "one")
    said = capsys.readouterr().err
    assert "That run had k=2, replicas=2" in said and "begins anew with k=2, replicas=1" in said
    epochs = [record for record in read_records(tmp_path / "one") if record["kind"] == "eval"]
    assert [record["step"] for record in epochs] == [5, 10]
    alone = run_processes(config_of("fr", 2, "gloo", replicas=2, epochs=1), tmp_path / "alone").of("eval")
    assert epochs[0]["train_loss"] == pytest.approx(alone[0]["train_loss"], abs=1e-12)  # both halves count


def test_of_statistics_that_replicas_have_each_those_of_the_first_go_on(tmp_path: Path) -> None:
    (module,) = build_modules(make_plan(tiny_config("bp", 1)), [1])
    for number in (1, 2):
        weights = {
            name: torch.full_like(each, number).contiguous() for name, each in module.network.state_dict().items()
        }
        save_file(weights, tmp_path / weights_file(number))
        torch.save({"optimizer": {}, "meter": None}, tmp_path / state_file(number))
    manifest = {"step": 5, "k": 1, "replicas": 2, "modules": [{}, {}]}
    trainer: Any = SimpleNamespace(
        players=[SimpleNamespace(module=module)], meter=None, direction=None, load_state_dict=lambda *_: None
    )
    restore(trainer, Resumption(Checkpoint(tmp_path, manifest), is_exact=False))
    assert all(bool((value == 1).all()) for value in module.network.state_dict().values())


def test_what_other_replicas_summed_is_shared_by_those_that_go_on() -> None:
    """Losses and errors of three shares of two batches, taken over by two replicas."""
    states, meters = [], []
    for share in (1.0, 2.0, 3.0):
        meter = LossMeter(torch.device("cpu"), 8)
        for _ in range(2):
            meter.add(BatchResult(torch.tensor(share), torch.tensor(1)))
        states.append(meter.state_dict())
    for _ in range(2):
        meters.append(LossMeter(torch.device("cpu"), 8, lambda own: 2 * own))
        meters[-1].load_sum(states, num_shares=2)
    assert [meter.take("epoch") for meter in meters] == [(6.0, 3 / 8)] * 2


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("fr", {"batch_size": 9}, "batch_size=9: cannot be shared equally by replicas=2; use a multiple of 2"),
        ("fr", {"transport": "serial"}, "transport=serial: one process does not share a batch"),
        ("ddp", {}, "replicas=2: method=ddp brings its own way"),
        ("gpipe", {}, "replicas=2: method=gpipe brings its own way"),
    ],
)
def test_what_cannot_be_had_is_refused(method: str, changes: dict[str, Any], message: str) -> None:
    transport = changes.pop("transport", "gloo")
    with pytest.raises(ConfigError, match=message):
        make_plan(tiny_config(method, 2, transport, replicas=2, **changes))


def test_gradients_travel_in_buckets_from_the_last_parameter_on(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sizes = [10, BUCKET_BYTES // 4, 3, BUCKET_BYTES // 8, BUCKET_BYTES // 8, 5]
        parameters = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
        parameters[2].requires_grad_(False)
        replicas = Replicas(dist.group.WORLD, parameters)
        replicas.listen(parameters)
        assert replicas.buffer_bytes == 4 * (sum(sizes) - 3)
        buckets = [sorted(bucket.slots) for bucket in replicas._buckets]  # numbered without the one that is not trained
        assert buckets == [[2, 3, 4], [1], [0]]
        for scale in (1.0, 2.0):  # the second time too
            sum(scale * p.sum() for p in parameters[1:]).backward()  # the first is not used
            assert replicas._num_sent == 2, "what is complete is on its way before the backward ends"
            replicas.finish_sum()
            assert all(torch.all(p.grad == scale) for p in parameters[1:] if p.requires_grad)
            assert parameters[0].grad is None
            for parameter in parameters:
                parameter.grad = None
        replicas.finish_sum()  # nothing to wait for
    finally:
        dist.destroy_process_group()


def test_a_gradient_that_only_another_replica_has_is_everyones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the second time, when the buckets hold the sums of the first."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        a, b, c = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
        theirs, ours = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)], [a, b, c]
        there, here = Replicas(dist.group.WORLD, theirs), Replicas(dist.group.WORLD, ours)
        there.listen(theirs)
        here.listen(ours)

        def add_theirs(own: torch.Tensor) -> dist.Work | None:
            return dist.all_reduce(own.add_(there._buckets[0].buffer), async_op=True)

        monkeypatch.setattr(here, "_reduce", add_theirs)
        for _ in range(2):
            (2 * theirs[0] + 3 * theirs[1]).sum().backward()
            there.end_backward()
            b.sum().backward()
            here.end_backward()
            here.finish_sum()
            assert torch.equal(a.grad, torch.full((2,), 2.0)) and torch.equal(b.grad, torch.full((2,), 4.0))
            assert c.grad is None  # nobody's graph uses it
            there.finish_sum()
            for parameter in (*theirs, *ours):
                parameter.grad = None
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("method", "k"), [("fr", 2), ("ddg", 2), ("dgl", 4)])
def test_blocks_that_the_images_of_one_skip_learn_from_those_of_the_others(method: str, k: int, tmp_path: Path) -> None:
    """In DGL also where a module is skipped whole. Replicas that drift apart end a run at its evaluation."""
    model = {"_target_": "tiny_models.layer_drop", "name": "drop", "of": "torch"}
    partition = [2, 3, 4] if k == 4 else [3]
    config = tiny_config(method, k, "gloo", model=model, replicas=2, partition=partition)
    assert len(run_processes(config, tmp_path).losses) == 10


def test_a_second_backward_before_the_step_is_refused(tmp_path: Path) -> None:
    """Its gradients would be sums over the replicas of neither."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        weight = torch.ones(2, requires_grad=True)
        replicas = Replicas(dist.group.WORLD, [weight])
        replicas.listen([weight])
        for _ in range(2):
            weight.sum().backward()
            replicas.finish_sum()
        weight.sum().backward()
        with pytest.raises(RunFailed, match="a method with several backwards a step needs replicas=1"):
            weight.sum().backward()
    finally:
        dist.destroy_process_group()


def test_such_a_run_is_evaluated_drawn_and_put_into_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fr_bench.cli import main

    run = tmp_path / "run"
    words = ["method=fr", "model=mlp", "dataset=digits", "k=2", "replicas=2", "epochs=1", "threads=1"]
    assert main(["train", *words, "wandb.mode=disabled", "console=off", f"run_dir={run}"]) == 0
    last = [record for record in read_records(run) if record["kind"] == "eval"][-1]
    assert main(["eval", str(run), "--k", "1"]) == 0
    assert f"test error {100 * last['test_error']:.1f} %" in capsys.readouterr().out
    assert main(["report", str(run), "--out", str(tmp_path / "tables")]) == 0
    table = (tmp_path / "tables" / "report.md").read_text()
    assert "peak, module 4" in table
    row = next(line for line in reversed(table.splitlines()) if line.startswith("| FR"))
    accounted, predicted = (cell.strip() for cell in row.split("|")[-3:-1])
    assert accounted == predicted and accounted.endswith("MiB")
    assert main(["plot", str(run), "--out", str(tmp_path / "figures")]) == 0
