"""What a person sees: plain lines for a log, a display that is redrawn on a terminal, a summary at the end."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import call, read_records

from fr_bench.cli import main
from fr_bench.records.console import (
    LiveConsole,
    RunTitle,
    duration,
    num_bytes,
    percent,
    print_summary,
    rate,
    record_line,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

TERMINAL = {**ENVIRONMENT, "TERM": "xterm-256color", "COLUMNS": "110", "LINES": "40"}


def run(folder: Path, *words: str) -> list[str]:
    return ["train", "debug=fast", "k=2", f"run_dir={folder / 'run'}", *words]


def test_where_there_is_no_terminal_every_record_is_a_line_for_grep(tmp_path: Path) -> None:
    done = call(tmp_path, *run(tmp_path, "console=auto", "log_every=5"))
    lines = done.stdout.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["5", "10", "15", "20"]
    assert all(" loss " in line and " lr " in line and " images/s " in line for line in steps)
    assert sum(line.startswith("eval step 20 ") and "test error" in line for line in lines) == 1
    assert lines[-1] == f"run directory: {tmp_path / 'run'}"
    assert "\x1b" not in done.stdout


def test_on_a_terminal_the_display_is_redrawn_and_the_cursor_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TERM", "COLUMNS", "LINES"):
        monkeypatch.setenv(name, TERMINAL[name])
    ours, theirs = pty.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=lambda: shown.extend(parts_of(ours)))
    reader.start()
    with open(theirs, "w") as terminal, contextlib.redirect_stdout(terminal):
        code = main(run(tmp_path, "console=auto"))
    reader.join()
    os.close(ours)
    assert code == 0
    text = b"".join(shown).decode()
    assert text.count("fr, K = 2, mlp on digits") > 2  # drawn, and drawn again
    assert "step 20 of 20" in text and "memory peak" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again after it was hidden


def test_the_best_error_of_the_display_is_that_of_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    """It is chosen by the validation error, and of all evaluations, also those before the run went on."""
    earlier, later, last = (
        {"kind": "eval", "step": step, "epoch": 1.0, "train_time": 1.0, "test_error": test, "validation_error": chosen}
        for step, test, chosen in ((10, 0.25, 0.1), (20, 0.125, 0.3), (30, 0.375, 0.05))
    )
    for records, best in (([later], "25.0 %"), ([later, last], "37.5 %")):
        display = LiveConsole(RunTitle("fr", "mlp", "digits", 2, 1, total_steps=30, steps_per_epoch=10, best=earlier))
        for record in records:
            display.write(record)
        display.finish(None, 0)
        assert capsys.readouterr().out.rpartition("best ")[2].startswith(best)


def parts_of(terminal: int) -> Iterator[bytes]:
    """What is written to a terminal until its other end is closed."""
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 65536):
            yield part


def test_a_terminal_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = run(tmp_path, "console=live", "epochs=100", "max_steps=300", "log_every=10", "eval_every=50")
    program = [sys.executable, "-m", "fr_bench", *words]
    process = subprocess.Popen(program, stdout=theirs, stderr=subprocess.PIPE, text=True, env=TERMINAL)
    os.close(theirs)
    shown = b""
    while b"loss " not in shown:
        shown += os.read(ours, 65536)
    os.close(ours)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "the output cannot be written (Input/output error); training goes on" in stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert max(record["step"] for record in read_records(tmp_path / "run")) == 300


def test_console_off_says_nothing(tmp_path: Path) -> None:
    done = call(tmp_path, *run(tmp_path, "console=off"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_evaluation_names_its_sets_and_absent_fields_are_absent() -> None:
    record = {"kind": "eval", "step": 40, "epoch": 2.0, "train_time": 12.34, "train_loss": 0.5, "test_error": 0.125}
    assert record_line(record) == "eval step 40 epoch 2 train loss 0.5000 test error 12.5 % 12.3 s"


def summary(**changes: Any) -> dict[str, Any]:
    account = {"parameters": 2**20, "gradients": 2**20, "optimizer": 2**20, "history": 5 * 2**20, "activations": 2**30}
    account |= {"stash": 0, "synthesizer": 0, "buffers": 0, "predicted": 2**30}
    return {
        "method": "fr",
        "model": "resnet20",
        "dataset": "digits",
        "k": 2,
        "replicas": 1,
        "cuts": [3],
        "num_blocks": 8,
        "best_test_error": 0.0111,
        "best_epoch": 12.0,
        "best_validation_error": None,
        "last_test_error": 0.0139,
        "steps": 330,
        "train_time": 75.0,
        "epoch_time_s": 5.0,
        "images_per_s": 281.6,
        "efficiency": 0.91,
        "busy_s": [0.06, 0.08],
        "waiting_share": [0.25, 0.0],
        "peak_memory": [2**29, 2**30],
        "devices": ["cpu", "cpu"],
        "memory": [account, account],
        **changes,
    }


def test_the_summary_has_errors_times_and_memory_by_module(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(summary(), Path("outputs/run"), [0.9, 1.0])
    text = capsys.readouterr().out
    for part in ("1.11 % (epoch 12)", "1.39 %", "330 in 1 min 15 s", "5 s", "282", "91 %", "1 to 3", "4 to 8", "25 %"):
        assert part in text, part
    assert " ".join(text.partition("process peak")[2].splitlines()[1].split()) == "1 cpu 1 to 3 90 % 75 % 25 % 512 MiB"
    memory = text.partition("weights")[2]
    assert "3 MiB" in memory and "5 MiB" in memory and "1.00 GiB" in memory
    assert "stash" not in text and "synthesizer" not in text  # nobody has any
    assert text.splitlines()[-1] == "run directory: outputs/run"


def test_what_the_best_epoch_was_chosen_by_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """It need not have the lowest test error."""
    print_summary(summary(best_validation_error=0.02, last_test_error=0.01), Path("run"), [0.9, 1.0])
    assert "1.11 % (epoch 12, by its validation error of 2.00 %)" in capsys.readouterr().out


def test_busy_time_is_shown_on_gpus_too_whose_spans_are_timed_by_events(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(summary(devices=["cuda:0", "cuda:1"]), Path("run"), [0.9, 1.0])
    row = capsys.readouterr().out.partition("process peak")[2].splitlines()[1]
    assert " ".join(row.split()) == "1 cuda:0 1 to 3 90 % 75 % 25 % 512 MiB"


def test_a_run_that_ended_before_its_first_record_has_a_summary_too(capsys: pytest.CaptureFixture[str]) -> None:
    unknown = dict.fromkeys(("best_test_error", "best_epoch", "last_test_error", "epoch_time_s", "images_per_s"))
    lists = {name: [None, None] for name in ("busy_s", "waiting_share", "peak_memory", "devices", "memory")}
    print_summary(summary(steps=0, train_time=0.0, efficiency=None, **unknown, **lists), Path("run"), [0.5, 1.0])
    assert "best test error" not in capsys.readouterr().out


def test_numbers_carry_their_units() -> None:
    assert [duration(s) for s in (4.206, 200, 7980)] == ["4.21 s", "3 min 20 s", "2 h 13 min"]
    assert [num_bytes(n) for n in (12 * 2**10, 512 * 2**20, 1.5 * 2**30)] == ["12 KiB", "512 MiB", "1.50 GiB"]
    assert [rate(r) for r in (12.34, 1234.5)] == ["12.3", "1234"]
    assert percent(0.125) == "12.5 %"
    assert duration(None) == num_bytes(None) == rate(None) == percent(None) == ""
