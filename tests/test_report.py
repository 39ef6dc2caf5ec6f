"""``fr-bench report``: what the tables say, beside which published numbers, and what happens with bad runs."""

from __future__ import annotations

import csv
import io
import subprocess
import sys

import pytest
from run_files import records_of_a_run, write_run

from fr_bench.cli import main
from fr_bench.published import CERTAINTY, SOURCES, published_for, published_numbers


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


def test_speed_up_is_over_both_kinds_of_backpropagation(tmp_path, capsys):
    write_run(tmp_path / "bp1", "bp", k=1, step_s=0.4)
    write_run(tmp_path / "bp4", "bp", k=4, step_s=0.5)
    write_run(tmp_path / "fr4", "fr", k=4, step_s=0.2)
    write_run(tmp_path / "ddg2", "ddg", k=2, step_s=0.2)
    assert report(tmp_path) == 0
    rows = table(capsys.readouterr().out, "Speed")
    columns = ("speed-up over BP, K = 1", "over locked BP, same K", "limit", "seconds an epoch", "efficiency")
    assert [rows["FR 4"][column] for column in columns] == ["2", "2.5", "3.25", "2", "80 %"]
    assert [rows["DDG 2"][column] for column in columns] == ["2", "", "2.00", "2", "80 %"]
    assert [rows["BP 4"][column] for column in columns] == ["0.8", "1", "", "5", "80 %"]


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


def test_the_limit_of_synthetic_gradients_says_what_it_leaves_out(tmp_path, capsys):
    write_run(tmp_path / "ddg", "ddg")
    assert report(tmp_path) == 0 and "synthesizers" not in capsys.readouterr().out
    write_run(tmp_path / "dni", "cdni")
    assert report(tmp_path) == 0
    assert "The limit of DNI and cDNI leaves out what their synthesizers compute" in capsys.readouterr().out


def test_a_serial_pipeline_is_not_passed_off_as_one(tmp_path, capsys):
    write_run(tmp_path / "fr", transport="serial")
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    assert table(text, "Speed")["FR 2"]["transport"] == "serial" and "took turns in one process" in text


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


def test_published_numbers_stand_in_a_column_of_their_own(tmp_path, capsys):
    names = {"model": "resnet164", "dataset": "cifar10"}
    write_run(tmp_path / "fr2", "fr", k=2, **names)
    write_run(tmp_path / "fr4", "fr", k=4, **names)
    write_run(tmp_path / "frozen", "fr", k=2, settings={"freeze": [1]}, **names)
    write_run(tmp_path / "part", "fr", k=2, settings={"dataset": {"limit": 100}}, **names)
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    rows = table(text, "Test error")
    published = {key: row["published"] for key, row in rows.items() if row["published"]}
    assert list(published.values()) == ["6.03 % (FR paper, recalled)"]
    assert "freeze" not in next(iter(published)) and "limit" not in next(iter(published))
    assert all(row["best test error"] == "16.67 %" for row in rows.values())
    assert f"recalled: {CERTAINTY['recalled']}" in text


def test_without_a_match_there_is_no_published_column(tmp_path, capsys):
    write_run(tmp_path / "0", "fr", k=3, model="resnet164", dataset="cifar10")
    write_run(tmp_path / "1", "fr", k=2, model="resnet20", dataset="cifar10")
    assert report(tmp_path) == 0
    assert "published" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cell", "value", "certainty"),
    [
        (("cifar10", "resnet164", "bp", 1), 0.0640, "recalled"),
        (("cifar10", "resnet152", "fr", 2), 0.0491, "recalled"),
        (("cifar100", "resnet101", "ddg", 2), 0.2425, "quoted"),
        (("cifar100", "resnet152", "fr", 2), 0.2361, "quoted"),
        (("cifar10", "resnet56", "fr", 4), 0.0648, "read"),
    ],
)
def test_published_cells(cell, value, certainty):
    (number,) = published_for("test_error", *cell)
    assert number.value == pytest.approx(value) and number.certainty == certainty


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
        f"report-{name}.{suffix}"
        for name in ("cifar10-tiny", "digits-large", "digits-tiny")
        for suffix in ("csv", "md")
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


def test_a_run_without_evaluations_or_memory_has_empty_cells(tmp_path, capsys):
    write_run(tmp_path / "0", kinds=("train",))
    assert report(tmp_path) == 0
    text = capsys.readouterr().out
    assert table(text, "Test error")["FR 2"]["best test error"] == ""
    assert table(text, "Speed")["FR 2"]["seconds an epoch"] == "1" and "### Memory" not in text


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


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_nothing_to_report_on_is_a_mistake(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert report(tmp_path / name) == 2
    captured = capsys.readouterr()
    assert "no run with records" in captured.err and not captured.out and "Traceback" not in captured.err


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
