"""Reading run directories: what is found, what is good in broken files, which runs are averaged."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from run_files import records_of_a_run, write_run

from fr_bench.launching.differences import SINCE_LATER
from fr_bench.records import runs
from fr_bench.records.reading import number, read_lines
from fr_bench.records.runs import find_runs, read_records
from fr_bench.report.groups import make_groups
from fr_bench.report.measures import (
    baseline,
    best_test_error,
    efficiency,
    epoch_time_s,
    memory_by_category,
    missing_categories,
    over_seeds,
    peak_memory,
    predicted_memory,
    speedup_over,
    step_time_s,
    waiting_share,
)


@pytest.fixture
def problems() -> list[str]:
    return []


def find(folder, problems):
    return find_runs([str(folder)], problems.append)


def groups_of(folder, problems):
    return {group.label: group for group in make_groups(find(folder, problems), problems.append)}


# --- finding


def test_runs_are_found_at_any_depth_and_once(tmp_path, problems):
    run = write_run(tmp_path / "sweep" / "a" / "0")
    write_run(tmp_path / "sweep" / "1")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "status.json").write_text("{}")
    (run / "wandb").mkdir()
    inside = [run / "metrics.jsonl", run / "wandb"]
    arguments = [tmp_path, tmp_path / "sweep", run, *inside, tmp_path / "sweep" / ".." / "sweep"]
    assert sorted(found.path.name for found in find_runs(map(str, arguments), problems.append)) == ["0", "1"]
    assert not problems


def test_a_folder_of_links_has_the_runs_that_they_lead_to(tmp_path, problems):
    runs = [write_run(tmp_path / "outputs" / name) for name in ("a", "b")]
    write_run(tmp_path / "chosen" / "c")
    for name, target in (("0", runs[0]), ("1", runs[1]), ("1 again", runs[1]), ("round", tmp_path / "chosen")):
        (tmp_path / "chosen" / name).symlink_to(target)
    found = find(tmp_path / "chosen", problems)
    assert sorted(each.path.name for each in found) == ["0", "1", "c"] and not problems


def test_a_quoted_pattern_is_expanded(tmp_path, problems):
    write_run(tmp_path / "outputs" / "a" / "0")
    write_run(tmp_path / "outputs" / "b" / "1")
    assert len(find(tmp_path / "outputs" / "**", problems)) == 2 and not problems


def test_a_folder_whose_name_could_be_a_pattern_is_that_folder(tmp_path, problems):
    """As a sweep calls it."""
    run = write_run(tmp_path / "method=fr,partition=[1,2]")
    assert [found.path for found in find(run, problems)] == [run] and not problems


def test_what_lies_inside_a_run_names_the_innermost_one(tmp_path, problems):
    inner = write_run(write_run(tmp_path / "outer") / "inner")
    assert [found.path for found in find(inner / "metrics.jsonl", problems)] == [inner] and not problems


def test_the_files_of_a_sweep_beside_its_runs_are_no_problem(tmp_path, problems):
    write_run(tmp_path / "0")
    (tmp_path / "jobs.jsonl").write_text("{}\n")
    assert len(find(tmp_path / "*", problems)) == 1 and not problems


def test_what_is_not_there_is_said_and_the_rest_is_read(tmp_path, problems):
    run, empty = write_run(tmp_path / "run"), tmp_path / "empty"
    missing = tmp_path / ("x" * 300)  # longer than a name may be
    empty.mkdir()
    found = find_runs(map(str, (missing, empty, run)), problems.append)
    assert [each.path for each in found] == [run]
    assert len(problems) == 2
    assert str(missing) in problems[0] and "no such file" in problems[0]
    assert str(empty) in problems[1] and "no run in it" in problems[1]


# --- broken files


def test_broken_lines_are_named_and_the_others_kept(tmp_path, problems):
    run = write_run(tmp_path / "run", k=1)
    good = (run / "metrics.jsonl").read_text().splitlines()
    bad = ['{"kind": "train", "st', "[1]", '{"kind": "train", "step": 1, "epoch": null, "train_time": 1}']
    no_module = '{"kind": "memory", "step": 1, "epoch": 1, "train_time": 1}'
    (run / "metrics.jsonl").write_text("\n".join([good[0], *bad, no_module, *good[1:], '{"kind": "ev']))
    records = read_records(run / "metrics.jsonl", problems.append)
    assert sum(map(len, records.values())) == len(good)
    lines = [int(problem.split("metrics.jsonl:")[1].split(":")[0]) for problem in problems]
    assert lines == [2, 3, 4, 5, len(good) + 5]
    assert "'epoch'" in problems[2] and "names no module" in problems[3]


def test_a_file_of_rubbish_is_not_described_line_by_line(tmp_path, problems):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\n" * 1000)
    assert read_records(path, problems.append) == {}
    assert len(problems) == 6 and "995 more" in problems[-1]


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "summary.json"])
def test_another_broken_file_is_named_without_a_traceback(name, tmp_path, problems):
    run = write_run(tmp_path / "run")
    (run / name).write_text("{a: [")
    find(tmp_path, problems)
    assert any(f"{name}: cannot be read" in problem for problem in problems)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"seed": [1, 2]}, "its seed is no integer"),
        ({"seed": True}, "its seed is no integer"),
        ({"k": 0}, "neither config.yaml nor summary.json says its method, model, dataset and k"),
        ({"k": True}, "neither config.yaml nor summary.json says"),
        ({"k": 1_000_000_000}, "k and replicas must be integers from 1, and at most 4096 when multiplied"),
        ({"replicas": 100_000_000}, "k and replicas must be"),
        ({"replicas": "two"}, "k and replicas must be"),
        ({"plan": {"devices": 3}}, "plan.devices in config.yaml is no list"),
        ({"plan": {"cuts": "1, 2"}}, "plan.cuts in config.yaml is no list"),
        ({"plan": [1]}, "the plan in config.yaml is none"),
    ],
)
def test_a_run_with_a_setting_that_none_has_is_left_out_in_one_line(settings, problem, tmp_path, problems):
    whole = write_run(tmp_path / "whole")
    edited = write_run(tmp_path / "edited")
    config = yaml.safe_load((edited / "config.yaml").read_text())
    plan = settings.get("plan", {})
    plan = config["plan"] | plan if isinstance(plan, dict) else plan
    (edited / "config.yaml").write_text(yaml.safe_dump(config | settings | {"plan": plan}))
    assert [run.path for run in find(tmp_path, problems)] == [whole]
    assert len(problems) == 1 and problems[0].startswith(f"{edited}: {problem}") and problems[0].endswith("; left out")


def test_without_config_the_summary_names_the_run(tmp_path, problems):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").unlink()
    summary = {"method": "ddg", "model": "tiny", "dataset": "digits", "k": 2, "seed": 7}
    (run / "summary.json").write_text(json.dumps(summary))
    (found,) = find(tmp_path, problems)
    assert (found.method, found.k, found.seed) == ("ddg", 2, 7) and not problems
    (run / "summary.json").unlink()
    assert not find(tmp_path, problems) and "neither config.yaml nor summary.json" in problems[0]


def test_without_a_status_the_summary_says_how_a_run_ended(tmp_path, problems):
    run = write_run(tmp_path / "run")
    (run / "status.json").unlink()
    (run / "summary.json").write_text(json.dumps({"state": "finished"}))
    (found,) = find(tmp_path, problems)
    assert found.end == "finished" and not problems


def test_a_run_that_failed_before_its_first_record_says_why(tmp_path, problems):
    write_run(tmp_path / "run", records=[], state="failed", error="module 2 died\nat once")
    assert not find(tmp_path, problems)
    assert len(problems) == 1 and "module 2 died at once" in problems[0] and "\n" not in problems[0]


def test_a_resumed_run_repeats_steps_and_the_later_records_count(tmp_path, problems):
    first = records_of_a_run(1, epochs=3, kinds=("train",))
    again = [
        record | {"loss": 9.0} for record in records_of_a_run(1, epochs=4, kinds=("train",)) if record["step"] > 15
    ]
    write_run(tmp_path / "run", k=1, records=first + again)
    (run,) = find(tmp_path, problems)
    assert [record["step"] for record in run.of("train")] == list(range(5, 41, 5))
    assert [record["loss"] == 9.0 for record in run.of("train")] == [False] * 3 + [True] * 5


# --- how runs ended


@pytest.mark.parametrize(
    ("state", "error", "end"),
    [
        ("finished", None, "finished"),
        ("running", None, "unfinished"),
        ("interrupted", "stopped", "unfinished"),
        ("failed", "module 1 died", "unfinished"),
        ("failed", "diverged at step 7 in module 1", "diverged"),
    ],
)
def test_the_end_of_a_run(state, error, end, tmp_path, problems):
    write_run(tmp_path / "run", state=state, error=error)
    (run,) = find(tmp_path, problems)
    assert run.end == end and len(problems) == (end != "finished")


def test_how_a_run_ended_is_looked_for_once(tmp_path, problems, monkeypatch):
    write_run(tmp_path / "run")
    (run,) = find(tmp_path, problems)  # which may have to complain of its end
    monkeypatch.delattr(runs, "number")
    assert run.end == "finished"


def test_a_loss_that_is_not_a_number_is_a_divergence(tmp_path, problems):
    records = records_of_a_run(1)
    records[-1] |= {"test_loss": None}
    write_run(tmp_path / "run", k=1, records=records)
    assert find(tmp_path, problems)[0].end == "diverged"


# --- which runs are averaged


def test_seeds_form_a_group_and_nothing_else_does(tmp_path, problems):
    write_run(tmp_path / "0", seed=0, settings={"log_every": 5, "wandb": {"name": "a"}})
    write_run(tmp_path / "1", seed=1, settings={"log_every": 9, "diagnostics": {"sigma": {"every": 3}}})
    write_run(tmp_path / "2", settings={"method": {"bn_stats": "play"}})
    write_run(tmp_path / "3", settings={"freeze": [1]})
    write_run(tmp_path / "4", settings={"plan": {"cuts": [4]}})
    write_run(tmp_path / "5", settings={"optimizer": {"lr": 0.5}})
    write_run(tmp_path / "6", method="ddg", settings={"method": {"weights": "current"}})
    groups = groups_of(tmp_path, problems)
    assert {label: len(group.runs) for label, group in groups.items()} == {
        "FR (cuts=[1], lr=0.1), K = 2": 2,
        "FR (cuts=[1], bn_stats=play, lr=0.1), K = 2": 1,
        "FR (cuts=[1], freeze=[1], lr=0.1), K = 2": 1,
        "FR (cuts=[4], lr=0.1), K = 2": 1,
        "FR (cuts=[1], lr=0.5), K = 2": 1,
        "DDG (lr=0.1), K = 2": 1,  # the cuts of another method are no variant of this one
    }
    assert not problems


def test_checkpointed_bp_has_a_short_name_and_plain_bp_keeps_its_own(tmp_path, problems):
    for checkpointed in (False, True):
        settings = {"method": {"checkpoint_activations": checkpointed}}
        write_run(tmp_path / str(checkpointed), method="bp", settings=settings)
    labels = {group.label for group in make_groups(find(tmp_path, problems), problems.append)}
    assert labels == {"BP, K = 2", "BP (checkpointed), K = 2"}


def test_cuts_that_come_with_k_are_not_in_the_label(tmp_path, problems):
    for k in (1, 2, 4):
        write_run(tmp_path / str(k), k=k)
    assert list(groups_of(tmp_path, problems)) == ["FR, K = 1", "FR, K = 2", "FR, K = 4"]


def test_a_run_whose_settings_nobody_knows_lengthens_no_other_label(tmp_path, problems):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed)
    lost = write_run(tmp_path / "lost", seed=2)
    (lost / "config.yaml").unlink()
    summary = {"method": "fr", "model": "tiny", "dataset": "digits", "k": 2, "seed": 2}
    (lost / "summary.json").write_text(json.dumps(summary))
    assert {label: len(group.runs) for label, group in groups_of(tmp_path, problems).items()} == {
        "FR, K = 2": 2,
        "FR (settings unknown), K = 2": 1,
    }


def test_what_the_plan_chose_counts_not_what_was_asked_for(tmp_path, problems):
    write_run(tmp_path / "0", seed=0, settings={"transport": "auto", "partition": "equal"})
    asked = {"transport": "gloo", "partition": [1], "memory_limit_gb": 4.0}
    write_run(tmp_path / "1", seed=1, settings=asked)
    write_run(tmp_path / "2", seed=2, transport="serial")
    assert {label: len(group.runs) for label, group in groups_of(tmp_path, problems).items()} == {
        "FR (transport=gloo), K = 2": 2,
        "FR (transport=serial), K = 2": 1,
    }


def test_where_the_data_lie_sets_no_runs_apart(tmp_path, problems):
    own = {"_target_": "fr_bench.data.cifar.load_cifar10"}
    write_run(tmp_path / "0", seed=0, settings={"dataset": own | {"root": "/tmp/data", "download": True}})
    write_run(tmp_path / "1", seed=1, settings={"dataset": own | {"root": "/other", "download": False}})
    assert {label: len(group.runs) for label, group in groups_of(tmp_path, problems).items()} == {"FR, K = 2": 2}
    for seed, path in enumerate(("/texts/one", "/texts/two")):
        settings = {"dataset": {"_target_": "fr_bench.data.text.load", "path": path}}
        write_run(tmp_path / "text" / path[-3:], seed=seed, settings=settings)
    assert set(groups_of(tmp_path / "text", problems)) == {
        "FR (path=/texts/one), K = 2",
        "FR (path=/texts/two), K = 2",
    }
    for seed in (0, 1):
        settings = {"dataset": {"_target_": "own.load", "root": f"/tmp/{seed}"}}
        write_run(tmp_path / "own" / str(seed), seed=seed, settings=settings)
    assert len(groups_of(tmp_path / "own", problems)) == 2  # what that means is the loader's own affair


def test_settings_of_one_name_are_named_in_full(tmp_path, problems):
    for name, (lr, own_lr) in {"a": (0.1, 1.0), "b": (0.2, 2.0)}.items():
        write_run(tmp_path / name, settings={"optimizer": {"lr": lr}, "method": {"lr": own_lr}})
    labels = [f"FR (method.lr={own_lr}, optimizer.lr={lr}), K = 2" for lr, own_lr in ((0.1, 1.0), (0.2, 2.0))]
    assert list(groups_of(tmp_path, problems)) == labels


def test_groups_come_by_k_and_then_by_method(tmp_path, problems):
    for k in (10, 2):
        for method in ("mine", "fr", "bp"):
            write_run(tmp_path / f"{method}-{k}", method, k=k)
    methods = ["BP", "FR", "mine"]
    assert list(groups_of(tmp_path, problems)) == [f"{method}, K = {k}" for k in (2, 10) for method in methods]


def test_the_same_seed_twice_is_one_sample(tmp_path, problems):
    path = write_run(tmp_path / "begun_again")
    (path / "status.json").write_text(json.dumps({"state": "interrupted", "started": 9.0}))
    write_run(tmp_path / "finished")
    (group,) = groups_of(tmp_path, problems).values()
    assert [run.path.name for run in group.runs] == ["finished"]
    assert "same settings and seed" in problems[-1] and "left out" in problems[-1]


def test_of_two_finished_runs_with_one_seed_the_one_started_last_counts(tmp_path, problems):
    for name, started in (("a", 1.0), ("b", 3.0), ("c", 2.0)):
        path = write_run(tmp_path / name, seed=0)
        (path / "status.json").write_text(json.dumps({"state": "finished", "started": started}))
    (group,) = groups_of(tmp_path, problems).values()
    assert [run.path.name for run in group.runs] == ["b"] and len(problems) == 2


def test_the_finished_runs_stand_for_the_group(tmp_path, problems):
    write_run(tmp_path / "0", seed=0, step_s=0.1)
    write_run(tmp_path / "1", seed=1, step_s=0.3)
    write_run(tmp_path / "2", seed=2, step_s=9.0, state="failed", error="diverged at step 3")
    (group,) = groups_of(tmp_path, problems).values()
    times = over_seeds(group, step_time_s)
    assert times.mean == pytest.approx(0.2) and times.sd == pytest.approx(0.1 * 2**0.5)
    assert group.seeds == "n = 2, 1 diverged"


ORIGIN = {"run": "/a", "step": 10, "epoch": 1.0, "train_time": 7.0, "k": 4, "num_steps": 10, "is_exact": False}


def test_a_run_that_took_over_from_another_is_no_seed_of_one_that_did_not(tmp_path, problems):
    moved, longer = {"resume": "/runs/a"}, {"plan": {"num_steps": 30}}
    write_run(tmp_path / "alone", seed=0, settings=longer)
    write_run(tmp_path / "k4", seed=0, settings=moved | longer, origin=ORIGIN)
    # What it is called now counts for nothing: it may have been resumed itself, with resume=auto.
    write_run(tmp_path / "k4 again", seed=1, settings=longer, origin=ORIGIN | {"replicas": 1})  # as newer ones say
    write_run(tmp_path / "twice", seed=0, settings=moved, origin=ORIGIN | {"k": 3, "step": 20, "origin": ORIGIN})
    write_run(tmp_path / "nobody knows", seed=0, settings=moved)
    write_run(tmp_path / "warmed up", seed=0, origin=ORIGIN | {"method": "bp"})
    write_run(tmp_path / "in one piece", seed=1, settings=longer, origin=ORIGIN | {"is_exact": True, "num_steps": 30})
    labels = {label: [run.seed for run in group.runs] for label, group in groups_of(tmp_path, problems).items()}
    assert labels == {
        "FR, K = 2": [0, 1],
        "FR (from K=4 at step 10 of 10), K = 2": [0, 1],
        "FR (from K=4 at step 10 of 10, K=3 at step 20 of 10), K = 2": [0],
        "FR (resumed from a), K = 2": [0],
        "FR (from BP, K=4 at step 10 of 10), K = 2": [0],
    }
    assert not problems


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_run_that_names_no_other_took_over_from_none(resume, tmp_path, problems):
    write_run(tmp_path / "run", settings={"resume": resume})
    write_run(tmp_path / "another", seed=1)
    assert list(groups_of(tmp_path, problems)) == ["FR, K = 2"] and not find(tmp_path / "run", problems)[0].takes_over


@pytest.mark.parametrize(("before", "in_one_piece"), [(None, True), (ORIGIN, False)])
def test_a_run_of_an_older_version_is_in_one_piece_if_its_origin_took_over_from_none(
    before, in_one_piece, tmp_path, problems
):
    origin = ORIGIN | {"is_exact": True, "num_steps": 30, "origin": before}
    write_run(tmp_path / "run", settings={"plan": {"num_steps": 30}}, origin=origin)
    assert find(tmp_path, problems)[0].is_in_one_piece is in_one_piece


def test_runs_whose_first_steps_were_made_otherwise_are_no_seeds_of_one_experiment(tmp_path, problems):
    there = {"cuts": [4], "epochs": 2, "freeze": [], "module_lr": None}
    origin = ORIGIN | {"is_exact": True, "in_one_piece": False, "settings": there}
    earlier = ORIGIN | {"is_exact": True, "in_one_piece": False, "origin": origin, "settings": there}
    write_run(tmp_path / "alone", seed=0)
    write_run(tmp_path / "as its own", seed=1, origin=origin | {"in_one_piece": True})
    write_run(tmp_path / "two epochs", seed=0, origin=origin)
    write_run(tmp_path / "two epochs again", seed=1, origin=origin)
    write_run(tmp_path / "ten epochs", seed=0, origin=origin | {"settings": there | {"epochs": 10}})
    write_run(tmp_path / "frozen", seed=0, origin=origin | {"settings": there | {"freeze": [1]}})
    write_run(tmp_path / "twice", seed=0, origin=earlier)
    write_run(
        tmp_path / "twice, frozen", seed=0, origin=earlier | {"origin": origin | {"settings": there | {"freeze": [1]}}}
    )
    labels = {label: [run.seed for run in group.runs] for label, group in groups_of(tmp_path, problems).items()}
    once, twice = "from K=4 at step 10 of 10", "from K=4 at step 10 of 10, K=4 at step 10 of 10"
    assert labels == {
        "FR, K = 2": [0, 1],
        f"FR ({once}, epochs_there=2), K = 2": [0, 1],
        f"FR ({once}, epochs_there=10), K = 2": [0],
        f"FR ({once}, epochs_there=2, freeze_there=[1]), K = 2": [0],
        f"FR ({twice}), K = 2": [0],
        f"FR ({twice}, freeze_there_before=[1]), K = 2": [0],
    }
    assert not problems


def test_a_method_with_other_settings_before_is_told_by_those_alone(tmp_path, problems):
    """Where the method was the same with the same settings, an origin does not repeat them."""

    def method(scale):
        return {"name": "fr", "_target_": "mine.FR", "scale": scale}

    def there(scale=None):
        settings = {} if scale is None else {f"method.{key}": value for key, value in method(scale).items()}
        return ORIGIN | {"is_exact": False, "in_one_piece": False, "settings": {"epochs": 2, **settings}}

    write_run(tmp_path / "as before", settings={"method": method(1)}, origin=there())
    write_run(tmp_path / "other now", settings={"method": method(2)}, origin=there(1))
    write_run(tmp_path / "longer", settings={"method": method(1), "epochs": 7}, origin=there())
    write_run(tmp_path / "other before", settings={"method": method(1)}, origin=there(3))
    write_run(tmp_path / "other long before", settings={"method": method(1)}, origin=there() | {"origin": there(3)})
    write_run(tmp_path / "twice as before", settings={"method": method(1)}, origin=there() | {"origin": there()})
    labels = {group.runs[0].path.name: group.variant for group in groups_of(tmp_path, problems).values()}
    once, twice = "from K=4 at step 10 of 10", "from K=4 at step 10 of 10, K=4 at step 10 of 10"
    assert labels == {
        "as before": f"scale=1, {once}",
        "other now": f"scale=2, {once}, scale_there=1",
        "longer": f"epochs=7, scale=1, {once}",
        "other before": f"scale=1, {once}, scale_there=3",
        "other long before": f"scale=1, {twice}, scale_there_before=3",
        "twice as before": f"scale=1, {twice}",
    }


def with_code(run, *history):
    """``history``: hashes of the code that made its steps, the oldest first."""
    before = {"code_before": history[:-1]} if history[1:] else {}
    (run / "env.json").write_text(json.dumps({"code": history[-1], **before}))
    return run


OWN = {"method": {"name": "own", "_target_": "mine.methods.Own"}}
ONE, OTHER = {"mine": "3f2a" + 12 * "0"}, {"mine": "77b0" + 12 * "0"}


def test_runs_of_different_code_are_no_seeds_of_one_method(tmp_path, problems):
    write_run(tmp_path / "before there was a hash", "bp", seed=0)
    with_code(write_run(tmp_path / "built in", "bp", seed=1), {})
    for seed, code in enumerate((ONE, ONE, OTHER)):
        with_code(write_run(tmp_path / str(seed), seed=seed, settings=OWN), code)
    with_code(write_run(tmp_path / "went on", seed=3, settings=OWN), ONE, OTHER)
    write_run(tmp_path / "unknown", seed=4, settings=OWN)
    assert {label: [run.seed for run in group.runs] for label, group in groups_of(tmp_path, problems).items()} == {
        "BP, K = 2": [0, 1],
        "own, K = 2": [4],
        "own (mine=3f2a), K = 2": [0, 1],
        "own (mine=77b0), K = 2": [2],
        "own (mine=3f2a then 77b0), K = 2": [3],
    }
    assert not problems


def test_code_that_is_the_same_wherever_it_is_used_is_in_no_label(tmp_path, problems):
    with_code(write_run(tmp_path / "own", settings=OWN), ONE)
    with_code(write_run(tmp_path / "fr"), {})
    assert list(groups_of(tmp_path, problems)) == ["FR, K = 2", "own, K = 2"]


def test_hashes_are_as_long_as_it_takes_to_tell_them_apart(tmp_path, problems):
    for seed, digest in enumerate(("3f2a11", "3f2a12")):
        with_code(write_run(tmp_path / str(seed), seed=seed, settings=OWN), {"mine": digest + 10 * "0"})
    assert list(groups_of(tmp_path, problems)) == ["own (mine=3f2a11), K = 2", "own (mine=3f2a12), K = 2"]


# --- measures


def test_speed_is_of_the_runs_own_steps_not_of_the_run_it_took_over_from(tmp_path, problems):
    records = records_of_a_run(2, epochs=3, step_s=0.1)
    for record in records:  # ten slow steps in seven seconds, then twenty of its own
        record["train_time"] = 7.0 + 0.1 * (record["step"] - 10) if record["step"] > 10 else 0.7 * record["step"]
        if record["kind"] == "time" and record["step"] <= 10:
            record |= {"wait_s": 9.0, "efficiency": 0.1}
    write_run(tmp_path / "known", records=records, origin=ORIGIN)
    write_run(tmp_path / "unknown", records=records, settings={"resume": "/runs/a"})
    known, unknown = find(tmp_path, problems)
    assert step_time_s(known) == pytest.approx(0.1) and epoch_time_s(known) == pytest.approx(1.0)
    assert efficiency(known) == pytest.approx(0.8) and waiting_share(known, 1) == pytest.approx(0.4)
    assert [step_time_s(unknown), epoch_time_s(unknown), efficiency(unknown), waiting_share(unknown, 1)] == [None] * 4


def test_a_takeover_that_has_not_trained_yet_has_no_speed(tmp_path, problems):
    write_run(tmp_path / "run", origin=ORIGIN | {"step": 30, "epoch": 3.0, "train_time": 3.0})
    (run,) = find(tmp_path, problems)
    assert step_time_s(run) is None and epoch_time_s(run) is None and efficiency(run) is None


@pytest.mark.parametrize("key", ["step", "epoch", "train_time"])
def test_a_takeover_that_does_not_say_where_has_no_speed(key, tmp_path, problems):
    write_run(tmp_path / "run", origin=ORIGIN | {key: None})
    (run,) = find(tmp_path, problems)
    assert run.own_from is None and step_time_s(run) is None and epoch_time_s(run) is None and efficiency(run) is None


def test_efficiency_is_weighted_by_steps(tmp_path, problems):
    records = [record for record in records_of_a_run(2, epochs=4, kinds=("time",)) if record["step"] in (10, 40)]
    for record in records:
        record["efficiency"] = 0.2 if record["step"] == 10 else 0.8
    write_run(tmp_path / "run", records=records)
    assert efficiency(find(tmp_path, problems)[0]) == pytest.approx((10 * 0.2 + 30 * 0.8) / 40)


def test_with_a_validation_set_the_best_epoch_is_chosen_on_it(tmp_path, problems):
    records = records_of_a_run(1, test_error=lambda epoch: 0.5 / epoch, kinds=("eval",))
    write_run(tmp_path / "0", k=1, records=records)
    assert best_test_error(find(tmp_path / "0", problems)[0]) == pytest.approx(0.5 / 3)
    for record, validation_error in zip(records, (0.4, 0.2, 0.3), strict=True):
        record["validation_error"] = validation_error
    write_run(tmp_path / "1", k=1, records=records)
    assert best_test_error(find(tmp_path / "1", problems)[0]) == pytest.approx(0.5 / 2)


def test_of_equal_validation_errors_the_first_counts_as_in_the_summary(tmp_path, problems):
    records = records_of_a_run(1, test_error=lambda epoch: 0.5 / epoch, kinds=("eval",))
    for record, validation_error in zip(records, (0.4, 0.2, 0.2), strict=True):
        record["validation_error"] = validation_error
    write_run(tmp_path / "run", k=1, records=records)
    assert best_test_error(find(tmp_path, problems)[0]) == pytest.approx(0.5 / 2)


def test_waiting_is_weighted_by_steps(tmp_path, problems):
    at = {"kind": "time", "epoch": 1, "train_time": 1, "module": 1, "play_s": 0.0, "send_s": 0.0}
    records = [at | {"step": 10, "wait_s": 1.0, "learn_s": 0.0}, at | {"step": 40, "wait_s": 0.0, "learn_s": 1.0}]
    write_run(tmp_path / "run", k=1, records=records)
    assert waiting_share(find(tmp_path, problems)[0], 1) == pytest.approx(0.25)


def test_memory_is_that_of_the_last_record_by_known_categories(tmp_path, problems):
    at = {"kind": "memory", "epoch": 1, "train_time": 1, "module": 1, "peak": 99}
    records = [
        at | {"step": 1, "parameters": 7},
        at | {"step": 2, "parameters": 5, "stash": 3, "allocated": 50, "predicted": 9},
        at | {"step": 2, "module": 2, "parameters": 5, "predicted_parameters": 5, "predicted": 9},
    ]
    write_run(tmp_path / "run", records=records)
    (run,) = find(tmp_path, problems)
    assert memory_by_category(run, 1) == {"parameters": 5, "stash": 3}
    assert [predicted_memory(run, module) for module in (1, 2, 3)] == [9, 9, None]


def test_a_peak_is_the_largest_of_the_run_not_its_last(tmp_path, problems):
    records = records_of_a_run(2, kinds=("memory",))
    for record in records:
        record["peak"] = {10: 100, 20: 900, 30: 300}[record["step"]] * record["module"]
    write_run(tmp_path / "run", records=records)
    (run,) = find(tmp_path, problems)
    assert [peak_memory(run, module) for module in (1, 2, 3)] == [900, 1800, None]


def test_a_category_that_one_module_lacks_is_missing(tmp_path, problems):
    records = records_of_a_run(2, kinds=("memory",))
    for record in records:
        if record["module"] == 2:
            del record["activations"]
    write_run(tmp_path / "run", records=records)
    (group,) = groups_of(tmp_path, problems).values()
    assert missing_categories(group) == ["activations"]


def test_modules_of_one_process_are_no_baseline_for_those_with_processes_of_their_own(tmp_path, problems):
    write_run(tmp_path / "serial", "bp", k=2, transport="serial")
    write_run(tmp_path / "fr", k=2)
    write_run(tmp_path / "serial fr", k=2, transport="serial", settings={"optimizer": {"lr": 0.9}})
    groups = list(groups_of(tmp_path, problems).values())
    found = {group.settings["transport"]: baseline(group, groups, 2) for group in groups if group.method == "fr"}
    assert found["gloo"] is None and found["serial"].method == "bp"


def test_speed_is_compared_with_bp_on_the_same_problem_only(tmp_path, problems):
    write_run(tmp_path / "fr", k=2, step_s=0.1)
    write_run(tmp_path / "bp1", "bp", k=1, step_s=0.2, settings={"optimizer": {"lr": 0.9}})
    write_run(tmp_path / "bp2", "bp", k=2, step_s=0.3)
    write_run(tmp_path / "other batch", "bp", k=1, step_s=7.0, settings={"batch_size": 64})
    write_run(tmp_path / "other model", "bp", k=1, step_s=7.0, model="large")
    write_run(tmp_path / "serial", "bp", k=2, step_s=7.0, transport="serial")
    groups = list(groups_of(tmp_path, problems).values())
    (fr,) = (group for group in groups if group.method == "fr")
    assert speedup_over(fr, baseline(fr, groups, 1)).mean == pytest.approx(2.0)
    assert speedup_over(fr, baseline(fr, groups, 2)).mean == pytest.approx(3.0)
    assert baseline(fr, groups, 4) is None and speedup_over(fr, None) is None


def test_a_speed_up_is_a_ratio_of_means_with_the_spread_of_both(tmp_path, problems):
    for seed, (own_s, other_s) in enumerate(((0.1, 0.9), (0.3, 1.1))):  # of reciprocals the mean would be 6.7
        write_run(tmp_path / f"fr {seed}", k=2, seed=seed, step_s=own_s)
        write_run(tmp_path / f"bp {seed}", "bp", k=1, seed=seed, step_s=other_s)
    groups = list(groups_of(tmp_path, problems).values())
    (fr,) = (group for group in groups if group.method == "fr")
    found = speedup_over(fr, baseline(fr, groups, 1))
    assert found.mean == pytest.approx(5.0)
    assert found.sd == pytest.approx(5.0 * math.hypot(math.sqrt(0.02) / 0.2, math.sqrt(0.02)))


def test_runs_on_other_hardware_are_neither_averaged_nor_compared(tmp_path, problems):
    for name, seed, cpu in (("fr", 0, "new"), ("fr", 1, "old"), ("bp", 0, "old")):
        path = write_run(tmp_path / f"{name} {cpu}", name, seed=seed)
        (path / "env.json").write_text(json.dumps({"cpu": {"model": cpu}}))
    groups = make_groups(find(tmp_path, problems), problems.append)
    assert [len(group.runs) for group in groups] == [1, 1, 1]
    found = {group.settings["hardware"]: baseline(group, groups, 2) for group in groups if group.method == "fr"}
    assert found["new"] is None and found["old"].method == "bp"


def test_bp_is_compared_with_unless_other_code_than_the_methods_is_another(tmp_path, problems):
    """A package that BP, too, is made by may hold the model."""
    own_model = {"model": {"name": "tiny", "_target_": "mine.models.build"}}
    with_code(write_run(tmp_path / "own", settings=OWN | own_model), ONE | {"method": "1"})
    for seed, code in enumerate((ONE, OTHER)):
        with_code(write_run(tmp_path / f"bp {seed}", "bp", seed=seed, settings=own_model), code)
    groups = make_groups(find(tmp_path, problems), problems.append)
    (own,) = (group for group in groups if group.method == "own")
    assert [run.path.name for run in baseline(own, groups, 2).runs] == ["bp 0"]
    only_other = [group for group in groups if group.runs[0].path.name != "bp 0"]
    assert len(only_other) == 2 and baseline(own, only_other, 2) is None


def test_runs_whose_modules_share_a_gpu_are_no_seeds_of_those_with_a_gpu_each(tmp_path, problems):
    for seed, devices in enumerate((["cuda:0", "cuda:0"], ["cuda:0", "cuda:1"])):
        write_run(tmp_path / str(seed), seed=seed, settings={"plan": {"devices": devices}})
    assert [len(group.runs) for group in groups_of(tmp_path, problems).values()] == [1, 1]


def test_of_several_references_the_one_that_shares_most_settings_counts(tmp_path, problems):
    write_run(tmp_path / "fr", k=2, step_s=0.1)
    write_run(tmp_path / "other", "bp", k=1, step_s=0.2, settings={"optimizer": {"lr": 0.01}})
    write_run(tmp_path / "same", "bp", k=1, step_s=0.4)
    write_run(tmp_path / "another", "bp", k=1, step_s=0.8, settings={"optimizer": {"lr": 0.9}})
    groups = list(groups_of(tmp_path, problems).values())
    (fr,) = (group for group in groups if group.method == "fr")
    assert speedup_over(fr, baseline(fr, groups, 1)).mean == pytest.approx(4.0)


def test_true_is_no_number_and_a_profile_names_its_module(tmp_path):
    assert number({"a": True}, "a") is None and number({"a": 1}, "a") == 1
    position = {"step": 1, "epoch": 1.0, "train_time": 1.0}
    path = tmp_path / "metrics.jsonl"
    kinds = ("memory", "time", "method", "sigma", "profile")
    path.write_text("".join(json.dumps({"kind": kind} | position) + "\n" for kind in kinds))
    assert [line.problem for line in read_lines(path)] == [f"a {kind} record that names no module" for kind in kinds]


@pytest.mark.parametrize(("kind", "key"), [("train", "loss"), ("eval", "train_loss"), ("eval", "test_loss")])
def test_a_loss_that_is_none_is_a_divergence(kind, key, tmp_path):
    records = records_of_a_run(1)
    next(record for record in reversed(records) if record["kind"] == kind)[key] = None
    write_run(tmp_path / "run", k=1, records=records)
    assert find_runs([str(tmp_path)], lambda _: None)[0].end == "diverged"


def test_a_run_that_took_over_from_replicas_says_so(tmp_path):
    write_run(tmp_path / "one", seed=0, origin=ORIGIN)
    write_run(tmp_path / "two", seed=0, origin=ORIGIN | {"replicas": 2})
    assert set(groups_of(tmp_path, [])) == {
        "FR (from K=4 at step 10 of 10), K = 2",
        "FR (from K=4, replicas=2 at step 10 of 10), K = 2",
    }


@pytest.mark.parametrize(("key", "value"), [("replicas", 1), ("compile", False), ("cuda_graphs", False),
                                            ("streams", True), ("profile", 0), ("label_smoothing", 0.0)])  # fmt: skip
def test_a_setting_that_older_runs_lack_has_the_value_of_those(key, value, tmp_path):
    write_run(tmp_path / "older", seed=0)
    write_run(tmp_path / "now", seed=1, settings={key: value})
    assert set(groups_of(tmp_path, [])) == {"FR, K = 2"} and SINCE_LATER[key] == value


@pytest.mark.parametrize("key", ["max_time", "hang_timeout", "console", "log_every"])
def test_what_says_only_how_long_or_what_is_written_sets_no_runs_apart(key, tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed, settings={key: seed + 5})
    assert set(groups_of(tmp_path, [])) == {"FR, K = 2"}
