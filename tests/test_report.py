"""``fr-bench report``: what the tables say, beside which published numbers, and what happens with bad runs."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness import ASCII
from run_files import records_of_a_run, write_run

from fr_bench.cli import main
from fr_bench.report.published import CERTAINTY, DOUBTS, METHODS, NETWORKS, SOURCES, published_numbers

CONF = Path(__file__).parents[1] / "conf"


def as_published(model: str, /, **changes: object) -> dict[str, object]:
    """What ``write_run`` needs for a run with the paper's settings on CIFAR-10; ``changes`` update groups."""
    settings: dict[str, object] = {"epochs": 300, "batch_size": 128}
    for group, name in (("model", model), ("optimizer", "sgd"), ("schedule", "multistep"), ("dataset", "cifar10")):
        node = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
        settings[group] = {key: 5e-4 if value == "5e-4" else value for key, value in node.items() if key != "root"}
    for key, value in changes.items():
        settings[key] = settings[key] | value if isinstance(value, dict) and key in settings else value
    return {"model": model, "dataset": "cifar10", "settings": settings}


def method(name: str, **more: object) -> dict[str, object]:
    return {"name": name, "_target_": METHODS[name], **more}


def report(*words: object) -> int:
    return main(["report", *map(str, words)])


def table(text: str, title: str) -> dict[str, dict[str, str]]:
    """The Markdown table under ``### title`` by method and K."""
    lines = [line for line in text.partition(f"### {title}\n")[2].split("###")[0].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    return {f"{row['method']} {row['K']}": row for row in rows}


def test_errors_are_means_over_seeds_with_their_spread(tmp_path, capsys):
    for seed, scale in enumerate((0.4, 0.6)):
        # The best epoch is the second, the last is the third.
        errors = {1: scale, 2: scale / 4, 3: scale / 2}
        write_run(tmp_path / str(seed), seed=seed, test_error=errors.__getitem__)
    assert report(tmp_path) == 0
    row = table(capsys.readouterr().out, "Test error")["FR 2"]
    assert row["best test error"] == "12.50 ± 3.54 %" and row["last test error"] == "25.00 ± 7.07 %"
    assert row["seeds"] == "n = 2"


def test_a_best_error_of_many_evaluations_is_not_averaged_with_one_of_few(tmp_path, capsys):
    for seed, every in enumerate((1, 3)):
        write_run(tmp_path / str(seed), seed=seed, settings={"eval_every": every})
    assert report(tmp_path) == 0
    rows = table(capsys.readouterr().out, "Test error")
    assert [row["seeds"] for row in rows.values()] == ["n = 1", "n = 1"]
    assert {name.partition("eval_every=")[2][:1] for name in rows} == {"1", "3"}


def test_what_a_job_asks_slurm_for_and_when_it_evaluates_are_no_obstacles_to_a_comparison(tmp_path, capsys):
    """A preset of a cluster computes GPUs and memory from k."""
    for name, method, k, hours in [("bp", "bp", 1, 1), ("fr", "fr", 4, 1), ("fr again", "fr", 4, 2)]:
        settings = {"cluster": {"gpus": k, "time": hours}, "eval_every": 1 if method == "bp" else 2}
        write_run(tmp_path / name, method, k, seed=hours, step_s=0.4 / k, settings=settings)
    assert report(tmp_path) == 0
    rows = table(capsys.readouterr().out, "Speed")
    assert {name: row["speed-up over BP, K = 1"] for name, row in rows.items()} == {
        "BP (eval_every=1) 1": "1", "FR (eval_every=2) 4": "4 ± 0",
    }  # fmt: skip


def test_speed_up_is_over_both_kinds_of_backpropagation(tmp_path, capsys):
    write_run(tmp_path / "bp1", "bp", k=1, step_s=0.4)
    write_run(tmp_path / "bp4", "bp", k=4, step_s=0.5)
    write_run(tmp_path / "fr4", "fr", k=4, step_s=0.2)
    write_run(tmp_path / "ddg2", "ddg", k=2, step_s=0.2)
    assert report(tmp_path) == 0
    rows = table(capsys.readouterr().out, "Speed")
    columns = ("speed-up over BP, K = 1", "over locked BP, same K", "ideal limit", "seconds an epoch", "efficiency")
    assert [rows["FR 4"][column] for column in columns] == ["2", "2.5", "3.25", "2", "80 %"]
    assert [rows["DDG 2"][column] for column in columns] == ["2", "", "2.00", "2", "80 %"]
    assert [rows["BP 4"][column] for column in columns] == ["0.8", "1", "", "5", "80 %"]


def test_long_times_are_told_to_the_second(tmp_path, capsys):
    for seed, step_s in enumerate((123.4, 123.6)):
        write_run(tmp_path / str(seed), seed=seed, step_s=step_s)
    assert report(tmp_path, "--target", "30") == 0
    row = table(capsys.readouterr().out, "Speed")["FR 2"]
    assert (row["seconds an epoch"], row["seconds to 30 %"]) == ("1235 ± 1.4", "2470 ± 2.8 (2 of 2)")


def test_a_time_of_nearly_a_thousand_seconds_has_no_exponent(tmp_path, capsys):
    write_run(tmp_path / "0", step_s=99.97)
    assert report(tmp_path) == 0
    assert table(capsys.readouterr().out, "Speed")["FR 2"]["seconds an epoch"] == "1000"


def test_a_setting_may_have_the_sign_that_parts_columns(tmp_path, capsys):
    for name in ("a|b", "c"):
        write_run(tmp_path / name, settings={"method": {"mode": name}})
    assert report(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("| FR (mode=a\\|b) ")]) == 3  # errors, speed, memory


