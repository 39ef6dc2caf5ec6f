"""dry_run=true: what it tells about a run, and that it leaves nothing behind."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from harness import PEERS, call, read_records, tiny_config, train_here

from fr_bench.bench import time_prediction
from fr_bench.bench.time_prediction import TimePrediction, predict_time
from fr_bench.commands.dry_run import report, time_lines
from fr_bench.errors import ConfigError
from fr_bench.planning.costs import NetworkCosts
from fr_bench.planning.environment import usable_cores
from fr_bench.planning.measured_costs import MeasuringTask, cache_folder, measured_costs
from fr_bench.planning.memory_table import memory_table
from fr_bench.planning.plan import Plan, make_plan


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One for all tests here, so that what was measured once is not measured again."""
    folder = tmp_path_factory.getbasetemp() / "dry_run_cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def costs_of(plan: Plan) -> NetworkCosts:
    """What the prediction of ``plan`` was made from, out of the cache."""
    has_companion = plan.k > 1 and plan.config["method"]["name"] in ("dni", "cdni", "dgl")
    task = MeasuringTask.of(plan.config, plan.sample, "cpu", plan.threads, len(plan.block_names), has_companion)
    return measured_costs(task, "dry_run=true")


def predicted(method: str, k: int, transport: str = "serial", **changes: Any) -> tuple[Plan, TimePrediction]:
    plan = make_plan(tiny_config(method, k, transport, **changes))
    time = predict_time(plan)
    assert time is not None
    return plan, time


# --- the command


def test_it_tells_cuts_memory_transport_and_time_and_leaves_nothing(tmp_path: Path) -> None:
    done = call(tmp_path, "train", "debug=fast", "k=2", "partition=[2]", "dry_run=true", "run_dir=run")
    assert done.returncode == 0, done.stderr
    for part in (
        "dry run of fr, K = 2, mlp on digits: nothing is trained",
        "2 modules, cut after block 2, on cpu, cpu",
        "transport serial",
        "predicted memory",
        "history",
        "a step",
        "an epoch",
        "uncontended",
    ):
        assert part in done.stdout, part
    assert not list(tmp_path.iterdir())


def test_it_says_when_the_costs_were_measured_and_what_to_delete_for_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = tiny_config("fr", 2)
    report(config)
    [path] = cache_folder().iterdir()
    costs = json.loads(path.read_text())
    path.write_text(json.dumps(costs | {"measured_at": datetime(2020, 2, 3, 4, 5).timestamp()}))
    assert f"on 2020-02-03 04:05; kept in {cache_folder()} until you delete them" in report(config)
    path.unlink()
    assert "2020-02-03" not in report(config)


def test_it_says_which_modules_would_never_learn_and_so_does_the_run(tmp_path: Path) -> None:
    words = ("train", "debug=fast", "k=3", "max_steps=2", "run_dir=run", "console=off")
    line = "module 1 never learns: module k of 3 learns from step 3-k+1 on, and the run has 2; "
    assert line in call(tmp_path, *words, "dry_run=true").stdout
    assert f"fr-bench: {line}" in call(tmp_path, *words).stderr


@pytest.mark.parametrize(("trace", "num_profiled"), [(0, 10), (4, 4), (50, 0)])
def test_it_says_where_a_run_is_too_short_to_be_profiled(trace: int, num_profiled: int) -> None:
    plan = make_plan(tiny_config("fr", 3, profile=50, trace=trace))
    (said,) = plan.warnings
    assert said.startswith(f"profile=50: but {num_profiled} of the run's 10 steps are profiled;")
    assert not make_plan(tiny_config("fr", 3, profile=num_profiled, trace=trace)).warnings


@pytest.mark.parametrize(("method", "first"), [("bp", 1), ("fr", 3)])
def test_it_says_where_a_run_is_too_short_for_a_window_of_sigma(method: str, first: int, tmp_path: Path) -> None:
    config = tiny_config(method, 3, diagnostics={"sigma": {"every": 500, "window": 12 - first}})  # of 10 steps
    (said,) = make_plan(config).warnings
    assert said.startswith(
        f"diagnostics.sigma.window={12 - first}: but none is measured; the first, from step {first} on"
    )
    assert said.endswith("would end with step 11, and the run has 10.")
    config["diagnostics"]["sigma"]["window"] -= 1
    assert not make_plan(config).warnings
    train_here(config, tmp_path)
    assert [record["step"] for record in read_records(tmp_path) if record["kind"] == "sigma"] == [10] * 4


