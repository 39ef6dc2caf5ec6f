"""What a run left, in a script of one's own: the same numbers as in its records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import read_records, read_weights, run_processes, tiny_config, train_here
from test_readme import ROOT, blocks
from test_tokens import KEYS

from fr_bench.checkpoints.files import weights_file
from fr_bench.errors import ConfigError
from fr_bench.notebook import load_model, load_test_set

MLP = {"_target_": "fr_bench.models.mlp.mlp", "name": "mlp"}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_here(tiny_config("fr", 2, model=MLP, checkpoint={"every": 5, "keep": None}), folder)
    return folder


def test_what_the_documentation_prints_has_the_error_of_the_last_record(run_dir: Path) -> None:
    (program,) = blocks((ROOT / "docs" / "python.md").read_text(), "python")
    done = subprocess.run([sys.executable, "-c", program, str(run_dir)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    error = [record for record in read_records(run_dir) if record["kind"] == "eval"][-1]["test_error"]
    assert done.stdout == f"{100 * error:.2f} % here, {100 * error:.2f} % in the last record of the run\n"


@pytest.mark.parametrize("model", [{"_target_": "tiny_models.residual", "name": "tiny"}, MLP])
def test_the_model_has_the_loss_of_the_run(model: dict[str, str], tmp_path: Path) -> None:
    """Which no model with other weights or images has to so many digits; batch norm's statistics count too."""
    run_processes(tiny_config("ddg", 3, model=model), tmp_path)
    images, labels = load_test_set(tmp_path, trust=True)
    model_of_run = load_model(tmp_path, trust=True)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model_of_run(images), labels)
    records = [record for record in read_records(tmp_path) if record["kind"] == "eval"]
    assert float(loss) == pytest.approx(records[-1]["test_loss"], rel=1e-5)
    assert all(name.split(".")[0] in dict(model_of_run.named_children()) for name in model_of_run.state_dict())


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_the_model_computes_as_the_run_did(precision: str, tmp_path: Path) -> None:
    train_here(tiny_config("bp", 1, model=MLP, precision=precision), tmp_path)
    images, labels = load_test_set(tmp_path)
    model, stored = load_model(tmp_path), read_weights(tmp_path)
    for name, value in model.state_dict().items():
        assert value.dtype == stored[name].dtype and torch.equal(value, stored[name]), name
    assert images.dtype == {"fp64": torch.float64, "bf16": torch.float32}[precision]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(images)
    loss = torch.nn.functional.cross_entropy(logits.to(images.dtype), labels)
    records = [record for record in read_records(tmp_path) if record["kind"] == "eval"]
    assert float(loss) == pytest.approx(records[-1]["test_loss"], rel=1e-12 if precision == "fp64" else 1e-6)


def test_small_labels_are_had_as_the_loss_wants_them(tmp_path: Path) -> None:
    dataset = {"_target_": "tiny_data.floats", "name": "floats", "labelled": "int32", **KEYS}
    train_here(tiny_config("bp", 1, model=MLP, dataset=dataset), tmp_path)
    points, labels = load_test_set(tmp_path, trust=True)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(load_model(tmp_path, trust=True)(points), labels)
    records = [record for record in read_records(tmp_path) if record["kind"] == "eval"]
    assert float(loss) == pytest.approx(records[-1]["test_loss"], rel=1e-5)


def test_a_checkpoint_is_had_by_its_step(run_dir: Path, tmp_path: Path) -> None:
    train_here(tiny_config("fr", 2, model=MLP, max_steps=5), tmp_path)  # its epochs, and so its schedule, are the same
    expected = load_model(tmp_path).state_dict()
    found = load_model(run_dir, step=5).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert not all(torch.equal(found[name], value) for name, value in load_model(run_dir).state_dict().items())
    with pytest.raises(ConfigError, match=r"step 6: .*; there are 5, 10 \(checkpoint.every"):
        load_model(run_dir, step=6)


def test_a_default_device_of_the_callers_own_changes_nothing(run_dir: Path) -> None:
    """Such as that of a notebook that computes on a GPU; ``meta`` stands for it here."""
    with torch.device("meta"):
        model, (images, labels) = load_model(run_dir), load_test_set(run_dir)
    expected_images, expected_labels = load_test_set(run_dir)
    assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)
    expected = load_model(run_dir).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_code_of_others_is_not_called_and_weights_that_are_missing_are_said(run_dir: Path, tmp_path: Path) -> None:
    text = (run_dir / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("fr_bench.models.mlp.mlp", "os.mkdir"))
    with pytest.raises(ConfigError, match=r"would call os.mkdir.* pass trust=True"):
        load_model(tmp_path)
    (tmp_path / "config.yaml").write_text(text.replace("fr_bench.models.mlp.mlp", "nobodys.package.net"))
    with pytest.raises(ConfigError, match=r"_target_=nobodys.package.net: there is no such .* PYTHONPATH"):
        load_model(tmp_path, trust=True)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="holds no weights"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match="give the directory of a run"):
        load_test_set(tmp_path / "nowhere")
    (tmp_path / "checkpoints" / "final").mkdir(parents=True)
    for number in (1, 2):
        path = Path("checkpoints", "final", weights_file(number))
        (tmp_path / path).write_bytes((run_dir / path).read_bytes() if number == 1 else b"damaged")
    with pytest.raises(ConfigError, match=r"module_2.safetensors: cannot be read"):
        load_model(tmp_path)