def test_times_that_are_far_apart_are_said_to_say_little(tmp_path, capsys):
    for seed, (fr_s, bp_s) in enumerate(((0.1, 0.2), (0.1, 0.22), (0.35, 0.21))):
        write_run(tmp_path / f"fr{seed}", "fr", seed=seed, step_s=fr_s)
        write_run(tmp_path / f"bp{seed}", "bp", k=1, seed=seed, step_s=bp_s)
    assert report(tmp_path) == 0
    assert "Times of runs that differ in the seed alone are far apart (FR, K = 2, 3.5-fold)," in capsys.readouterr().out


def test_runs_of_several_versions_are_told_apart_in_a_note(tmp_path, capsys):
    runs = [("bp", 1, 0, "2.14.1"), ("bp", 1, 1, "2.14.1"), ("fr", 2, 0, "2.14.1"), ("fr", 2, 1, "2.15.0")]
    for method, k, seed, torch in runs:
        path = write_run(tmp_path / f"{method}{seed}", method, k=k, seed=seed)
        (path / "env.json").write_text(json.dumps({"versions": {"fr_bench": "1.0", "torch": torch}}))
    assert report(tmp_path / "bp0", tmp_path / "bp1", tmp_path / "fr0") == 0
    assert "several versions" not in capsys.readouterr().out
    assert report(tmp_path) == 0
    both, one = "fr-bench 1.0 and torch 2.14.1 (BP, K = 1; FR, K = 2)", "fr-bench 1.0 and torch 2.15.0 (FR, K = 2)"
    assert f"between which results and times may change: {both}; {one}." in capsys.readouterr().out


def test_the_time_of_a_run_ends_with_its_slowest_module(tmp_path, capsys):
    records = records_of_a_run(2, step_s=0.1)
    for record in records:
        if record["kind"] == "eval" and record["step"] == 30:
            record["train_time"] = 6.0  # the last `train` record came 3 s before
    write_run(tmp_path / "fr", records=records)
    assert report(tmp_path) == 0
    assert table(capsys.readouterr().out, "Speed")["FR 2"]["seconds an epoch"] == "2"


def test_the_reference_is_ordinary_training_however_many_runs_others_have(tmp_path, capsys):
    checkpointed = {"method": {"checkpoint_activations": True}}
    write_run(tmp_path / "bp", "bp", k=1, step_s=0.4, settings={"method": {"checkpoint_activations": False}})
    write_run(tmp_path / "frozen", "bp", k=1, step_s=0.1, settings={"freeze": [1]})
    for seed in (0, 1):
        write_run(tmp_path / f"checkpointed{seed}", "bp", k=1, seed=seed, step_s=0.5, settings=checkpointed)
    write_run(tmp_path / "fr", "fr", k=2, step_s=0.2)
    assert report(tmp_path) == 0
    rows = table(capsys.readouterr().out, "Speed").values()
    speedups = {row["method"]: row["speed-up over BP, K = 1"] for row in rows}
    assert speedups == {"BP": "1", "BP (freeze=[1])": "1", "BP (checkpointed)": "0.8 ± 0", "FR": "2"}


def test_frozen_modules_are_compared_with_the_same_ones_frozen(tmp_path, capsys):
    write_run(tmp_path / "bp", "bp", k=2, step_s=0.4)
    write_run(tmp_path / "fr", "fr", k=2, step_s=0.2, settings={"freeze": [1]})
    column = "over locked BP, same K"
    assert report(tmp_path) == 0
    assert table(capsys.readouterr().out, "Speed")["FR (freeze=[1]) 2"][column] == ""
    write_run(tmp_path / "other", "bp", k=2, step_s=0.5, settings={"freeze": [2]})
    write_run(tmp_path / "same", "bp", k=2, step_s=0.3, settings={"freeze": [1]})
    assert report(tmp_path) == 0
    assert table(capsys.readouterr().out, "Speed")["FR (freeze=[1]) 2"][column] == "1.5"


def test_checkpointed_training_is_no_reference_even_for_itself(tmp_path, capsys):
    checkpointed = {"method": {"checkpoint_activations": True}}
    write_run(tmp_path / "bp", "bp", k=1, settings=checkpointed)
    write_run(tmp_path / "fr", "fr", k=2)
    assert report(tmp_path) == 0
    rows = table(capsys.readouterr().out, "Speed")
    assert [rows[name]["speed-up over BP, K = 1"] for name in ("BP 1", "FR 2")] == ["", ""]


def test_without_a_reference_there_is_no_speed_up_and_it_says_so(tmp_path, capsys):
    write_run(tmp_path / "fr")
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    assert table(text, "Speed")["FR 2"]["speed-up over BP, K = 1"] == "" and "No speed-up over BP" in text


def test_with_a_validation_set_it_says_whose_error_the_best_is(tmp_path, capsys):
    write_run(tmp_path / "fr")
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    assert "best: of any evaluation" in text and "validation" not in text
    records = records_of_a_run(2, test_error={1: 0.3, 2: 0.2, 3: 0.1}.__getitem__)
    errors = iter((0.4, 0.15, 0.25))
    for record in records:
        if record["kind"] == "eval":
            record["validation_error"] = next(errors)
    write_run(tmp_path / "held out", "ddg", records=records, settings={"dataset": {"validation": 100}})
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    columns = ("best test error", "lowest validation error", "last test error")
    rows = {row["method"]: [row[column] for column in columns] for row in table(text, "Test error").values()}
    assert rows == {"DDG (validation=100)": ["20.00 %", "15.00 %", "10.00 %"], "FR": ["16.67 %", "", "16.67 %"]}
    assert "with a validation set, of the evaluation with the lowest validation error" in text


