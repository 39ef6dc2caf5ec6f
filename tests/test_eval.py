"""fr-bench eval: the same numbers as at the end of training, with any K."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from harness import ASCII, call, read_records, read_weights, run_processes, tiny_config, train_here
from safetensors.torch import save

from fr_bench.checkpoints.files import weights_file
from fr_bench.cli import main
from fr_bench.commands import evaluate
from fr_bench.data import fashion_mnist
from fr_bench.errors import ConfigError
from fr_bench.notebook import load_model, load_test_set
from fr_bench.settings.comparison import SINCE_LATER


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_processes(tiny_config("fr", 3, dataset={"validation": 12}), folder)
    return folder


@pytest.mark.parametrize("words", [[], ["--k", "1"], ["--k", "4"], ["--k", "6", "--device", "cpu"]])
def test_any_k_gives_the_error_at_the_end_of_training(
    run_dir: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if '"eval"' in line][-1]
    assert main(["eval", str(run_dir), "--json", "--trust", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["test_error"] == last["test_error"] and result["validation_error"] == last["validation_error"]
    assert result["test_loss"] == pytest.approx(last["test_loss"], rel=1e-6)
    assert result["k"] == (int(words[1]) if words else 3)


def test_the_text_names_errors_and_the_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run_dir), "--trust"]) == 0
    text = capsys.readouterr().out
    assert "test error" in text and str(run_dir) in text and "K = 3" in text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "give the directory of a run"),
        (lambda folder: (folder / "config.yaml").write_text("[1"), "is not the config of a run"),
        (lambda folder: (folder / "config.yaml").write_bytes(b"a: \xff"), "is not the config of a run (UnicodeDecode"),
        (lambda folder: (folder / "config.yaml").write_text("plan: {cuts: [1]}"), "is not the config of a run (KeyErr"),
        (lambda folder: (folder / "config.yaml").write_text("method: 3\nplan: {cuts: []}"), "config of a run (TypeErr"),
        (lambda folder: [p.unlink() for p in folder.rglob("*.safetensors")], "holds no weights"),
        (lambda folder: next(folder.rglob("*.safetensors")).write_bytes(b"short"), "cannot be read"),
        (lambda folder: (folder / "checkpoints/final/module_2.safetensors").unlink(), "are not of this model"),
    ],
)
def test_what_is_wrong_with_a_run_is_said(run_dir, spoil, message, tmp_path, capsys) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    spoil(tmp_path / "run")
    assert main(["eval", str(tmp_path / "run"), "--trust"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("memory_limit_gb: null", "memory_limit_gb: 1.0e-06"),
        ("precision: fp32", "precision: tf32"),
        ("compile: false", "compile: true"),
    ],
)
def test_what_training_needed_an_evaluation_does_without(
    run_dir: Path,
    old: str,
    new: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit for a module is none for all of them on one device; TF32 is a GPU's; nothing is compiled."""
    shutil.copytree(run_dir, tmp_path / "run")
    text = (run_dir / "config.yaml").read_text()
    if old not in text:  # null by default
        text += "memory_limit_gb: null\n"
    (tmp_path / "run" / "config.yaml").write_text(text.replace(old, new))
    monkeypatch.setenv("PATH", "")  # nor is there a compiler
    assert main(["eval", str(run_dir), "--json", "--trust", "--device", "cpu"]) == 0
    expected = capsys.readouterr().out
    assert main(["eval", str(tmp_path / "run"), "--json", "--trust", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(("key", "value", "k"), [("module_lr", [1.0, 2.0, 1.0], 6), ("devices", [0, 1, 2], 1)])
def test_what_was_said_of_each_module_is_not_asked_of_others(
    key: str, value: object, k: int, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config | {key: value}))
    assert main(["eval", str(tmp_path / "run"), "--json", "--trust", "--k", str(k), "--device", "cpu"]) == 0
    assert "test_error" in capsys.readouterr().out


@pytest.mark.parametrize("key", [key for key in SINCE_LATER if "." not in key])
def test_a_run_made_before_a_setting_was_there_is_evaluated(
    key: str, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    del config[key]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["eval", str(tmp_path / "run"), "--json", "--trust"]) == 0
    assert "test_error" in capsys.readouterr().out


def test_final_weights_of_which_some_are_missing_are_passed_over_for_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process may be killed while it saves."""
    train_here(tiny_config("fr", 2, checkpoint={"every": 5}), tmp_path)
    assert main(["eval", str(tmp_path), "--trust"]) == 0
    whole = capsys.readouterr().out
    assert "(final weights of " in whole
    (tmp_path / "checkpoints" / "final" / weights_file(2)).unlink()
    assert main(["eval", str(tmp_path), "--trust"]) == 0
    assert capsys.readouterr().out == whole.replace("final weights", "weights after step 10")


def test_an_evaluation_needs_neither_optimizer_nor_schedule_and_does_not_call_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"_target_": "fr_bench.models.mlp.mlp", "name": "mlp"}
    train_here(tiny_config("fr", 2, model=model), tmp_path)
    path = tmp_path / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(
        yaml.safe_dump(config | {"optimizer": {"_target_": "a.B", "lr": 1}, "schedule": {"_target_": "c.D"}})
    )
    assert main(["eval", str(tmp_path)]) == 0
    assert "final weights" in capsys.readouterr().out


def test_a_name_is_read_in_a_locale_that_lacks_its_letters(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    with (tmp_path / "run" / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("author: Zoë\n")
    environment = {**os.environ, **ASCII, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "fr_bench", "eval", "run", "--trust"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "test error" in done.stdout, done.stderr


def test_of_replicas_the_first_counts_however_many_there_are(tmp_path: Path) -> None:
    for number in (1, 2, 3, 10):  # modules 1 and 2 of replicas 1, 2 and 5
        name = f"block{1 + (number - 1) % 2}.running_mean"
        (tmp_path / weights_file(number)).write_bytes(save({name: torch.tensor(float(number))}))
    assert {name: int(value) for name, value in evaluate.read_weights(tmp_path).items()} == {
        "block1.running_mean": 1,
        "block2.running_mean": 2,
    }


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a run whose data were found by a relative path: it is looked at from another folder."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.delenv("FR_BENCH_DATA", raising=False)
    raw = tmp_path / "work" / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in fashion_mnist.FILES:
        shape = (6, 28, 28) if "images" in name else (6,)
        header = bytes((0, 0, 8, len(shape))) + b"".join(size.to_bytes(4, "big") for size in shape)
        (raw / name).write_bytes(header + bytes(index % 7 for index in range(math.prod(shape))))
    words = ["method=bp", "k=1", "dataset=fashion_mnist", "dataset.root=data", "model=mlp", "run_dir=run"]
    words += ["batch_size=3", "epochs=1", "wandb.mode=disabled", "console=off", "device=cpu"]
    done = call(tmp_path / "work", "train", *words)
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return tmp_path / "work"


def test_the_data_of_a_run_are_found_from_every_folder(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((moved / "run" / "config.yaml").read_text())
    assert config["dataset"]["root"] == str(moved / "data")
    assert main(["eval", str(moved / "run")]) == 0
    assert "test error" in capsys.readouterr().out
    assert len(load_test_set(moved / "run")[0]) == 6
    assert not list(Path.cwd().iterdir())


def test_data_that_lie_elsewhere_now_are_found_by_the_environment_and_never_downloaded(
    moved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object) -> None:
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr(fashion_mnist, "fetch", fetch)
    (moved / "data").rename(moved / "archive")
    for now in (None, moved / "nowhere"):
        if now is not None:
            monkeypatch.setenv("FR_BENCH_DATA", str(now))
        assert main(["eval", str(moved / "run")]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "$FR_BENCH_DATA can say where it lies now" in told
        assert all(f"{root}/FashionMNIST" in told for root in (moved / "data", now) if root is not None)
        with pytest.raises(ConfigError, match="Fashion-MNIST is not there"):
            load_model(moved / "run")
    monkeypatch.setenv("FR_BENCH_DATA", str(moved / "archive"))
    assert main(["eval", str(moved / "run")]) == 0
    assert "test error" in capsys.readouterr().out
    assert load_model(moved / "run") is not None and len(load_test_set(moved / "run")[0]) == 6
    assert not (moved / "data").exists()


def test_weights_that_are_tied_are_saved_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"_target_": "tiny_models.tied", "name": "tied"}
    train_here(tiny_config("fr", 2, model=model, channels_last=False, checkpoint={"every": 5}), tmp_path)
    weights = read_weights(tmp_path)
    assert torch.equal(weights["tied.first.weight"], weights["tied.second.weight"])
    (last,) = [record for record in read_records(tmp_path) if record["kind"] == "eval" and record["step"] == 10]
    assert main(["eval", str(tmp_path), "--json", "--trust"]) == 0
    assert json.loads(capsys.readouterr().out)["test_loss"] == last["test_loss"]


def test_weights_of_a_step_have_the_error_of_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_here(tiny_config("fr", 2, checkpoint={"every": 5, "keep": None}), tmp_path)
    expected = next(record for record in read_records(tmp_path) if record["kind"] == "eval" and record["step"] == 5)
    assert main(["eval", str(tmp_path), "--trust", "--json", "--step", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-6)
    assert main(["eval", str(tmp_path), "--trust", "--step", "7"]) == 2
    assert "has no checkpoint after so many steps; there are 5, 10 (" in capsys.readouterr().err
    (tmp_path / "checkpoints" / "step_00000005" / weights_file(1)).write_bytes(b"torn")
    assert main(["eval", str(tmp_path), "--trust", "--step", "5"]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("k", ["0", "-1"])
def test_too_few_modules_are_refused(run_dir: Path, k: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run_dir), "--k", k, "--trust"]) == 2
    assert capsys.readouterr().err == f"fr-bench: --k {k}: must be at least 1.\n"


def test_too_many_modules_are_refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run_dir), "--k", "7", "--trust"]) == 2
    assert "k=7: the model has only 6 blocks" in capsys.readouterr().err


def test_a_folder_may_have_a_name_that_is_no_text(tmp_path: Path) -> None:
    """As from a disk with another encoding: what was trained there goes on, and is evaluated."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    model = {"_target_": "fr_bench.models.mlp.mlp", "name": "mlp"}
    config = tiny_config("fr", 2, model=model, checkpoint={"every": 4})
    train_here(config, folder, cut_off_at=7)
    train_here(config, folder)
    assert main(["eval", str(folder)]) == 0
    assert max(record["step"] for record in read_records(folder)) == 10
