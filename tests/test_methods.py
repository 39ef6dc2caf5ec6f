"""What the methods promise beyond exactness: gradients, switches, state, learning."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from harness import (
    METHODS,
    Result,
    assert_same,
    read_records,
    run_processes,
    run_serial,
    run_serial_once,
    tiny_config,
    train_here,
)
from test_exactness import SIMULATIONS, assert_matches_reference
from tiny_models import LayerDrop

from fr_bench.data import build_dataset
from fr_bench.errors import ConfigError, RunFailed
from fr_bench.measuring.categories import CATEGORIES
from fr_bench.methods.auxiliary import AuxiliaryNetwork
from fr_bench.methods.base import Method
from fr_bench.methods.bp import Backpropagation
from fr_bench.methods.fr import FeaturesReplay
from fr_bench.methods.synthesizer import Synthesizer
from fr_bench.models import build_blocks
from fr_bench.modules.loss import loss_sum
from fr_bench.modules.module import Module
from fr_bench.modules.network import Network
from fr_bench.modules.passes import Passes
from fr_bench.modules.running_means import RunningMeans
from fr_bench.notebook import load_model, load_test_set
from fr_bench.planning.never_learning import never_learning
from fr_bench.planning.plan import make_plan
from fr_bench.training.diagnostics import GradientSums
from fr_bench.training.extent import Extent


class GradientLog:
    """Records the gradients that every module steps with, by module, batch and parameter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gradients: dict[tuple[int, int], list[torch.Tensor]] = {}
        original = Module.step

        def step(module: Module, t: int) -> None:
            gradients = [p.grad.clone() for p in module.network.parameters() if p.grad is not None]
            self.gradients[module.k, t] = gradients
            original(module, t)

        monkeypatch.setattr(Module, "step", step)


class Forgetful(Backpropagation):
    """Back-propagates, and never steps below the top."""

    def learn_lower(self, t: int) -> None:
        assert self._live is not None
        live, self._live = self._live, None
        self.link.send_gradient(self.module.backward(live, d=self.link.receive_gradient(t)), t)


def test_a_module_that_never_steps_is_named(tmp_path: Path) -> None:
    method = {"_target_": "test_methods.Forgetful", "name": "forgetful"}
    with pytest.raises(RunFailed, match=r"module 1 made no step in 5 iterations: .* must call self.module.step\(t\)"):
        run_serial(tiny_config("bp", 2, method=method), tmp_path)


class Patient(Backpropagation):
    """Module 1 steps in every fifth iteration alone."""

    def learn_lower(self, t: int) -> None:
        assert self._live is not None
        live, self._live = self._live, None
        gradient = self.module.backward(live, d=self.link.receive_gradient(t))
        self.link.send_gradient(gradient, t)
        if t % 5 == 4:
            self.module.step(t)


def test_one_that_steps_later_is_not_refused_for_a_pause_before(tmp_path: Path) -> None:
    method = {"_target_": "test_methods.Patient", "name": "patient"}
    config = tiny_config("bp", 2, method=method, checkpoint={"every": 4})
    assert train_here(config, tmp_path) == []