@pytest.mark.parametrize(("in_one_piece", "best"), [(False, "30.00 %"), (True, "10.00 %")])
def test_errors_of_weights_that_another_run_trained_are_not_those_of_a_run_that_took_over(
    in_one_piece, best, tmp_path, capsys
):
    origin = {"run": "/a", "step": 10, "epoch": 1.0, "train_time": 1.0, "method": "bp", "k": 1, "num_steps": 10}
    errors = {1: 0.1, 2: 0.4, 3: 0.3}
    write_run(tmp_path / "fr", origin=origin | {"in_one_piece": in_one_piece}, test_error=errors.__getitem__)
    assert report(tmp_path) == 0
    (row,) = table(capsys.readouterr().out, "Test error").values()
    assert (row["best test error"], row["last test error"]) == (best, "30.00 %")


def test_the_time_to_a_target_is_over_the_runs_that_reached_it(tmp_path, capsys):
    for seed, scale in enumerate((0.2, 0.3, 1.0)):  # after the second, the third and no epoch
        write_run(tmp_path / str(seed), seed=seed, test_error=lambda epoch, scale=scale: scale / epoch)
    write_run(tmp_path / "bp", "bp", test_error=lambda epoch: 0.9)
    write_run(tmp_path / "moved", "ddg", settings={"resume": "/runs/a"})
    assert report(tmp_path, "--target", "10") == 0
    text = capsys.readouterr().out
    cells = {row["method"]: row["seconds to 10 %"] for row in table(text, "Speed").values()}
    assert cells == {"FR": "2.5 ± 0.71 (2 of 3)", "BP": "- (0 of 1)", "DDG (resumed from a)": ""}
    assert "Seconds to 10 %:" in text
    assert report(tmp_path, "--target", "10", "--csv") == 0
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    names = ("target_test_error", "runs_that_reached_target", "seconds_to_target_mean")
    assert [rows["fr"][name] for name in names] == ["0.1", "2", "2.5"] and rows["ddg"]["target_test_error"] == ""
    assert report(tmp_path) == 0 and "seconds to" not in capsys.readouterr().out


def test_a_run_that_reached_the_target_and_did_not_finish_counts(tmp_path, capsys):
    for seed, (scale, state) in enumerate(((0.2, "finished"), (0.1, "interrupted"), (1.0, "finished"))):
        write_run(tmp_path / str(seed), seed=seed, test_error=lambda epoch, scale=scale: scale / epoch, state=state)
    assert report(tmp_path, "--target", "10") == 0
    assert table(capsys.readouterr().out, "Speed")["FR 2"]["seconds to 10 %"] == "1.5 ± 0.71 (2 of 3)"


@pytest.mark.parametrize("word", ["0", "100", "-3", "ten", "nan"])
def test_a_target_is_a_percentage(word, tmp_path, capsys):
    write_run(tmp_path / "0")
    assert report(tmp_path, f"--target={word}") == 2
    assert f"'{word}' is no percentage between 0 and 100" in capsys.readouterr().err


def test_the_difference_to_bp_is_paired_by_seed(tmp_path, capsys):
    bp = (0.10, 0.20, 0.30)
    for seed, error in enumerate(bp):
        write_run(tmp_path / f"bp{seed}", "bp", k=1, seed=seed, test_error=lambda _, error=error: error)
    for seed, error in enumerate((0.11, 0.23, 0.9, 0.9)):
        state = {"state": "running"} if seed == 2 else {}
        write_run(tmp_path / f"fr{seed}", "fr", seed=seed, test_error=lambda _, error=error: error, **state)
    write_run(tmp_path / "other", "fr", settings={"optimizer": {"lr": 0.9}})
    write_run(tmp_path / "ddg", "ddg", k=4, test_error=lambda _: 0.08)
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    column = "paired difference to BP"
    cells = {f"{row['method']} {row['K']}": row[column] for row in table(text, "Test error").values()}
    assert cells == {
        "BP (lr=0.1) 1": "",
        "FR (lr=0.1) 2": "+2.00 ± 1.00 (n = 2)",
        "FR (lr=0.9) 2": "",
        "DDG (lr=0.1) 4": "-2.00 (n = 1)",
    }
    assert "Paired difference to BP:" in text
    assert report(tmp_path, "--csv") == 0
    rows = [row for row in csv.DictReader(io.StringIO(capsys.readouterr().out)) if row["method"] == "fr"]
    assert float(rows[0]["difference_to_bp_mean"]) == pytest.approx(0.02) and rows[0]["difference_to_bp_seeds"] == "2"
    assert rows[1]["difference_to_bp_mean"] == rows[1]["difference_to_bp_seeds"] == ""


@pytest.mark.parametrize("unfinished", ["bp", "fr"])
def test_there_is_no_difference_of_runs_that_have_not_finished(unfinished, tmp_path, capsys):
    for method, k in (("bp", 1), ("fr", 2)):
        write_run(tmp_path / method, method, k=k, state="running" if method == unfinished else "finished")
    assert report(tmp_path) == 0
    assert "paired difference to BP" not in capsys.readouterr().out