def test_a_sweep_has_a_report_for_every_job_and_no_folder(tmp_path: Path) -> None:
    done = call(tmp_path, "train", "-m", "debug=fast", "dry_run=true", "method=bp,fr", "k=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nothing is trained") == 2
    assert [line for line in done.stdout.splitlines() if line.startswith("job ")] == [
        f"job {number}: debug=fast dry_run=True method={method} k=2" for number, method in enumerate(["bp", "fr"])
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["dry_run=true", "k=99"], "k=99"),
        (["dry_run=maybe"], "true or false"),
        (["-m", "dry_run=true,false"], "dry_run=true,false: cannot be swept"),
        (["dry_run=true", "run_dir=/dev/null/run"], "cannot make the folder"),
    ],
)
def test_a_mistake_is_found_as_if_it_were_to_train(words: list[str], named: str, tmp_path: Path) -> None:
    done = call(tmp_path, "train", "debug=fast", *words)
    assert done.returncode == 2 and named in done.stderr and not done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_method_of_ones_own_has_cuts_and_memory_and_says_that_time_is_not_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it is named like one of ours, and derived from another: it says that it does something else."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.py").write_text(
        "from fr_bench.methods.bp import Backpropagation\n"
        "from fr_bench.methods.policy import Policy\n\n\n"
        "class Mine(Backpropagation):\n"
        "    @classmethod\n"
        "    def policy(cls, **_):\n"
        "        return Policy(keeps='graph', gradient='local')\n"
    )
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "mine.yaml").write_text("_target_: own.Mine\nname: fr\n")
    words = ("--config-dir", "mine", "debug=fast", "method=mine", "k=2", "partition=[2]", "dry_run=true")
    done = call(tmp_path, "train", *words)
    assert done.returncode == 0, done.stderr
    assert "cut after block 2" in done.stdout and "activations" in done.stdout
    assert "time is not predicted: the schedule of method 'fr' is not known" in done.stdout
    assert "timing the blocks" not in done.stderr


def test_a_block_that_fails_when_it_runs_is_a_mistake_with_its_cause() -> None:
    model = {"_target_": "tiny_models.faulty", "name": "faulty", "at": 9}
    with pytest.raises(ConfigError, match=r"^dry_run=true: .*the bug in block 'faulty'"):
        report(tiny_config("fr", 2, model=model))


def test_what_ends_the_process_that_measures_is_named() -> None:
    model = {"_target_": "tiny_models.bad_day", "name": "bad_day", "what": "killed in play", "at": 10}
    with pytest.raises(ConfigError, match=r"^dry_run=true: the process that measures was killed by SIGKILL \(by hand"):
        report(tiny_config("fr", 2, model=model))


@pytest.mark.parametrize(
    ("k", "changes", "what", "how"),
    [
        (1, {"threads": 1}, "1 module, the whole network, on cpu", "; 1 thread a module"),
        (2, {"threads": 2, "partition": [2]}, "2 modules, cut after block 2, on cpu", "; 2 threads a module"),
        (3, {"partition": [1, 2]}, "3 modules, cut after blocks 1, 2, on cpu", " a module"),
    ],
)
def test_one_is_told_as_one(k: int, changes: dict[str, Any], what: str, how: str) -> None:
    first, *_, last = make_plan(tiny_config("bp", k, **changes)).headlines()
    assert first.startswith(what) and last.endswith(how)


def test_that_blocks_are_compiled_first_is_told() -> None:
    *_, last = make_plan(tiny_config("fr", 2, compile=True)).headlines()
    assert last == "compile=true: before the first step every block is compiled, which may take minutes"


# --- memory


def test_the_memory_is_that_of_the_plan() -> None:
    plan = make_plan(tiny_config("fr", 3, batch_size=32))
    header, *rows, last = [line.split() for line in memory_table(plan)]
    assert "history" in header and "synthesizer" not in header  # empty for all modules
    for row, found in zip(rows, plan.predicted_memory, strict=True):
        assert row[-1] == f"{sum(found.values()) / 2**20:.1f}"
        assert row[header.index("history")] == f"{found['history'] / 2**20:.1f}"
    assert last[0] == "all" and last[-1] == f"{sum(sum(f.values()) for f in plan.predicted_memory) / 2**20:.1f}"


def test_under_bf16_memory_is_not_predicted_and_it_says_so() -> None:
    [line] = memory_table(make_plan(tiny_config("fr", 2, precision="bf16")))
    assert "not predicted under bf16" in line


# --- time


@pytest.mark.parametrize("method", ["bp", "fr", "ddg", "cdni", "dgl"])
def test_one_module_takes_the_sum_of_its_parts(method: str) -> None:
    plan, time = predicted(method, 1)
    costs = costs_of(plan)
    work_s = sum(block.forward + block.backward + block.step for block in costs.blocks)
    assert time.step_s == pytest.approx(costs.load + work_s)


def test_in_one_process_the_modules_take_turns() -> None:
    plan, time = predicted("fr", 2)
    costs = costs_of(plan)
    plays_s = sum(block.play for block in costs.blocks[: plan.cuts[0]])
    work_s = sum(block.forward + block.backward + block.step for block in costs.blocks)
    assert time.step_s == pytest.approx(costs.load + plays_s + work_s)
    assert any("take turns" in note for note in time.notes)
    assert time.fill_s == 0


