"""Inputs that are no images, and samples with several labels: sequences of tokens, maps, floats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import (
    assert_close,
    assert_same,
    assert_same_run,
    call,
    read_records,
    run_processes,
    run_serial,
    run_serial_once,
    tiny_config,
    train_here,
)
from test_exactness import SIMULATIONS, assert_matches_reference
from tiny_data import maps, tokens

from fr_bench.bench.time_prediction import predict_time
from fr_bench.data import Outline, SampleSpec, build_dataset
from fr_bench.data.text import load as load_text
from fr_bench.errors import ConfigError
from fr_bench.measuring.saved_tensors import SavedTensors, tensor_bytes
from fr_bench.models.transformer import causal
from fr_bench.modules.loss import loss_sum, num_errors
from fr_bench.modules.network import Network
from fr_bench.notebook import load_model, load_test_set
from fr_bench.planning.attention import attention_of
from fr_bench.planning.plan import make_plan

KEYS = {"limit": None, "validation": 0, "augmentation": None}
TOKENS = {
    "model": {
        "_target_": "fr_bench.models.transformer.causal",
        "name": "transformer",
        "width": 8,
        "depth": 3,
        "heads": 2,
    },
    "dataset": {"_target_": "tiny_data.tokens", "name": "tokens", **KEYS},
    "optimizer": {"_target_": "torch.optim.SGD", "name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.0},
}
MAPS = {
    "model": {"_target_": "tiny_models.segmenter", "name": "segmenter"},
    "dataset": {
        "_target_": "tiny_data.maps",
        "name": "maps",
        **KEYS,
        "augmentation": {"crop_padding": 0, "flip": False},
    },
}
FLOATS = {
    "model": {"_target_": "fr_bench.models.mlp.mlp", "name": "mlp", "width": 8, "depth": 3},
    "dataset": {"_target_": "tiny_data.floats", "name": "floats", **KEYS},
}


def on(problem: dict[str, Any], method: str, k: int, transport: str = "serial", **changes: Any) -> dict[str, Any]:
    """``dataset`` and ``model`` are added to those of the problem."""
    nodes = {group: {**problem[group], **changes.pop(group, {})} for group in ("model", "dataset")}
    return tiny_config(method, k, transport, **{**problem, **nodes, **changes})


# --- what is computed


def test_loss_and_errors_of_several_labels_are_their_means() -> None:
    logits, labels = torch.randn(3, 4, 5), torch.randint(5, (3, 4))
    by_sample = [F.cross_entropy(one, own) for one, own in zip(logits, labels, strict=True)]
    torch.testing.assert_close(loss_sum(logits, labels), torch.stack(by_sample).sum())
    assert loss_sum(logits[:, 0], labels[:, 0]).equal(F.cross_entropy(logits[:, 0], labels[:, 0], reduction="sum"))
    assert loss_sum(logits.bfloat16(), labels).dtype == torch.float32
    right = F.one_hot(labels, 5)
    assert num_errors(right, labels) == 0
    labels[0, :2] = (labels[0, :2] + 1) % 5
    labels[1, 0] = (labels[1, 0] + 1) % 5
    assert num_errors(right, labels) == 2 / 4 + 1 / 4
    assert num_errors(right[:, 0], labels[:, 0]) == 2


def test_tokens_with_bp_are_a_plain_loop(tmp_path: Path) -> None:
    """From the data set on: initial weights and order are fr-bench's."""
    config = on(TOKENS, "bp", 1, epochs=1)
    result = run_serial(config, tmp_path)
    simulated = SIMULATIONS["bp"](config, [])
    data = tokens()
    batch = simulated.images.batch(0)
    assert batch.dtype == torch.int64 and batch.shape == (8, 6)
    assert all((row == data.train.images).all(dim=1).any() for row in batch)
    network = simulated.w[1].eval()
    with torch.no_grad():
        logits = network(data.test.images)
    error = (logits.argmax(dim=-1) != data.test.labels).double().mean().item()
    loss = F.cross_entropy(logits.flatten(0, 1), data.test.labels.flatten()).item()
    ((_, _, test_loss, test_error),) = result.evaluations
    assert (test_loss, test_error) == (pytest.approx(loss, rel=1e-5), pytest.approx(error))
    assert 0 < error < 1 and result.losses == simulated.losses