def test_the_difference_is_to_those_runs_of_bp_that_share_most_seeds(tmp_path, capsys):
    write_run(tmp_path / "bp1", "bp", k=1, seed=0, test_error=lambda _: 0.5)
    for seed in (0, 1):
        write_run(tmp_path / f"bp2-{seed}", "bp", k=2, seed=seed, test_error=lambda _: 0.1)
        write_run(tmp_path / f"fr{seed}", "fr", seed=seed, test_error=lambda _: 0.12)
    assert report(tmp_path) == 0
    row = table(capsys.readouterr().out, "Test error")["FR 2"]
    assert row["paired difference to BP"] == "+2.00 ± 0.00 (n = 2)"


def test_no_difference_at_all_is_not_below_zero(tmp_path, capsys):
    """The floats' sum is."""
    for seed, (bp, fr) in enumerate(zip((0.05, 0.05, 0.05), (0.04, 0.05, 0.06), strict=True)):
        write_run(tmp_path / f"bp{seed}", "bp", k=1, seed=seed, test_error=lambda _, error=bp: error)
        write_run(tmp_path / f"fr{seed}", "fr", seed=seed, test_error=lambda _, error=fr: error)
    assert report(tmp_path) == 0
    row = table(capsys.readouterr().out, "Test error")["FR 2"]
    assert row["paired difference to BP"] == "+0.00 ± 0.58 (n = 3)"


@pytest.mark.parametrize("settings", [{"clip_norm": 1.0}, {"freeze": [1]}])
def test_the_difference_to_bp_is_to_bp_with_the_same_k_where_that_matters_to_it(settings, tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path / f"bp1-{seed}", "bp", k=1, seed=seed, test_error=lambda _: 0.10, settings=settings)
    write_run(tmp_path / "bp2", "bp", k=2, test_error=lambda _: 0.20, settings=settings)
    for k in (2, 4):
        write_run(tmp_path / f"fr{k}", "fr", k=k, test_error=lambda _: 0.25, settings=settings)
    assert report(tmp_path) == 0
    rows = table(capsys.readouterr().out, "Test error")
    column = "paired difference to BP"
    assert (rows["FR 2"][column], rows["FR 4"][column]) == ("+5.00 (n = 1)", "")


def test_the_limit_of_synthetic_gradients_says_what_it_leaves_out(tmp_path, capsys):
    write_run(tmp_path / "ddg", "ddg")
    assert report(tmp_path) == 0 and "synthesizers" not in capsys.readouterr().out
    write_run(tmp_path / "dni", "cdni")
    assert report(tmp_path) == 0
    assert (
        "The limit of DNI, cDNI and DGL leaves out what their synthesizers and auxiliary networks compute"
        in capsys.readouterr().out
    )


def test_the_limit_is_that_of_a_device_a_module_and_not_of_replicas(tmp_path, capsys):
    for replicas in (1, 2):
        write_run(tmp_path / str(replicas), settings={"replicas": replicas})
    assert report(tmp_path) == 0
    limits = {row["method"]: row["ideal limit"] for row in table(capsys.readouterr().out, "Speed").values()}
    assert limits == {"FR": "1.75", "FR (replicas=2)": ""}


def test_streams_are_no_obstacle_to_a_comparison_with_one_module_which_has_none(tmp_path, capsys):
    write_run(tmp_path / "bp", "bp", k=1, step_s=0.4)
    write_run(tmp_path / "fr", step_s=0.2, transport="serial", settings={"streams": False})
    write_run(tmp_path / "graphs", transport="serial", settings={"cuda_graphs": True})
    assert report(tmp_path) == 0
    rows = table(capsys.readouterr().out, "Speed")
    speedups = {name: row["speed-up over BP, K = 1"] for name, row in rows.items()}
    assert speedups == {"BP 1": "1", "FR (streams=false) 2": "2", "FR (cuda_graphs=true) 2": ""}


def test_a_serial_pipeline_is_not_passed_off_as_one(tmp_path, capsys):
    write_run(tmp_path / "fr", transport="serial")
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    assert table(text, "Speed")["FR 2"]["transport"] == "serial" and "shared one process and its device" in text


def test_memory_is_listed_by_module(tmp_path, capsys):
    records = records_of_a_run(2)
    for record in records:
        if record["kind"] == "memory":
            record["peak"] = record["module"] * 2**30 + record["step"]
            record["predicted"] = 4 * 2**20
            del record["activations"]
    write_run(tmp_path / "fr", records=records)
    write_run(tmp_path / "bp", "bp", k=1, category_bytes=2**10)
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    rows = table(text, "Memory")
    assert [rows["FR 2"][f"peak, module {k}"] for k in (1, 2)] == ["1 GiB", "2 GiB"]
    assert rows["FR 2"]["accounted, all modules"] == "6 MiB"
    assert (rows["FR 2"]["predicted"], rows["BP 1"]["predicted"]) == ("8 MiB", "")
    assert rows["BP 1"]["peak, module 2"] == "" and rows["BP 1"]["accounted, all modules"] == "4 KiB"
    assert "Missing from what is accounted" in text and "activations" in text


def test_memory_that_was_predicted_for_some_modules_alone_is_no_total(tmp_path, capsys):
    records = records_of_a_run(2)
    for record in records:
        if record["kind"] == "memory" and record["module"] == 1:
            record["predicted"] = 4 * 2**20
    write_run(tmp_path / "fr", records=records)
    assert report(tmp_path) == 0
    assert table(capsys.readouterr().out, "Memory")["FR 2"].get("predicted", "") == ""