@pytest.mark.parametrize("method", ["fr", "ddg"])
def test_one_that_is_made_from_ours_and_says_nothing_else_is_taken_to_take_as_long(method: str) -> None:
    _, ours = predicted(method, 3, "ipc")
    own = tiny_config(method, 3)["method"] | {"name": "mine", "factor": 0.5}
    own["_target_"] = f"tiny_methods.Shrinking{method.upper()}"
    time = predict_time(make_plan(tiny_config(method, 3, "ipc", method=own)))
    assert time is not None and time.step_s == ours.step_s
    ends_with = {"fr": "FeaturesReplay", "ddg": "DecoupledDelayedGradients"}[method]
    assert time.notes == [*ours.notes, f"'mine' is taken to take as long as {ends_with}, which it is made from"]


def test_the_time_of_replicas_is_not_predicted() -> None:
    assert predict_time(make_plan(tiny_config("fr", 2, "gloo", replicas=2))) is None


def test_a_frozen_module_takes_no_step() -> None:
    plan, time = predicted("bp", 2)
    _, frozen = predicted("bp", 2, freeze=[1])
    steps_s = sum(block.step for block in costs_of(plan).blocks[: plan.cuts[0]])
    assert time.step_s - frozen.step_s == pytest.approx(steps_s)


def test_checkpointed_activations_cost_a_second_forward() -> None:
    plan, time = predicted("bp", 1)
    config = tiny_config("bp", 1)
    config["method"]["checkpoint_activations"] = True
    again = predict_time(make_plan(config))
    assert again is not None
    forwards_s = sum(block.forward for block in costs_of(plan).blocks)
    assert again.step_s - time.step_s == pytest.approx(forwards_s)


def test_locked_backpropagation_pays_for_every_module_and_its_messages() -> None:
    """Each cut is crossed twice, and either end copies: four copies on the way of a mini-batch."""
    plan, time = predicted("bp", 2, "ipc")
    costs = costs_of(plan)
    work_s = sum(block.forward + block.backward for block in costs.blocks)
    step_s = sum(block.step for block in costs.blocks[: plan.cuts[0]])  # module 2's hides behind module 1's backward
    message_bytes = plan.config["batch_size"] * 8 * 8 * 8 * 4
    expected_s = costs.load + work_s + step_s + 4 * message_bytes * costs.copy_s_per_byte
    hidden_s = costs.blocks[-1].step + sum(block.step for block in costs.blocks[plan.cuts[0] : -1])
    assert expected_s <= time.step_s * (1 + 1e-9) <= expected_s + hidden_s + 1e-12


def test_modules_that_share_the_cores_are_not_predicted_to_run_side_by_side() -> None:
    cores = usable_cores() or 1
    plan, time = predicted("ddg", 5, "ipc", threads=cores)
    work_s = sum(block.forward + block.backward + block.step for block in costs_of(plan).blocks)
    assert time.step_s >= work_s
    assert any("share the" in note and "cores" in note for note in time.notes)


@pytest.mark.parametrize("method", ["cdni", "dgl"])
def test_a_network_that_is_trained_beside_takes_time(method: str) -> None:
    plan, time = predicted(method, 2)
    companion_s = costs_of(plan).companions[plan.cuts[0] - 1]
    without = replace(costs_of(plan), companions=[0.0] * len(plan.block_names))
    work_s = sum(block.forward + block.backward + block.step for block in without.blocks)
    assert companion_s > 0 and time.step_s == pytest.approx(without.load + work_s + companion_s)


def test_the_time_of_a_run_counts_the_filling_of_its_pipe() -> None:
    time = TimePrediction(step_s=2.0, fill_s=3.0, measured_on="", measured_at=0.0, notes=[])
    assert time.training_time_s(10) == 23.0
    first, *_ = time_lines(make_plan(tiny_config("fr", 2)), time, "fr")  # two epochs of five steps
    assert first == "predicted time: 2 s a step, 10 s an epoch, 23 s for the run's 10 steps"


def test_what_messages_between_machines_cost_is_not_known_and_that_is_said() -> None:
    _, time = predicted("bp", 2, "gloo")
    _, local = predicted("bp", 2, "ipc")
    note = "messages over gloo are taken to cost nothing"
    assert note in time.notes and note not in local.notes and time.step_s < local.step_s


def test_more_micro_batches_make_the_step_of_a_pipeline_shorter() -> None:
    times = []
    for number in (1, 4):
        pipeline = PEERS["gpipe"] | {"microbatches": number}
        times.append(predict_time(make_plan(tiny_config("gpipe", 2, "gloo", method=pipeline))))
    one, four = times
    assert one is not None and four is not None and four.step_s < one.step_s


@pytest.mark.parametrize(("threads", "expected"), [(1, 1.0), (2, 2.0), (8, 2.0)])
def test_modules_on_the_cores_of_one_machine_take_as_long_as_all_their_work_there(
    threads: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them on two cores, with a second of work each."""
    monkeypatch.setattr(time_prediction, "usable_cores", lambda: 2)
    plan = replace(make_plan(tiny_config("fr", 2, "ipc")), threads=threads)
    step_s, fill_s, notes = time_prediction._on_shared_devices(plan, 1.0, 0.5, (1.0, 1.0))
    assert (step_s, fill_s, len(notes)) == (expected, 0.5, int(expected > 1))