@pytest.mark.parametrize("method", ["bp", "fr", "ddg"])
@pytest.mark.parametrize("problem", [TOKENS, MAPS, FLOATS], ids=["tokens", "maps", "floats"])
def test_methods_equal_their_reference_simulations(problem: dict[str, Any], method: str, tmp_path: Path) -> None:
    config = on(problem, method, 3)
    result = run_serial(config, tmp_path)
    assert_matches_reference(result, SIMULATIONS[method](config, result.cuts))


@pytest.mark.parametrize(
    ("problem", "method"),
    [(FLOATS, "cdni"), (FLOATS, "dgl"), (MAPS, "dni")],
    ids=["floats-cdni", "floats-dgl", "maps-dni"],
)
def test_what_trains_a_network_beside_takes_what_fits_it(problem: dict[str, Any], method: str, tmp_path: Path) -> None:
    serial = run_serial(on(problem, method, 3), tmp_path / "serial")
    assert_same(run_processes(on(problem, method, 3, "ipc"), tmp_path / "ipc"), serial)


def test_tokens_can_be_limited_and_held_out(tmp_path: Path) -> None:
    result = run_serial(on(TOKENS, "fr", 2, dataset={"limit": 24, "validation": 8}), tmp_path)
    assert len(result.losses) == 2 * 24 // 8 and all("validation_error" in record for record in result.of("eval"))


def test_tokens_under_bf16_are_nearly_those_in_float32(tmp_path: Path) -> None:
    exact = run_serial_once(on(TOKENS, "fr", 2))
    rounded = run_serial(on(TOKENS, "fr", 2, precision="bf16"), tmp_path / "bf16")
    assert rounded.losses != exact.losses and rounded.losses == pytest.approx(exact.losses, rel=0.02)


@pytest.mark.parametrize(("method", "transport"), [("fr", "ipc"), ("ddg", "gloo")])
def test_tokens_in_processes_are_those_in_one(method: str, transport: str, tmp_path: Path) -> None:
    model = {"dropout": 0.3}
    serial = run_serial(on(TOKENS, method, 3, model=model), tmp_path / "serial")
    assert_same(run_processes(on(TOKENS, method, 3, transport, model=model), tmp_path / transport), serial)


@pytest.mark.parametrize("method", ["gpipe", "ddp"])
def test_tokens_with_the_libraries_are_bp(method: str, tmp_path: Path) -> None:
    """Nothing normalises over the batch, so that micro-batches and shares are only another order of sums."""
    bp = run_serial_once(on(TOKENS, "bp", 1, precision="fp64"))
    assert_close(run_processes(on(TOKENS, method, 2, "gloo", precision="fp64"), tmp_path / method), bp)


def test_replicas_of_tokens_are_one(tmp_path: Path) -> None:
    one = run_serial(on(TOKENS, "fr", 2, precision="fp64"), tmp_path / "one")
    config = on(TOKENS, "fr", 2, "gloo", precision="fp64", replicas=2)
    assert_close(run_processes(config, tmp_path / "replicas"), one)


def test_of_an_embedding_alone_there_is_no_direction_to_measure(tmp_path: Path) -> None:
    config = on(TOKENS, "fr", 3, partition=[1, 3], diagnostics={"sigma": {"every": 2, "window": 1}}, epochs=1)
    train_here(config, tmp_path / "run")
    sigma = [record for record in read_records(tmp_path / "run") if record["kind"] == "sigma"]
    assert {record["module"]: "sigma" in record for record in sigma} == {0: True, 1: False, 2: True, 3: True}


def test_tokens_that_are_stored_as_bytes_are_the_same(tmp_path: Path) -> None:
    wide = run_serial_once(on(TOKENS, "fr", 2))
    assert_same(run_serial(on(TOKENS, "fr", 2, dataset={"dtype": "uint8"}), tmp_path / "uint8"), wide)


def test_floats_come_in_the_precision_of_the_run(tmp_path: Path) -> None:
    """float64 in the file: in float32 as if they had been that there, in float64 as they are."""
    stored = {dtype: on(FLOATS, "bp", 1, dataset={"dtype": dtype}) for dtype in ("float32", "float64")}
    results = {dtype: run_serial(config, tmp_path / dtype) for dtype, config in stored.items()}
    assert_same(results["float32"], results["float64"])
    exact = run_serial(stored["float64"] | {"precision": "fp64"}, tmp_path / "exact")
    rounded = run_serial(stored["float32"] | {"precision": "fp64"}, tmp_path / "rounded")
    assert exact.losses != rounded.losses and exact.losses == pytest.approx(rounded.losses, rel=1e-5)