@pytest.mark.parametrize("k", [2, 4])
def test_on_frozen_weights_fr_has_bp_gradients_of_k_minus_k_iterations_ago(
    k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = GradientLog(monkeypatch)
    still = {
        "optimizer": {"lr": 0.0, "weight_decay": 0.0},
        "model": {"_target_": "tiny_models.residual", "name": "tiny", "dropout": 0.5},
    }
    run_serial(tiny_config("bp", k, **still), tmp_path / "bp")
    bp, log.gradients = log.gradients, {}
    run_serial(tiny_config("fr", k, **still), tmp_path / "fr")
    assert set(log.gradients) == {(j, t) for j in range(1, k + 1) for t in range(10) if t >= k - j}
    for (j, t), gradients in log.gradients.items():
        expected = bp[j, t - (k - j)]
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("method", ["fr", "ddg"])
def test_warmup_zero_steps_with_a_zero_gradient(method: str, tmp_path: Path) -> None:
    config = tiny_config(method, 4)
    config["method"]["warmup"] = "zero"
    result = run_serial(config, tmp_path)
    assert_matches_reference(result, getattr(reference, method)(config, result.cuts, warmup="zero"))
    assert result.losses != run_serial_once(tiny_config(method, 4)).losses


@pytest.mark.parametrize("bn_stats", ["play", "both"])
def test_bn_stats_says_which_pass_moves_running_statistics(bn_stats: str, tmp_path: Path) -> None:
    config = tiny_config("fr", 3)
    config["method"]["bn_stats"] = bn_stats
    result = run_serial(config, tmp_path)
    assert_matches_reference(result, reference.fr(config, result.cuts, bn_stats=bn_stats))
    expected = {"play": 10, "both": 10 + 8}[bn_stats]  # module 1 plays 10 batches and replays 8
    assert result.weights["block1.norm.num_batches_tracked"] == expected


@pytest.mark.parametrize("method", ["fr", "ddg"])
def test_without_carried_history_every_epoch_warms_up_again(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of five iterations: module k steps in the last 5 - (K-k) iterations of each."""
    log = GradientLog(monkeypatch)
    config = tiny_config(method, 3)
    config["method"]["carry_history"] = False
    run_serial(config, tmp_path)
    assert {t for j, t in log.gradients if j == 1} == {2, 3, 4, 7, 8, 9}
    assert {t for j, t in log.gradients if j == 2} == {1, 2, 3, 4, 6, 7, 8, 9}
    assert {t for j, t in log.gradients if j == 3} == set(range(10))


@pytest.mark.parametrize(
    ("method", "settings", "steps", "never"),
    [
        ("fr", {"carry_history": False}, {"batch_size": 22, "epochs": 4}, "module 1 never learns"),
        ("ddg", {"carry_history": False}, {"batch_size": 44, "epochs": 4}, "modules 1 and 2 never learn"),
        ("fr", {}, {"max_steps": 2}, "module 1 never learns"),
        ("ddg", {"warmup": "zero"}, {"max_steps": 1}, "modules 1 and 2 never learn"),
        ("fr", {"carry_history": False}, {"max_steps": 2}, "module 1 never learns"),
        ("fr", {}, {"max_steps": 1, "freeze": [1]}, "module 2 never learns"),
        ("fr", {}, {"max_steps": 3, "freeze": [1, 2, 3]}, "no module ever learns"),
        ("fr", {}, {"max_steps": 3}, None),
        ("fr", {}, {"batch_size": 22, "epochs": 4}, None),
        ("bp", {}, {"max_steps": 1}, None),
    ],
)
def test_modules_that_never_learn_are_named_beforehand_and_no_others(
    method: str,
    settings: dict[str, Any],
    steps: dict[str, Any],
    never: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(method, 3, **steps)
    config["method"] |= settings
    warnings = make_plan(config).warnings
    assert [line.partition(":")[0] for line in warnings] == ([never] if never else [])
    log = GradientLog(monkeypatch)
    run_serial(config, tmp_path)
    learned = {k for (k, _), gradients in log.gradients.items() if any(g.any() for g in gradients)}
    assert {1, 2, 3} - learned - set(config["freeze"]) == {
        int(word) for word in (never or "").split() if word.isdigit()
    }


@pytest.mark.parametrize(("method", "transport"), [("fr", "ipc"), ("ddg", "gloo")])
def test_discarding_history_drops_the_gradients_in_flight_too(method: str, transport: str, tmp_path: Path) -> None:
    """Between processes as in one: a gradient left in a channel would meet the wrong batch."""
    config = tiny_config(method, 3, transport, epochs=3)
    config["method"]["carry_history"] = False
    assert_same(run_processes(config, tmp_path / "processes"), run_serial(config, tmp_path / "serial"))


def test_a_module_that_changes_its_input_in_place_is_refused_by_name() -> None:
    """Module 2 begins with block 'bad', whose ReLU would overwrite what the history holds."""
    model = {"_target_": "tiny_models.in_place", "name": "in_place"}
    with pytest.raises(ConfigError, match=r"module 2: block 'bad' changes the input of its module in place"):
        make_plan(tiny_config("fr", 2, model=model, partition=[1]))
    make_plan(tiny_config("fr", 2, model=model, partition=[2]))  # inside a module it harms nobody


@pytest.mark.parametrize("method", ["bp", "fr", "ddg", "dgl"])
def test_label_smoothing_is_that_of_torch_in_training_alone(method: str, tmp_path: Path) -> None:
    """And in float64 a run is that of its reference for every method: for the others below."""
    config = tiny_config(method, 3, label_smoothing=0.1, precision="fp64")
    result = run_serial(config, tmp_path)
    assert_matches_reference(result, SIMULATIONS[method](config, result.cuts), tolerance=1e-12)
    without = run_serial(config | {"label_smoothing": 0.0, "max_steps": 1}, tmp_path / "without")
    assert result.losses[:1] != without.losses
    for account in result.of("memory"):
        assert all(account[name] == account[f"predicted_{name}"] for name in CATEGORIES)


def test_evaluations_smooth_no_labels(tmp_path: Path) -> None:
    train_here(tiny_config("fr", 2, label_smoothing=0.3), tmp_path)
    images, labels = load_test_set(tmp_path, trust=True)
    with torch.no_grad():
        loss = F.cross_entropy(load_model(tmp_path, trust=True)(images), labels)
    last = [record for record in read_records(tmp_path) if record["kind"] == "eval"][-1]
    assert last["test_loss"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 3, 5)])
def test_a_smoothed_loss_is_that_of_torch_for_any_number_of_labels(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, shape[:-1], generator=generator)
    of_all = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=0.3)
    assert float(loss_sum(logits, labels, 0.3)) == pytest.approx(shape[0] * float(of_all), rel=1e-12)


def test_a_block_that_returns_no_tensor_is_named() -> None:
    model = {"_target_": "tiny_models.two_outputs", "name": "two"}
    for partition in ([1], [2]):
        with pytest.raises(ConfigError, match="block 'lstm' returns a tuple; every block takes one tensor and returns"):
            make_plan(tiny_config("fr", 2, model=model, partition=partition))


def test_ddg_with_current_weights_departs_from_the_published_gradient(tmp_path: Path) -> None:
    """The authors' code back-propagates old activations through new weights; alike only while weights stand still."""
    stashed = run_serial_once(tiny_config("ddg", 3))
    config = tiny_config("ddg", 3)
    config["method"]["weights"] = "current"
    current = run_serial(config, tmp_path / "current")
    assert current.losses[:2] == stashed.losses[:2]
    assert current.losses != stashed.losses
    still: dict[str, Any] = {"optimizer": {"lr": 0.0, "weight_decay": 0.0}}
    config = tiny_config("ddg", 3, **still)
    frozen_stashed = run_serial(config, tmp_path / "frozen stashed")
    config["method"]["weights"] = "current"
    assert_same(run_serial(config, tmp_path / "frozen current"), frozen_stashed)


@pytest.mark.parametrize("method", ["fr", "ddg", "dni", "cdni", "dgl"])
def test_a_method_goes_on_exactly_from_its_state(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving and restoring every method between two iterations changes nothing (weights and optimizer stay)."""
    whole = run_serial_once(tiny_config(method, 3))
    original = Method.play
    restored = []

    def play(self: Method, t: int) -> None:
        if t == 6:
            state = self.state_dict()
            fresh = type(self).__new__(type(self))
            fresh.__dict__.update(self.__dict__)
            for name in ("kept", "_prediction", "_pending"):
                if name in fresh.__dict__:
                    setattr(self, name, type(fresh.__dict__[name])() if name == "kept" else None)
            self.load_state_dict(state)
            restored.append(self.module.k)
        original(self, t)

    monkeypatch.setattr(Method, "play", play)
    assert_same(run_serial(tiny_config(method, 3), tmp_path), whole)
    assert restored == [1, 2, 3]


def test_frozen_modules_keep_their_weights_and_the_others_learn(tmp_path: Path) -> None:
    still = run_serial(tiny_config("fr", 3, freeze=[1, 2, 3], epochs=1), tmp_path / "still").weights
    top = run_serial(tiny_config("fr", 3, freeze=[1, 2], epochs=1), tmp_path / "top").weights
    plan = make_plan(tiny_config("fr", 3))
    frozen = plan.block_names[: plan.cuts[1]]
    for name, value in top.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, still[name]) == (name.split(".")[0] in frozen), name


def test_module_lr_multiplies_one_modules_rate(tmp_path: Path) -> None:
    def losses(name: str, lr: float, module_lr: list[float] | None) -> list[float]:
        config = tiny_config("bp", 2, optimizer={"lr": lr}, module_lr=module_lr, epochs=1)
        return run_serial(config, tmp_path / name).losses

    once, twice = losses("once", 0.05, [1, 1]), losses("twice", 0.05, [2, 1])
    both, other = losses("both", 0.1, None), losses("other", 0.1, [1, 0.5])
    assert once[0] == twice[0] and once[1] != twice[1]
    assert twice == other != both


def test_the_rate_of_a_record_is_the_runs_in_its_step(tmp_path: Path) -> None:
    records = run_serial(tiny_config("fr", 2, optimizer={"lr": 0.1}, module_lr=[1, 0.5]), tmp_path).of("train")
    assert [record["lr"] for record in records] == pytest.approx([0.1] * 5 + [0.01] * 5)  # no module's own


def test_an_evaluation_is_the_mean_over_exactly_the_images_of_its_split(tmp_path: Path) -> None:
    """22 and 12 images in batches of 8, beside the saved weights in a plain network."""
    config = tiny_config("fr", 3, dataset={"validation": 12})
    result = run_serial(config, tmp_path)
    data = build_dataset(config["dataset"])
    blocks = build_blocks(config["model"], data.input_shape, data.num_classes, config["seed"])
    network = torch.nn.Sequential(OrderedDict(blocks))
    network.load_state_dict(result.weights)
    network.eval()
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    last = result.of("eval")[-1]
    for name, split in (("test", data.test), ("validation", data.validation)):
        assert split is not None
        with torch.no_grad():
            logits = network((split.images / 255 - mean) / std)
        assert last[f"{name}_loss"] == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-4)
        assert last[f"{name}_error"] == (logits.argmax(dim=1) != split.labels).double().mean().item()


def test_training_losses_and_errors_are_means_since_the_last_record_and_of_the_epoch(tmp_path: Path) -> None:
    """Of still weights, whose errors a plain loop finds: two epochs of five steps, a `train` record every three."""
    config = tiny_config("bp", 2, optimizer={"lr": 0.0, "weight_decay": 0.0}, log_every=3)
    run = run_serial(config, tmp_path)
    plain = reference.Reference(config, make_plan(config).cuts)
    numbers = []
    for t in range(10):
        logits, labels = torch.nn.Sequential(*plain.w)(plain.images.batch(t)), plain.labels.batch(t)
        error = (logits.argmax(dim=1) != labels).double().mean()
        numbers.append((F.cross_entropy(logits, labels).item(), error.item()))
    of_train = [numbers[:3], numbers[3:6], numbers[6:9], numbers[9:]]
    of_eval = [numbers[:5], numbers[5:]]
    for kind, prefix, parts in (("train", "", of_train), ("eval", "train_", of_eval)):
        for record, part in zip(run.of(kind), parts, strict=True):
            losses, errors = zip(*part, strict=True)
            assert record[f"{prefix}loss"] == pytest.approx(sum(losses) / len(part), rel=1e-4)
            assert record[f"{prefix}error"] == pytest.approx(sum(errors) / len(part))


def test_what_a_method_measures_is_a_mean_since_the_last_record(tmp_path: Path) -> None:
    method = {"_target_": "tiny_methods.Measuring", "name": "measuring"}
    each = run_serial(tiny_config("bp", 3, method=method), tmp_path / "each").of("method")
    lengths = {k: [event.get("length") for event in each if event["module"] == k] for k in (1, 2, 3)}
    assert set(lengths[3]) == {None} and all(length is None for length in lengths[1][::2])
    records = run_processes(tiny_config("bp", 3, "gloo", method=method, log_every=4), tmp_path / "some").of("method")
    assert [(r["step"], r["module"]) for r in records] == [(step, k) for step in (4, 8, 10) for k in (1, 2)]
    assert [record["batch"] for record in records] == [1.5, 1.5, 5.5, 5.5, 8.5, 8.5]
    for record in records:
        own = lengths[record["module"]]
        odd = {4: (own[1], own[3]), 8: (own[5], own[7]), 10: (own[9],)}[record["step"]]
        assert record["length"] == sum(odd) / len(odd)


@pytest.mark.parametrize(
    ("method", "fields", "lag"),
    [
        ("dni", ("synthesizer_loss", "synthesizer_cosine"), 1),
        ("cdni", ("synthesizer_loss", "synthesizer_cosine"), 1),
        ("dgl", ("auxiliary_loss", "auxiliary_error"), 0),
    ],
)
def test_what_our_methods_measure_is_that_of_the_references(
    method: str, fields: tuple[str, str], lag: int, tmp_path: Path
) -> None:
    """A synthesizer learns from an iteration in the next one. Losses and weights are the reference's too."""
    config = tiny_config(method, 3, precision="fp64")
    run = run_serial(config, tmp_path)
    plain = SIMULATIONS[method](config, run.cuts)
    assert_matches_reference(run, plain, tolerance=1e-12)
    events = run.of("method")
    measured = {(e["module"], e["step"] - 1 - lag): tuple(e[field] for field in fields) for e in events if len(e) > 4}
    assert measured.keys() == {(k, t) for k in (1, 2) for t in range(10 - lag)}
    for place, numbers in measured.items():
        assert numbers == pytest.approx(plain.measured[place], abs=1e-9), place


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("two words", 1.0, r"record\('two words', ...\): a name is an identifier"),
        ("train_time", 1.0, "a name is an identifier, and none of kind, step, epoch, train_time, module"),
        ("length", torch.ones(2), r"record\('length', ...\): a value is one number, not \[2\]"),
    ],
)
def test_what_cannot_be_measured_is_refused(name: str, value: torch.Tensor | float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunningMeans().add(name, value)


def test_a_run_is_told_and_evaluated_at_its_end_too(tmp_path: Path) -> None:
    """Seven steps, epochs of five, a `train` record every four."""
    run = run_serial(tiny_config("bp", 1, max_steps=7, log_every=4), tmp_path)
    steps = {kind: [record["step"] for record in run.of(kind)] for kind in ("train", "time", "memory", "eval")}
    assert steps == {"train": [4, 7], "time": [5, 7], "memory": [5, 7], "eval": [5, 7]}


def test_an_evaluation_is_due_every_so_many_epochs_and_at_the_end(tmp_path: Path) -> None:
    """Whatever else the loop pauses for: here it measures sigma at the beginning of every epoch."""
    sigma = {"sigma": {"every": 5, "window": 1}}
    run = run_serial(tiny_config("bp", 1, epochs=5, eval_every=2, diagnostics=sigma), tmp_path)
    steps = {kind: [record["step"] for record in run.of(kind)] for kind in ("time", "memory", "eval")}
    assert steps == {"time": [5, 10, 15, 20, 25], "memory": [10, 20, 25], "eval": [10, 20, 25]}


@pytest.mark.parametrize(
    ("method", "eval_every", "expected"),
    [
        ("fr", 0.5, [2, 5, 8, 10]),
        ("fr", 0.4, [2, 4, 6, 8, 10]),
        ("fr", 0.001, [*range(1, 11)]),
        ("fr", 1.2, [6, 10]),
        ("fr", 3, [10]),
        ("bp", 0.4, [2, 4, 6, 8, 10]),
    ],
)
def test_evaluations_between_the_ends_of_epochs_change_nothing(
    method: str, eval_every: float, expected: list[int], tmp_path: Path
) -> None:
    plain = run_serial_once(tiny_config(method, 3))
    run = run_serial(tiny_config(method, 3, eval_every=eval_every), tmp_path / "run")
    assert [record["step"] for record in run.of("eval")] == expected
    assert run.losses == plain.losses and run.evaluations[-1][2:] == plain.evaluations[-1][2:]
    assert all(torch.equal(value, run.weights[name]) for name, value in plain.weights.items())
    trained_on = [record["train_loss"] for record in run.of("eval")]
    steps = [0, *expected]
    means = [fmean(plain.losses[since:until]) for since, until in pairwise(steps)]
    assert trained_on == pytest.approx(means)


def test_every_nth_evaluation_is_at_the_end_of_an_epoch() -> None:
    """Of 391 steps, which neither 10 nor 0.3 divides."""
    for eval_every, ends in (
        (0.1, {391 * epoch for epoch in range(1, 301)}),
        (0.3, {391 * 3 * i for i in range(1, 101)}),
    ):
        extent = Extent(391 * 300, 391, eval_every, 1, trace=0, profile=0, profile_folder=Path())
        found = [step for step in range(1, extent.num_steps + 1) if extent.evaluates(step)]
        assert ends <= set(found) and len(found) == round(300 / eval_every)


def test_the_steps_of_a_run_cut_short_are_the_first_of_the_whole_one(tmp_path: Path) -> None:
    """The milestone at half of the epochs stays where it is."""
    whole = run_serial_once(tiny_config("fr", 2))
    short = run_serial(tiny_config("fr", 2, max_steps=7), tmp_path / "short")
    assert short.losses == whole.losses[:7]


def test_clip_norm_limits_each_modules_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    original = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *arguments: Any) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if norm:  # 0 where an optimizer is tried before the run
            norms.append(norm)
        original(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    run_serial(tiny_config("bp", 2, clip_norm=0.01, epochs=1), tmp_path)
    assert len(norms) == 10 and max(norms) == pytest.approx(0.01, rel=1e-3)


def test_the_gradient_of_a_synthesizer_is_clipped_by_itself(tmp_path: Path) -> None:
    """To less than what it is anyway, unlike in test_exactness.py."""
    config = tiny_config("dni", 3)
    free = run_serial_once(tiny_config("dni", 3))
    config["method"]["clip_norm"] = 1e-3
    clipped = run_serial(config, tmp_path / "clipped")
    assert_matches_reference(clipped, reference.dni(config, clipped.cuts))
    assert clipped.losses != free.losses


def with_dropout(method: str, k: int) -> dict[str, Any]:
    return tiny_config(method, k, model={"_target_": "tiny_models.residual", "name": "tiny", "dropout": 0.3})


def measured(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"diagnostics": {"sigma": {"every": 3, "window": 2}}}


@pytest.mark.parametrize(("method", "k"), [("bp", 1), *((method, 3) for method in METHODS)])
def test_the_direction_diagnostic_changes_nothing(method: str, k: int) -> None:
    """With one module every method has no more than BP."""
    with_sigma = run_serial_once(measured(with_dropout(method, k)))
    assert_same(with_sigma, run_serial_once(with_dropout(method, k)))
    assert len(with_sigma.of("direction")) >= 2 * k


@pytest.mark.parametrize(("method", "transport"), [("fr", "ipc"), ("ddg", "gloo"), ("cdni", "ipc"), ("dgl", "gloo")])
def test_between_processes_the_direction_is_the_same_and_changes_nothing(
    method: str, transport: str, tmp_path: Path
) -> None:
    serial = run_serial_once(measured(with_dropout(method, 3)))
    processes = run_processes(measured(with_dropout(method, 3)) | {"transport": transport}, tmp_path)
    assert_same(processes, run_serial_once(with_dropout(method, 3)))
    products = {(event["step"], event["module"]): event for event in serial.of("direction")}
    records = [record for record in processes.of("sigma") if record["module"] > 0]
    assert len(records) == len(products) > 0
    for record in records:
        event = products[record["step"], record["module"]]
        assert record["sigma"] == event["dot"] / event["true"]


def test_sigma_of_bp_is_one_exactly_and_so_is_module_k_of_every_method() -> None:
    for method in METHODS:
        events = run_serial_once(measured(with_dropout(method, 3))).of("direction")
        assert {event["module"] for event in events} == {1, 2, 3}
        for event in events:
            if method == "bp" or event["module"] == 3:
                assert event["dot"] == event["true"] == event["used"] > 0


def test_sigma_is_that_of_gradients_before_they_are_clipped_and_of_frozen_modules_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"diagnostics": {"sigma": {"every": 2, "window": 1}}, "clip_norm": 1e-3, "freeze": [1]}
    events = run_serial(tiny_config("bp", 2, **settings), tmp_path).of("direction")
    assert [event["module"] for event in events] == [1, 2] * 5
    assert all(event["dot"] == event["true"] == event["used"] > 0 for event in events)


def test_sigma_of_fr_on_frozen_weights_is_the_product_with_the_delayed_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With still weights N_k is BP's gradient of batch t and G_k that of batch t - (K-k): computed here by hand."""
    log = GradientLog(monkeypatch)
    still: dict[str, Any] = {"optimizer": {"lr": 0.0, "weight_decay": 0.0}}
    run_serial(tiny_config("bp", 3, **still), tmp_path / "bp")
    truth = dict(log.gradients)
    sigma = {"sigma": {"every": 4, "window": 2}}
    events = run_serial(tiny_config("fr", 3, diagnostics=sigma, **still), tmp_path / "fr").of("direction")
    first = next(event for event in events if event["module"] == 1)
    assert first["step"] == 4  # all modules learn from iteration 2 on: the window is iterations 2 and 3

    def weights_only(gradients: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([g.double().flatten() for g in gradients if g.dim() == 4])

    n = weights_only(truth[1, 2]) + weights_only(truth[1, 3])
    g = weights_only(truth[1, 0]) + weights_only(truth[1, 1])
    assert first["dot"] == pytest.approx(float(n @ g), rel=1e-5)
    assert first["true"] == pytest.approx(float(n @ n), rel=1e-5)
    assert first["used"] == pytest.approx(float(g @ g), rel=1e-5)


def test_sigma_is_over_linear_weights_too_but_not_over_biases_and_norms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = GradientLog(monkeypatch)
    model = {"_target_": "fr_bench.models.mlp.mlp", "name": "mlp", "width": 12, "depth": 3}
    sigma = {"sigma": {"every": 2, "window": 1}}
    events = run_serial(tiny_config("bp", 2, model=model, diagnostics=sigma), tmp_path).of("direction")
    assert [event["module"] for event in events[:2]] == [1, 2]
    for event in events[:2]:
        weights = [g.double() for g in log.gradients[event["module"], 0] if g.dim() == 2]
        assert event["true"] == pytest.approx(sum(float((g * g).sum()) for g in weights), rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3, 3)])