def test_published_numbers_stand_in_a_column_of_their_own(tmp_path, capsys):
    fr = method("fr")
    write_run(tmp_path / "fr2", "fr", k=2, **as_published("resnet164", method=fr))
    write_run(tmp_path / "fr4", "fr", k=4, **as_published("resnet164", method=fr))
    write_run(tmp_path / "frozen", "fr", k=2, **as_published("resnet164", method=fr, freeze=[1]))
    write_run(tmp_path / "part", "fr", k=2, **as_published("resnet164", method=fr, dataset={"limit": 100}))
    write_run(tmp_path / "fast", "fr", k=2, **as_published("resnet164", method=fr, optimizer={"lr": 0.5}))
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    rows = table(text, "Test error")
    published = {key: row["published"] for key, row in rows.items() if row["published"]}
    assert list(published.values()) == ["6.03 % (FR paper, recalled, which ResNet164?)"]
    assert not any(word in next(iter(published)) for word in ("freeze=[1]", "limit=100", "lr=0.5"))
    assert all(row["best test error"] == "16.67 %" for row in rows.values())
    assert f"recalled: {CERTAINTY['recalled']}" in text and f"which ResNet164? {DOUBTS['which ResNet164?']}" in text
    withheld = [line for line in text.splitlines() if line.startswith("- Not beside")]
    assert len(withheld) == 3 and all("FR paper, which has" in line for line in withheld)
    for difference in ("freeze=null, not [1].", "dataset.limit=null, not 100.", "optimizer.lr=0.01, not 0.5."):
        assert any(line.endswith(difference) for line in withheld), (difference, withheld)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 200},
        {"batch_size": 64},
        {"max_steps": 1000},
        {"replicas": 2},
        {"clip_norm": 1.0},
        {"resume": "/runs/bp"},
        {"precision": "bf16"},
        {"dataset": {"validation": 5000}},
        {"dataset": {"augmentation": {"crop_padding": 2, "flip": True}}},
        {"dataset": {"augmentation": {"crop_padding": 4, "flip": False}}},
        {"optimizer": {"_target_": "torch.optim.Adam"}},
        {"optimizer": {"momentum": 0.0}},
        {"optimizer": {"weight_decay": 1e-4}},
        {"schedule": {"_target_": "fr_bench.schedules.Cosine"}},
        {"schedule": {"gamma": 0.5}},
        {"schedule": {"warmup_epochs": 5}},
        {"method": method("fr", carry_history=False)},
    ],
    ids=str,
)
def test_no_published_number_stands_beside_a_run_with_another_recipe(changes, tmp_path, capsys):
    write_run(tmp_path / "fr", "fr", k=2, **as_published("resnet164", **({"method": method("fr")} | changes)))
    assert report(tmp_path, "--csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert not row.get("published_test_error")


@pytest.mark.parametrize(("nesterov", "value"), [(False, "0.0607"), (True, "")])
def test_the_rerun_was_without_nesterovs_momentum(nesterov, value, tmp_path, capsys):
    optimizer, schedule = {"lr": 0.1, "nesterov": nesterov}, {"milestones": [150, 225, 275]}
    settings = as_published("resnet56_basic", method=method("fr"), optimizer=optimizer, schedule=schedule)
    write_run(tmp_path / "fr", "fr", k=2, **settings)
    assert report(tmp_path, "--csv") == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row.get("published_test_error", "") == value


def test_without_a_match_there_is_no_published_column(tmp_path, capsys):
    write_run(tmp_path / "0", "fr", k=3, **as_published("resnet164", method=method("fr")))
    write_run(tmp_path / "1", "fr", k=2, **as_published("resnet20", method=method("fr")))
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    assert "published" not in text and "Not beside" not in text


def test_a_number_of_basic_blocks_is_not_beside_bottlenecks(tmp_path, capsys):
    """The FDG and DDG papers' ResNet56; and a name alone makes no network."""
    changes = {"optimizer": {"lr": 0.1}, "schedule": {"milestones": [150, 225, 275]}, "method": method("fr")}
    write_run(tmp_path / "basic", "fr", k=2, **as_published("resnet56_basic", **changes))
    write_run(tmp_path / "bottleneck", "fr", k=2, **as_published("resnet56", **changes))
    changes["model"] = {"name": "resnet56_basic", "depth": 20}
    write_run(tmp_path / "other", "fr", k=2, **as_published("resnet56_basic", **changes))
    changes["model"] = {"name": "resnet56_basic", "norm": "group"}
    write_run(tmp_path / "norm", "fr", k=2, **as_published("resnet56_basic", **changes))
    assert report(tmp_path, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 4
    found = [(row["model"], row["variant"]) for row in rows if row["published_test_error"] == "0.0607"]
    assert found == [("resnet56_basic", "depth=56")] and sum(bool(row["published_test_error"]) for row in rows) == 1


def test_milestones_are_the_same_in_epochs_and_as_fractions(tmp_path, capsys):
    changes = {"method": method("ddg", weights="stashed", carry_history=True)}
    for index, milestones in enumerate(([0.5, 0.75], [150, 225], [100, 225])):
        settings = as_published("resnet110_basic", **changes, schedule={"milestones": milestones})
        write_run(tmp_path / str(index), "ddg", k=2, **settings)
    assert report(tmp_path, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sorted(row["published_test_error"] for row in rows) == ["", "0.0659", "0.0659"]
    # A speed-up depends on less.
    assert all(row["published_speedup"] == "1.404" and row["published_speedup_certainty"] == "plotted" for row in rows)


def test_the_authors_own_rates_are_no_reason_to_withhold_their_number(tmp_path, capsys):
    for index, rates in enumerate(([2.0, 1.0], [3.0, 1.0])):
        changes = {"method": method("fr", bn_stats="both"), "module_lr": rates, "optimizer": {"nesterov": True}}
        write_run(tmp_path / str(index), "fr", k=2, **as_published("resnet164_basic", **changes))
    assert report(tmp_path, "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["published_test_error"] for row in rows if row["variant"] == "module_lr=[2.0,1.0]"] == ["0.0603"]
    assert [row["published_test_error"] for row in rows if row["variant"] == "module_lr=[3.0,1.0]"] == [""]


@pytest.mark.parametrize(
    ("cell", "value", "source", "certainty"),
    [
        (("cifar10", "resnet164", "bp", 1), 0.0640, "FR paper", "recalled"),
        (("cifar10", "resnet152", "fr", 2), 0.0491, "FR paper", "recalled"),
        (("cifar100", "resnet101", "ddg", 2), 0.2425, "FR paper", "quoted"),
        (("cifar100", "resnet152", "fr", 2), 0.2361, "FR paper", "quoted"),
        (("cifar10", "resnet56_basic", "fr", 4), 0.0648, "FDG rerun", "read"),
        (("cifar10", "resnet56_basic", "dgl", 4), 0.0965, "FDG rerun", "read"),
    ],
)
def test_published_cells(cell, value, source, certainty):
    numbers = [each for each in published_numbers() if each.quantity == "test_error"]
    (number,) = [each for each in numbers if (each.dataset, each.model, each.method, each.k) == cell]
    assert number.value == pytest.approx(value) and (number.source, number.certainty) == (source, certainty)


@pytest.mark.parametrize(("group", "known"), [("model", NETWORKS), ("method", METHODS)])
def test_published_numbers_are_about_our_own_configs(group, known):
    for name, settings in known.items():
        node = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
        if group == "method":
            assert node["_target_"] == settings
        else:
            here = {f"model.{key}": value for key, value in node.items() if key not in ("name", "norm")}
            assert here | {"model.norm": None} == settings and node["norm"] == "batch"


def test_every_published_number_says_whose_it_is_and_how_sure():
    numbers = published_numbers()
    assert all(number.source in SOURCES and number.certainty in CERTAINTY for number in numbers)
    assert all(0 < number.value < 0.5 for number in numbers if number.quantity == "test_error")


def test_data_sets_and_models_are_never_in_one_table(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_run(runs / "0", "bp", k=1, dataset="digits", step_s=9.0)
    write_run(runs / "1", "fr", dataset="cifar10")
    write_run(runs / "2", "fr", dataset="digits", model="large")
    assert report(runs, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        f"{stem}-{name}.{suffix}"
        for stem, suffixes in (("curves", ["json"]), ("report", ["csv", "md"]))
        for name in ("cifar10-tiny", "digits-large", "digits-tiny")
        for suffix in suffixes
    ]
    assert "BP" not in (out / "report-cifar10-tiny.md").read_text().partition("- ")[0]
    assert capsys.readouterr().out.count("### Test error") == 3


def test_the_files_hold_what_is_printed(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out" / "deep"
    write_run(runs / "0", seed=0, step_s=0.1)
    write_run(runs / "1", seed=1, step_s=0.3)
    assert report(runs, "--out", out) == 0
    assert (out / "report.md").read_text() == capsys.readouterr().out
    assert report(runs, "--csv") == 0
    text = capsys.readouterr().out
    assert (out / "report.csv").read_text() == text
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["method"], row["k"], row["runs_finished"], row["best_test_error_sd"]) == ("fr", "2", "2", "0.0")
    assert float(row["step_time_s_mean"]) == pytest.approx(0.2)
    assert float(row["peak_memory_bytes_module_2"]) == 2**30


def test_curves_have_every_evaluation_and_where_the_runs_were_made(tmp_path, capsys):
    def made_at(run: Path, commit: str) -> None:
        told = {"git": {"commit": commit}, "code": {"mine": "3f2a"}, "hostname": "mine", "command": ["/home/me"]}
        (run / "env.json").write_text(json.dumps(told))

    for seed, commit in enumerate(("one", "other", "one")):
        made_at(write_run(tmp_path / "runs" / str(seed), seed=seed, kinds=("eval", "memory")), commit)
    kinds = ("eval", "sigma")
    made_at(write_run(tmp_path / "runs" / "frozen", settings={"freeze": [1]}, state="failed", kinds=kinds), "other")
    assert report(tmp_path / "runs", "--out", tmp_path) == 0
    capsys.readouterr()
    text = (tmp_path / "curves.json").read_text()
    found = json.loads(text)
    assert found["environments"] == [
        {"git": {"commit": "one"}, "code": {"mine": "3f2a"}},
        {"git": {"commit": "other"}, "code": {"mine": "3f2a"}},
    ]
    *whole, frozen = found["runs"]
    assert [(run["seed"], run["environment"], run["settings"], run["state"]) for run in found["runs"]] == [
        (0, 0, "", "finished"), (1, 1, "", "finished"), (2, 0, "", "finished"), (0, 1, "freeze=[1]", "unfinished"),
    ]  # fmt: skip
    for run in whole:
        assert (run["method"], run["k"], run["cuts"]) == ("fr", 2, [1]) and "sigma" not in run
        assert [point["test_error"] for point in run["evaluations"]] == [0.5, 0.25, 0.166667]
        assert [point["epoch"] for point in run["evaluations"]] == [1, 2, 3]
    assert [(point["module"], point["cosine"]) for point in frozen["sigma"][:3]] == [(0, 0.9), (1, 0.9), (2, 0.9)]
    # A line a run: a diff shows which changed.
    assert sum('"seed"' in line for line in text.splitlines()) == len(found["runs"])


def test_a_run_without_evaluations_or_memory_has_empty_cells(tmp_path, capsys):
    write_run(tmp_path / "0", kinds=("train",))
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    assert table(text, "Test error")["FR 2"]["best test error"] == ""
    assert table(text, "Speed")["FR 2"]["seconds an epoch"] == "1" and "### Memory" not in text


def test_another_optimizer_is_named_and_its_settings_only_where_they_tell_it_from_another(tmp_path, capsys):
    def group(target: str, **settings: object) -> None:
        settings = {"optimizer": {"_target_": target, **settings}}
        write_run(tmp_path / str(len(list(tmp_path.iterdir()))), "fr", settings=settings)

    def names() -> set[str]:
        assert report(tmp_path) == 0
        return {row["method"] for row in table(capsys.readouterr().out, "Test error").values()}

    group("torch.optim.SGD", momentum=0.9, lr=0.1)
    group("torch.optim.Adam", betas=[0.9, 0.99], eps=1e-8, lr=0.001)
    assert names() == {"FR (optimizer=SGD)", "FR (optimizer=Adam)"}
    group("torch.optim.Adam", betas=[0.9, 0.99], eps=1e-8, lr=0.002)
    group("mine.Adam", lr=0.001)
    assert names() == {
        "FR (optimizer=torch.optim.SGD)",
        "FR (optimizer=torch.optim.Adam, lr=0.001)",
        "FR (optimizer=torch.optim.Adam, lr=0.002)",
        "FR (optimizer=mine.Adam)",
    }


def test_bad_runs_are_named_on_stderr_and_the_others_reported(tmp_path, capsys):
    write_run(tmp_path / "good")
    broken = write_run(tmp_path / "broken", "ddg")
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "ev')
    write_run(tmp_path / "failed", "dni", state="failed", error="diverged at step 30 in module 1: too fast")
    assert report(tmp_path) == 0
    captured = capsys.readouterr()
    rows = table(captured.out, "Test error")
    assert list(rows) == ["DNI 2", "DDG 2", "FR 2"] and rows["DNI 2"]["seeds"] == "1 diverged"
    lines = captured.err.splitlines()
    assert len(lines) == 2 and all(line.startswith("fr-bench: ") for line in lines)
    assert "broken/metrics.jsonl:" in captured.err and "diverged at step 30" in captured.err


def test_runs_that_diverged_before_their_first_record_count(tmp_path, capsys):
    early = {"records": [], "state": "failed", "error": "diverged at step 1 in module 1: its loss is nan"}
    write_run(tmp_path / "good", step_s=0.1, test_error=lambda epoch: 0.1)
    for seed in (1, 2):
        write_run(tmp_path / f"bad{seed}", seed=seed, **early)
    write_run(tmp_path / "alone", "ddg", **early)
    assert report(tmp_path, "--target", "10") == 0
    captured = capsys.readouterr()
    errors, speeds = table(captured.out, "Test error"), table(captured.out, "Speed")
    assert {name: row["seeds"] for name, row in errors.items()} == {"DDG 2": "1 diverged", "FR 2": "n = 1, 2 diverged"}
    assert {name: row["seconds to 10 %"] for name, row in speeds.items()} == {
        "DDG 2": "- (0 of 1)",
        "FR 2": "1 (1 of 3)",
    }
    assert errors["DDG 2"]["best test error"] == speeds["DDG 2"]["seconds an epoch"] == ""
    assert captured.err.count("diverged at step 1") == captured.err.count("counted, without any records") == 3
    assert report(tmp_path, "--csv") == 0
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert [rows[name]["runs_diverged"] for name in ("ddg", "fr")] == ["1", "2"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_nothing_to_report_on_is_a_mistake(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert report(tmp_path / name) == 2
    captured = capsys.readouterr()
    assert "no run with records" in captured.err and not captured.out and "Traceback" not in captured.err


def test_the_files_are_there_even_if_nobody_reads_the_tables(tmp_path):
    """As in ``fr-bench report RUN_DIR --out DIR | head -1``."""
    write_run(tmp_path / "run")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fr_bench", "report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    os.close(writer)
    assert done.returncode == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["curves.json", "report.csv", "report.md"]


def test_a_locale_without_its_letters_is_no_obstacle_to_a_report(tmp_path):
    """Which says ± and may have names of any letters; also where stdout is closed."""
    for seed, error in enumerate((0.4, 0.6)):
        write_run(tmp_path / str(seed), seed=seed, model="modèle", test_error=lambda epoch, error=error: error / epoch)
    command = [sys.executable, "-m", "fr_bench", "report", str(tmp_path), "--out", "out"]
    for closing in ("", " >&-"):
        done = subprocess.run(
            shlex.join(command) + closing,
            shell=True, cwd=tmp_path, env=os.environ | ASCII, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert closing or "n = 2" in done.stdout
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "modèle" in text and "±" in text
    write_run(tmp_path / "2", model="tiny")
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | ASCII, capture_output=True, text=True)
    assert done.returncode == 2 and "the locale has no letters for" in done.stderr and "Traceback" not in done.stderr


def test_an_unwritable_folder_is_a_mistake(tmp_path, capsys):
    write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert report(tmp_path / "run", "--out", tmp_path / "file" / "below") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0), (["x", "--no-such"], 2)])
def test_mistakes_in_the_command_line(words, code, capsys):
    assert main(["report", *words]) == code


def test_neither_the_command_line_nor_the_report_loads_matplotlib_or_torch(tmp_path):
    write_run(tmp_path / "run")
    code = (
        "import sys, fr_bench.cli as cli; assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert cli.main(['plot', '--help']) == 0 and cli.main(['report', sys.argv[1]]) == 0\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_times_a_half_apart_are_said_and_less_is_not(tmp_path, capsys):
    for name, slow_s in (("less", 0.14), ("half", 0.16)):
        for seed, step_s in enumerate((0.1, slow_s)):
            write_run(tmp_path / name / str(seed), seed=seed, step_s=step_s)
        assert report(tmp_path / name) == 0
        assert ("far apart (FR, K = 2, 1.6-fold)" in capsys.readouterr().out) is (name == "half")


def test_of_many_settings_that_withhold_a_number_four_are_named_and_the_rest_counted(tmp_path, capsys):
    changes = {"epochs": 2, "batch_size": 64, "optimizer": {"lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}}
    write_run(tmp_path / "0", "fr", k=2, **as_published("resnet164", method=method("fr"), **changes))
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    (line,) = (line for line in text.splitlines() if "Not beside FR, K = 2: FR paper" in line)
    *named, rest = line.partition("which has ")[2].split("; ")
    assert len(named) == 4 and rest == "and 2 more."


@pytest.mark.parametrize(("mib", "shown"), [(999, "999 MiB"), (999.6, "1000 MiB"), (1023, "1023 MiB"), (1024, "1 GiB")])
def test_no_number_of_bytes_has_an_exponent(mib, shown, tmp_path, capsys):
    records = records_of_a_run(1)
    for record in records:
        if record["kind"] == "memory":
            record["peak"] = mib * 2**20
    write_run(tmp_path / "0", "bp", k=1, records=records)
    assert report(tmp_path) == 0
    assert table(capsys.readouterr().out, "Memory")["BP 1"]["peak, module 1"] == shown


def test_the_csv_tells_threads_seeds_and_the_error_of_a_paired_difference(tmp_path, capsys):
    for seed, error in enumerate((0.10, 0.20)):
        write_run(tmp_path / f"bp{seed}", "bp", k=1, seed=seed, test_error=lambda _, error=error: error)
    for seed, error in enumerate((0.11, 0.23, 0.5)):
        state = "failed" if seed == 2 else "finished"
        settings = {"plan": {"threads": 3, "cuts": [1], "devices": ["cpu"] * 2, "transport": "gloo"}}
        write_run(tmp_path / f"fr{seed}", "fr", seed=seed, test_error=lambda _, error=error: error, state=state,
                  settings=settings)  # fmt: skip
    assert report(tmp_path, "--csv") == 0
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    fr = rows["fr"]
    assert (fr["threads"], rows["bp"]["threads"]) == ("3", "1")
    assert (fr["seeds"], fr["runs_finished"], fr["runs_unfinished"]) == ("2", "2", "1")
    assert float(fr["difference_to_bp_mean"]) == pytest.approx(0.02)
    assert float(fr["difference_to_bp_standard_error"]) == pytest.approx(0.01)


def test_one_module_has_no_pipeline_efficiency(tmp_path, capsys):
    write_run(tmp_path / "bp", "bp", k=1)
    write_run(tmp_path / "fr", "fr", k=2)
    assert report(tmp_path) == 0
    speed = table(capsys.readouterr().out, "Speed")
    assert (speed["BP 1"]["efficiency"], speed["FR 2"]["efficiency"]) == ("", "80 %")


def test_peaks_by_module_are_the_last_columns_of_the_csv(tmp_path, capsys):
    """Also where the first row has no seconds to the target: its first steps are another run's."""
    origin = {"k": 1, "step": 5, "num_steps": 30, "run": "elsewhere"}
    write_run(tmp_path / "bp", "bp", k=1, settings={"resume": "elsewhere"}, origin=origin)
    write_run(tmp_path / "fr", "fr", k=2)
    assert report(tmp_path, "--csv", "--target", "20") == 0
    head = capsys.readouterr().out.splitlines()[0].split(",")
    assert "target_test_error" in head
    assert head[-2:] == ["peak_memory_bytes_module_1", "peak_memory_bytes_module_2"]


def test_curves_tell_code_that_changed_between_steps(tmp_path, capsys):
    run = write_run(tmp_path / "runs" / "0")
    told = {"code_before": [{"mine": "1111"}], "code": {"mine": "2222"}, "versions": {"torch": "2.14"}, "date": "today"}
    (run / "env.json").write_text(json.dumps(told))
    assert report(tmp_path / "runs", "--out", tmp_path) == 0
    (environment,) = json.loads((tmp_path / "curves.json").read_text())["environments"]
    assert environment == {key: told[key] for key in ("code_before", "code", "versions")}