def test_a_transformer_learns_under_fr(tmp_path: Path) -> None:
    config = on(TOKENS, "fr", 3, epochs=10, log_every=1000)
    errors = [test_error for *_, test_error in run_serial(config, tmp_path).evaluations]
    assert errors[-1] < 0.1 < 0.5 < errors[0]  # of a random guess 6/7


def test_a_run_that_goes_on_is_the_one_left_alone(tmp_path: Path) -> None:
    """The history of module 1 holds tokens."""
    config = on(TOKENS, "fr", 3, checkpoint={"every": 2})
    train_here(config, tmp_path / "whole")
    train_here(config, tmp_path / "parts", cut_off_at=6)
    train_here(config, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


# --- what is foretold


DROPPING = {**TOKENS, "model": {**TOKENS["model"], "dropout": 0.3}}  # of attention, for which a CPU has no fused kernel


@pytest.mark.parametrize("problem", [TOKENS, DROPPING, MAPS, FLOATS], ids=["tokens", "dropout", "maps", "floats"])
@pytest.mark.parametrize("method", ["bp", "fr", "ddg"])
def test_memory_is_as_predicted(problem: dict[str, Any], method: str, tmp_path: Path) -> None:
    accounts = run_serial(on(problem, method, 3, epochs=1), tmp_path).of("memory")[-3:]
    assert [record["module"] for record in accounts] == [1, 2, 3]
    for record in accounts:
        for category in ("parameters", "gradients", "optimizer", "history", "stash", "activations", "buffers"):
            assert record[category] == record[f"predicted_{category}"], category


@pytest.mark.parametrize(
    ("mask", "settings"),
    [
        (None, {}),
        (None, {"is_causal": True}),
        (None, {"scale": 0.3}),
        (None, {"dropout_p": 0.5}),
        ("added", {}),
        ("booleans", {}),
        ("learned", {}),
    ],
)
def test_attention_saves_what_the_kernel_of_a_cpu_does(mask: str | None, settings: dict[str, Any]) -> None:
    def saved_bytes(device: str) -> int:
        query, key, value = (torch.zeros(3, 2, 16, 4, device=device, requires_grad=True) for _ in range(3))
        masks = {
            "added": torch.zeros(16, 16, device=device),
            "booleans": torch.ones(3, 1, 16, 16, dtype=torch.bool, device=device),
            "learned": torch.zeros(16, 16, device=device, requires_grad=True),
        }
        saved = SavedTensors()
        with saved.listen():
            F.scaled_dot_product_attention(query, key, value, masks.get(mask or ""), **settings)
        return tensor_bytes(saved.tensors)

    with attention_of("cpu"):
        assert saved_bytes("meta") == saved_bytes("cpu")
    in_general = saved_bytes("meta")
    with attention_of("cuda:0"):
        assert saved_bytes("meta") == in_general >= saved_bytes("cpu")


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize(("dropout", "drawing"), [(0.0, []), (0.3, ["layer1"])])
def test_attention_draws_where_it_drops(device: str, dropout: float, drawing: list[str]) -> None:
    """Its kernels are marked as drawing whether they do or not; a block that draws has no CUDA graph."""
    with torch.device("meta"):
        network = Network(causal((6,), 7, width=8, heads=2, depth=1, dropout=dropout), seed=0)
    with attention_of(device):
        network(torch.empty(8, 6, dtype=torch.int64, device="meta"), 0)
    assert network.drawing_blocks == drawing


def test_the_history_of_module_1_counts_tokens(tmp_path: Path) -> None:
    plan = make_plan(on(TOKENS, "fr", 3))
    assert plan.predicted_memory[0]["history"] == 3 * 8 * 6 * 8  # batches of 8 samples of 6 tokens of 8 bytes


def words_for(folder: Path) -> list[str]:
    """Of a command line, with the data set's YAML in ``folder``."""
    (folder / "conf" / "dataset").mkdir(parents=True)
    (folder / "conf" / "dataset" / "tokens.yaml").write_text(json.dumps(TOKENS["dataset"]))
    model = ["model=transformer", "model.width=8", "model.heads=2", "model.depth=3"]
    return ["--config-dir", str(folder / "conf"), "dataset=tokens", *model, "batch_size=8", "optimizer=adam"]


def test_cuts_can_be_balanced_and_measured_and_time_foretold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = call(tmp_path, "train", *words_for(tmp_path), "k=2", "partition=measured", "dry_run=true", "device=cpu")
    assert done.returncode == 0, done.stderr
    assert "a step" in done.stdout and "2 modules, cut after block" in done.stdout


def test_tokens_are_benched_beside_peers_and_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = [*words_for(tmp_path), "partition=equal"]
    own = ["bench.methods=[plain,fr,gpipe]", "bench.k=[2]", "bench.rounds=1", "bench.steps=2", "bench.microbatches=[1]"]
    done = call(tmp_path, "bench", *words, *own, "simulate.k=[4]", "simulate.methods=[fr,1f1b]", "run_dir=bench")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "bench" / "bench.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"plain", "bp", "fr", "gpipe"}


# --- what else is done with a run


def test_a_run_of_tokens_is_evaluated_and_loaded(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_processes(on(TOKENS, "fr", 2, "ipc", run_dir=str(run)), run)
    summary = json.loads((run / "summary.json").read_text())
    done = call(tmp_path, "eval", "run", "--k", "3", "--trust")
    assert done.returncode == 0, done.stderr
    assert f"test error {100 * summary['last_test_error']:.1f} %" in done.stdout
    inputs, labels = load_test_set(run, trust=True)
    with torch.no_grad():
        logits = load_model(run, trust=True)(inputs)
    assert inputs.dtype == torch.int64 and logits.shape == (22, 6, 7)
    assert (logits.argmax(dim=-1) != labels).double().mean().item() == pytest.approx(summary["last_test_error"])


# --- text


def test_text_is_cut_into_samples_whose_labels_follow(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(range(200, 256)) * 2)  # 112 bytes: 11 samples of 10, one left over
    data = load_text(str(tmp_path / "text"), length=10)
    assert data.train.images.shape == data.train.labels.shape == (10, 10) and len(data.test.images) == 1
    assert data.train.images[0].tolist() == list(range(200, 210))
    assert data.train.labels[0].tolist() == list(range(201, 211))
    whole = torch.cat([data.train.images.flatten(), data.test.images.flatten(), data.test.labels[-1, -1:]])
    assert bytes(whole.tolist()) == (tmp_path / "text").read_bytes()[:111]
    assert data.sample == SampleSpec((10,), 256, 256, (10,), is_image=False)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "dataset.path=null: name a file"),
        (["dataset.path="], "dataset.path=: name a file"),
        (["dataset.path=~/no such file"], "dataset.path=~/no such file: No such file or directory (/"),
        (["dataset.path=a=b"], "dataset.path=a=b: No such file or directory (/"),  # as paths are typed
        (["dataset.path=short"], "dataset.path=short: has 640 bytes, and 10 samples of dataset.length=64"),
        (["dataset.path=short", "dataset.length=0"], "dataset.length=0: must be an integer of at least 1"),
        (["dataset.path=short", "dataset.length=8", "model=resnet20"], "block 'stem' cannot run on input (8, 8)"),
        (["dataset.path=short", "dataset.length=8", "model=mlp"], "it gets tokens, integers that a model has to embed"),
        (["dataset.path=short", "dataset.length=8", "model.heads=3"], "model.heads=3: must divide model.width=128"),
        (["dataset.path=short", "dataset.length=8", "model.depth=0"], "model.depth=0: must be"),
        (["dataset.path=short", "dataset.length=8", "model.dropout=1"], "model.dropout=1: must be"),
        (["dataset=digits"], "takes tokens [N, S], as those of dataset=text, not samples of [1, 16, 16]"),
    ],
)
def test_what_is_wrong_with_a_text_or_its_model_is_told(words: list[str], named: str, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x" * 640)
    done = call(
        tmp_path,
        "train",
        "model=transformer",
        "batch_size=8",
        *(["dataset=text"] * (words[:1] != ["dataset=digits"])),
        *words,
    )
    assert done.returncode == 2 and named in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_text_is_learned_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"to be, or not to be, that is the question. " * 300)
    words = ["dataset=text", "dataset.path=text", "dataset.length=16", "model=transformer", "model.width=16"]
    words += ["model.depth=2", "optimizer=adam", "optimizer.lr=0.01", "batch_size=32", "epochs=3", "eval_every=3"]
    done = call(tmp_path, "train", *words, "method=ddg", "k=2", "wandb.mode=disabled", "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["last_test_error"] < 0.3
    assert f"  path: {tmp_path}/text\n" in (tmp_path / "run" / "config.yaml").read_text()
    for command in (["eval", "run"], ["report", "run"], ["plot", "run", "--out", "figures"]):
        done = call(tmp_path, *command)
        assert done.returncode == 0, done.stderr
    assert list((tmp_path / "figures").glob("test-error-*.png"))


# --- what is refused


def test_an_embedding_that_is_too_small_is_found_before_anything_starts() -> None:
    data = {"num_tokens": 50, "num_classes": 7}
    with pytest.raises(ConfigError, match="block 'embedding' embeds 7 tokens, and those of the data set go up to 49"):
        make_plan(on(TOKENS, "fr", 2, dataset=data))


@pytest.mark.parametrize("method", ["dgl", "cdni", "dni"])
def test_with_one_module_nothing_is_below_the_top(method: str, tmp_path: Path) -> None:
    bp = run_serial_once(on(TOKENS, "bp", 1))
    assert_same(run_serial(on(TOKENS, method, 1), tmp_path / method), bp)
    assert predict_time(make_plan(on(TOKENS, method, 1))) is not None


@pytest.mark.parametrize(
    ("method", "problem"), [("dgl", "learns from one label a sample"), ("dni", "synthesizer needs features")]
)
def test_what_cannot_be_simulated_is_named(method: str, problem: str, tmp_path: Path) -> None:
    words = [*words_for(tmp_path), "bench.methods=[]", "simulate.k=[2]", f"simulate.methods=[{method}]"]
    done = call(tmp_path, "bench", *words)
    assert done.returncode == 2 and problem in done.stderr, done.stderr
    assert done.stderr.startswith(f"fr-bench: simulate.methods: leave {method} out, with simulate.methods=[...]: ")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("negative", "images are integers, which stand for tokens and must be 0 or more, not -1"),
        ("bool", r"must be uint8 \[N, C, H, W\], or uint8 tokens \[N, S\], .*, not bool \[44, 6\]"),
        ("uint16", r"not uint16 \[44, 6\]"),
        ("bytes", r"not uint8 \[44, 1, 6\]"),
        ("too few labels", r"labels must be integers \[44, ...\], one or several a sample, not int64 \[43, 6\]"),
        ("float labels", "not float32"),
        ("other labels", r"training and test labels are not alike, int64 \[44, 6\] and int64 \[22, 1\]"),
        ("array", r"the train images must be a tensor, not ndarray: torch.as_tensor\(...\) makes one"),
        ("labels of numpy", "the train labels must be a tensor, not ndarray"),
        ("nan", "the train images are floats of which some are not finite"),
        ("huge", "the train images are floats of which some are not finite in float32"),
        ("mean", r"mean=\(0.5,\) and std=\(\) are for images.*leave both out"),
    ],
)
def test_what_a_loader_gets_wrong_is_told(what: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_dataset({"_target_": "tiny_data.wrong", "name": "wrong", "what": what, **KEYS})


def test_what_is_for_images_is_refused_without() -> None:
    with pytest.raises(ConfigError, match=r"dataset.augmentation=.*: is for images"):
        build_dataset({**TOKENS["dataset"], "augmentation": {"crop_padding": 1, "flip": False}})
    with pytest.raises(ConfigError, match=r"dataset.augmentation=.*: moves pixels, and the labels .* stay"):
        build_dataset({**MAPS["dataset"], "augmentation": {"crop_padding": 0, "flip": True}})
    kept = {**MAPS["dataset"], "name": "two labels", "num_labels": 2, "augmentation": {"crop_padding": 1, "flip": True}}
    assert build_dataset(kept).sample.label_shape == (2,)


@pytest.mark.parametrize("method", ["cdni", "dgl"])
def test_what_needs_one_label_below_the_top_is_refused(method: str) -> None:
    with pytest.raises(ConfigError, match=f"method={method}: .* one label a sample, .* dataset=maps are .N, 4, 4.$"):
        make_plan(on(MAPS, method, 2))


def test_dni_says_which_features_it_is_made_for() -> None:
    with pytest.raises(ConfigError, match=r"needs features \[B, C\] or \[B, C, H, W\] below a cut, not \[8, 6, 8\]"):
        make_plan(on(TOKENS, "dni", 2))


def test_an_output_without_a_logit_for_each_label_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the output has shape \(8, 2\), not \(8, 4, 4, 2\)$"):
        make_plan(on(MAPS, "fr", 2, model={"_target_": "tiny_models.residual", "name": "tiny"}))


def test_what_is_known_of_tokens() -> None:
    assert Outline.of(tokens()) == Outline(SampleSpec((6,), 7, 7, (6,), is_image=False), 44, 22)
    assert Outline.of(maps()) == Outline(SampleSpec((1, 4, 4), 2, label_shape=(4, 4)), 44, 22)