def test_a_conditional_synthesizer_sees_the_label_of_every_image(shape: tuple[int, ...]) -> None:
    synthesizer = Synthesizer(shape, num_hidden=0, hidden_channels=8, kernel_size=1, num_classes=3)
    torch.nn.init.normal_(synthesizer.output.weight)
    labels = torch.tensor([2, 0, 1, 2])
    of_label = synthesizer.output.weight.flatten(1)[:, 6:].T  # [classes, channels]
    expected = of_label[labels].view(4, 6, *[1] * (len(shape) - 2)).expand(shape)
    torch.testing.assert_close(synthesizer(torch.zeros(shape), labels), expected)


@pytest.mark.parametrize("shape", [(16, 6), (16, 6, 3, 3)])
def test_hidden_layers_of_a_synthesizer_are_normalised(shape: tuple[int, ...]) -> None:
    hidden = Synthesizer(shape, num_hidden=1, hidden_channels=8, kernel_size=5).hidden
    h = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hidden(100 * h), hidden(h), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "make", [lambda shape: Synthesizer(shape, 1, 8, 5), lambda shape: AuxiliaryNetwork(shape, 1, 1, 3)]
)
def test_features_that_a_companion_is_not_made_for_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"needs features \[B, C\] or \[B, C, H, W\] below a cut, not \[2, 5, 4\]"):
        make([2, 5, 4])


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("method", ["dni", "dgl"])
def test_what_is_trained_beside_a_module_has_the_memory_format_of_the_run(
    method: str, channels_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside one whose first kernel is of 1x1, as in the bottlenecks behind the first module."""
    modules: list[Module] = []
    like_network = Module.like_network

    def noticed(self: Module, other: torch.nn.Module) -> torch.nn.Module:
        modules.append(self)
        return like_network(self, other)

    monkeypatch.setattr(Module, "like_network", noticed)
    model = {"_target_": "fr_bench.models.preactivation.resnet", "name": "resnet", "depth": 11}
    run_serial(tiny_config(method, 3, model=model, channels_last=channels_last, max_steps=1), tmp_path)
    form = torch.channels_last if channels_last else torch.contiguous_format
    for module in modules:
        kernels = [p for p in module.companions[0].parameters() if p.dim() == 4]
        assert kernels and all(p.stride() == torch.empty_like(p, memory_format=form).stride() for p in kernels)
    assert [module.k for module in modules] == [1, 2]


def test_every_block_draws_random_numbers_of_its_own_for_every_batch() -> None:
    network = Network([("one", torch.nn.Dropout(0.5)), ("two", torch.nn.Dropout(0.5))], seed=0)
    first, again, other = (network(torch.ones(10_000), batch) for batch in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (first == 0).float().mean() == pytest.approx(0.75, abs=0.03)  # with the same numbers it were half of them
    of_another_seed = Network([("one", torch.nn.Dropout(0.5)), ("two", torch.nn.Dropout(0.5))], seed=1)
    assert not torch.equal(first, of_another_seed(torch.ones(10_000), 5))


@pytest.mark.parametrize("of", ["torch", "python", "numpy"])
def test_a_block_repeats_what_it_draws_from_other_generators(of: str) -> None:
    network = Network([("drop", LayerDrop(8, of)), ("still", torch.nn.ReLU())], seed=0)
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    random.seed(1)
    np.random.seed(1)
    wanted = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    skipped = []
    for batch in range(20):
        with network.statistics(update=False):
            first, again = network(x, batch), network(x, batch)
        assert torch.equal(first, again)
        skipped.append(torch.equal(first, x.relu()))
    assert 2 < sum(skipped) < 18
    assert network.drawing_blocks == ["drop"]
    assert (random.random(), np.random.rand()) == wanted  # whoever else draws from these is not disturbed


def test_a_block_that_begins_to_draw_repeats_it_too() -> None:
    drop = torch.nn.Dropout(0.0)
    network = Network([("drop", drop), ("still", torch.nn.ReLU())], seed=0)
    x = torch.ones(2, 100)
    network(x, 0)
    assert network.drawing_blocks == []
    drop.p = 0.5
    torch.manual_seed(7)
    first = network(x, 1)
    torch.manual_seed(8)
    assert torch.equal(network(x, 1), first) and not torch.equal(first, x)


def test_draws_of_shapes_alone_are_noticed_and_leave_the_generators_alone() -> None:
    for of in ("torch", "python", "numpy"):
        with torch.device("meta"):
            network = Network([("drop", LayerDrop(8, of)), ("still", torch.nn.ReLU())], seed=0)
        before = random.getstate(), np.random.get_state()[2], torch.get_rng_state()
        network(torch.empty(2, 8, 4, 4, device="meta"), 0)
        assert network.drawing_blocks == ["drop"]
        assert (random.getstate(), np.random.get_state()[2]) == before[:2]
        assert of == "torch" or torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("of", ["python", "numpy"])
def test_blocks_that_draw_elsewhere_are_the_same_in_every_run_and_wherever_they_are_cut(
    of: str, tmp_path: Path
) -> None:
    model = {"_target_": "tiny_models.layer_drop", "name": "drop", "of": of}
    fr = run_serial(tiny_config("fr", 3, model=model), tmp_path / "fr")
    assert_same(run_processes(tiny_config("fr", 3, "ipc", model=model), tmp_path / "ipc"), fr)
    bp = run_serial(tiny_config("bp", 1, model=model), tmp_path / "bp")
    assert_same(run_serial(tiny_config("bp", 3, model=model), tmp_path / "cut"), bp)


def test_blocks_that_draw_in_evaluations_too_are_the_same_wherever_they_are_cut(tmp_path: Path) -> None:
    """As dropout that nobody told of the end of training."""
    config = tiny_config("fr", 3, model={"_target_": "tiny_models.noisy", "name": "noisy"})
    assert_same(run_processes(config | {"transport": "ipc"}, tmp_path / "ipc"), run_serial(config, tmp_path / "serial"))


@pytest.mark.parametrize(("of", "num_seeds"), [("torch", 3), ("python", 1), ("numpy", 1)])
def test_a_module_may_be_skipped_whole(of: str, num_seeds: int, tmp_path: Path) -> None:
    """Module 3 is one block, which half of the batches skip; in DGL nothing comes back through it then."""
    model = {"_target_": "tiny_models.layer_drop", "name": "drop", "of": of}
    for seed in range(num_seeds):
        config = tiny_config("dgl", 4, model=model, partition=[2, 3, 4], seed=seed)
        before = build_blocks(config["model"], (3, 8, 8), 4, seed)[2][1].state_dict()
        weights = run_serial(config, tmp_path / str(seed)).weights
        assert not torch.equal(before["block.conv.weight"], weights["block2.block.conv.weight"])


class WithHead(FeaturesReplay):
    """A method with a network of its own, which it does not seed."""

    weights: ClassVar[dict[int, torch.Tensor]] = {}

    def __init__(self, module: Module, link: Any, **settings: Any) -> None:
        super().__init__(module, link, **settings)
        self.weights[module.k] = torch.nn.Linear(3, 2).weight.detach() + random.random()


def test_networks_of_a_method_depend_on_the_seed_and_k_alone(tmp_path: Path) -> None:
    found = []
    for partition, seed in (("equal", 3), ([1, 3], 3), ("equal", 4)):
        config = tiny_config("fr", 3, partition=partition, seed=seed, epochs=1)
        config["method"]["_target_"] = "test_methods.WithHead"
        run_serial(config, tmp_path / str(len(found)))
        found.append(dict(sys.modules["test_methods"].WithHead.weights))
    assert all(torch.equal(found[0][k], found[1][k]) and not torch.equal(found[0][k], found[2][k]) for k in (1, 2, 3))
    assert not torch.equal(found[0][1], found[0][2])


def test_the_learning_rates_of_an_optimizers_groups_keep_their_proportion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[list[float]] = []
    original = Module.step

    def step(module: Module, t: int) -> None:
        original(module, t)
        used.append([group["lr"] for group in module.optimizer.param_groups])

    monkeypatch.setattr(Module, "step", step)
    optimizer = {"_target_": "tiny_models.grouped", "name": "grouped", "lr": 0.05, "momentum": 0.9}
    config = tiny_config("fr", 2, optimizer=optimizer, module_lr=[2.0, 1.0])
    result = run_serial(config, tmp_path / "run")
    # Module 2 has three groups, module 1 twice its rate and no matrix; the schedule takes a tenth from halfway on.
    assert {tuple(round(rate, 6) for rate in rates) for rates in used} == {
        (0.0, 0.05, 0.5), (0.0, 0.005, 0.05), (0.0, 1.0), (0.0, 0.1),
    }  # fmt: skip
    initial = run_serial(config | {"max_steps": 1}, tmp_path / "initial").weights
    for name, weight in result.weights.items():
        if "norm.weight" in name or name.endswith("bias"):
            assert torch.equal(weight, initial[name]), name


def test_sigma_counts_a_shared_weight_once_and_has_attention_whole() -> None:
    linear = torch.nn.Linear(4, 4, bias=False)
    attention = torch.nn.MultiheadAttention(4, 2)
    spectral = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(4, 4))
    network = torch.nn.Sequential(linear, torch.nn.ReLU(), linear, attention, spectral, torch.nn.LayerNorm(4))
    found = GradientSums(SimpleNamespace(network=network)).parameters  # type: ignore[arg-type]
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert [names[id(parameter)] for parameter in found] == [
        "0.weight", "3.in_proj_weight", "3.out_proj.weight", "4.parametrizations.weight.original",
    ]  # fmt: skip


DIGITS: dict[str, Any] = {
    "model": {"_target_": "fr_bench.models.mlp.mlp", "name": "mlp", "width": 12, "depth": 6},
    "dataset": {"_target_": "fr_bench.data.digits.load", "name": "digits", "size": 8},
    "optimizer": {"lr": 0.1},
    "batch_size": 32,
    "log_every": 50,
    "eval_every": 12,
}


@pytest.fixture(scope="module")
def frozen_error(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Of the run whose lower modules stay at their initial weights, however long it trains."""
    control = tiny_config("bp", 4, freeze=[1, 2, 3], epochs=12, **DIGITS)
    return run_serial(control, tmp_path_factory.mktemp("frozen")).evaluations[-1][3]


@pytest.mark.parametrize(("method", "epochs"), [("bp", 3), ("fr", 4), ("ddg", 5), ("cdni", 12), ("dgl", 2)])
def test_learning_is_real(method: str, epochs: int, frozen_error: float, tmp_path: Path) -> None:
    """With K = 4 the lower modules earn their keep: freezing them at their initial weights does worse, even in twice
    the time. Synthetic gradients must themselves be learned first."""
    config = tiny_config(method, 4, epochs=epochs, **DIGITS)
    if method == "cdni":
        config["method"]["hidden_channels"] = 32
        config["method"]["optimizer"]["lr"] = 0.2
    assert run_serial(config, tmp_path).evaluations[-1][3] < 0.7 * frozen_error


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *[(name, {}) for name in METHODS],
        ("ddg", {"weights": "current"}),
        ("fr", {"warmup": "zero"}),
        ("ddg", {"warmup": "zero"}),
    ],
)
def test_what_wants_no_gradient_stays_as_it_was(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Neither a delayed gradient nor weight decay reaches it."""
    model = {"_target_": "tiny_models.partly_frozen", "name": "partly_frozen"}
    config = tiny_config(method, 3, model=model, epochs=1)
    config["method"] |= settings
    before = dict(Network(build_blocks(model, (3, 8, 8), 4, config["seed"]), 0).named_parameters())
    after = run_serial(config, tmp_path).weights
    for name, parameter in before.items():
        assert torch.equal(after[name], parameter) is not parameter.requires_grad, name


@pytest.mark.parametrize("what", ["instance", "averaged", "skipped", "functional", "renormalized", "seldom"])
def test_buffers_of_any_layer_move_in_training_alone(what: str, tmp_path: Path) -> None:
    """Not in the rehearsal, nor for accounts and sigma; and once an iteration, whether FR replays or BP recomputes. The
    vectors of spectral norm are in blocks that may be skipped, too."""
    model = {"_target_": "tiny_models.moving", "name": "moving", "what": what}
    one = run_serial(tiny_config("bp", 1, model=model), tmp_path / "1")
    checkpointed = tiny_config("bp", 3, model=model)
    checkpointed["method"]["checkpoint_activations"] = True
    assert_same(run_serial(checkpointed, tmp_path / "checkpointed"), one)
    fr = run_serial(tiny_config("fr", 3, model=model), tmp_path / "fr")
    seldom = measured(tiny_config("fr", 3, model=model, eval_every=2))
    other = run_serial(seldom, tmp_path / "other")
    assert other.losses == fr.losses
    assert all(torch.equal(value, other.weights[name]) for name, value in fr.weights.items())


def test_a_replay_moves_what_its_play_left_alone(tmp_path: Path) -> None:
    """With weights that stay as they are, module 1 has moved by the batches that it replayed, each once, as with BP."""
    for what in ("functional", "renormalized", "seldom"):
        model = {"_target_": "tiny_models.moving", "name": "moving", "what": what}
        still = {"lr": 0.0, "weight_decay": 0.0}
        fr = run_serial(tiny_config("fr", 3, model=model, optimizer=still), tmp_path / "fr" / what)
        bp = run_serial(tiny_config("bp", 1, model=model, optimizer=still, max_steps=8), tmp_path / "bp" / what)
        assert fr.cuts[0] >= 2
        moved = [name for name in bp.weights if name.startswith("block1.norm")]
        assert all(torch.equal(fr.weights[name], bp.weights[name]) for name in moved), what


@pytest.mark.parametrize("method", ["bp", "fr", "ddg"])
def test_hooks_on_parameters_see_their_gradients(method: str, tmp_path: Path) -> None:
    """Those of DDG's copies, too."""
    still = {"weight_decay": 0.0}
    model = {"_target_": "tiny_models.hooked", "name": "hooked", "masked": True}
    config = tiny_config(method, 3, model=model, optimizer=still)
    run = run_serial(config, tmp_path)
    initial = dict(Network(build_blocks(model, (3, 8, 8), 4, config["seed"]), 0).named_parameters())
    for index in range(1, 5):
        conv, bias = f"block{index}.conv.weight", f"block{index}.norm.bias"
        assert torch.equal(run.weights[conv][::2], initial[conv][::2])
        assert not torch.equal(run.weights[conv][1::2], initial[conv][1::2])
        assert torch.equal(run.weights[bias], initial[bias])


def test_what_a_pass_on_copies_changes_in_weights_it_changes_in_the_modules_own() -> None:
    """An embedding that shortens its vectors does so where they are used. Not for an account, nor on older copies."""
    embedding = torch.nn.Embedding(4, 3, max_norm=0.1)
    passes = Passes(Network([("embed", embedding)], 0), "fp32", is_bottom=True, is_top=False)
    x, initial = torch.tensor([[0, 1, 2]]), embedding.weight.detach().clone()
    passes.run_on_copies(x, 0, 0, None, False)
    passes.run_on_copies(x, 0, 0, {"embed.weight": initial}, True)
    assert torch.equal(embedding.weight, initial)
    live = passes.run_on_copies(x, 0, 0, None, True)
    assert live.copies is not None and torch.equal(embedding.weight, live.copies["embed.weight"])
    assert embedding.weight[:3].norm(dim=1).max() < 0.11 and torch.equal(embedding.weight[3], initial[3])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # a play's
@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("method", ["bp", "fr", "ddg"])
def test_blocks_may_recompute_their_layers_in_the_backward(method: str, how: str, tmp_path: Path) -> None:
    """On the weights and with the statistics of the pass that they repeat: of DDG's, on its copies."""
    model = {"_target_": "tiny_models.recomputing", "name": "recomputing"}

    def run(how: str, **settings: Any) -> Result:
        config = tiny_config(method, 3, model=model | {"how": how} | settings)
        return run_serial(config, tmp_path / how / str(len(settings)))

    assert_same(run(how), run("kept"))
    normed = run(how, norm=True)
    assert normed.losses == run("kept", norm=True).losses
    # Torch's own way: a recomputation counts its batch once more, and the rehearsal's does not.
    num_batches = normed.weights["block3.layers.1.num_batches_tracked"]
    assert num_batches == {"bp": 10 + 10, "fr": 9 + 9, "ddg": 10 + 9}[method]


@pytest.mark.parametrize(("kind", "method"), [("ShrinkingFR", "fr"), ("ShrinkingDDG", "ddg")])
def test_a_method_of_ones_own_may_change_how_a_module_learns(kind: str, method: str, tmp_path: Path) -> None:
    """Gradients that do not shrink are those of the method; those that shrink to nothing leave modules as they were."""

    def run(name: str, factor: float | None = None, **changes: Any) -> Result:
        config = tiny_config(method, 3, optimizer={"weight_decay": 0.0}, **changes)
        if factor is not None:
            config["method"] |= {"_target_": f"tiny_methods.{kind}", "name": kind, "factor": factor}
        return run_serial(config, tmp_path / name)

    assert_same(run("one", 1.0), run("plain"))
    assert_same(run("nothing", 0.0), run("frozen", freeze=[1, 2]))


def test_never_learning_counts_the_steps_of_the_run_or_of_an_epoch_and_leaves_out_frozen_modules() -> None:
    config = {"freeze": []}
    anew = FeaturesReplay.policy(carry_history=False)
    assert "the run has 2;" in never_learning(config, anew, 3, 50, 2)[0]  # less than an epoch
    assert "an epoch has 2," in never_learning(config, anew, 3, 2, 50)[0]
    assert never_learning({"freeze": [1]}, FeaturesReplay.policy(), 3, 50, 2) == []
    (line,) = never_learning({"freeze": [1]}, FeaturesReplay.policy(), 3, 50, 1)
    assert line.startswith("module 2 never learns:")
