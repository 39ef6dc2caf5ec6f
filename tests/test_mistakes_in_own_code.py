"""Models, data, methods, optimizers and schedules of a user's own: what is wrong with them is one line with its place,
and what a run's start asks of them is no more than it must."""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path
from random import shuffle
from typing import Any

import numpy as np
import pytest
import torch
from harness import assert_same, read_records, read_weights, run_processes, run_serial, tiny_config
from torch import Tensor, nn

from fr_bench.checkpoints.files import whole_folders
from fr_bench.components import check_callable, check_optimizer
from fr_bench.data import Dataset, Split
from fr_bench.errors import ConfigError, RunFailed
from fr_bench.launching.launch import check_plan, run_training
from fr_bench.methods.base import Method
from fr_bench.methods.bp import Backpropagation
from fr_bench.methods.fr import FeaturesReplay
from fr_bench.methods.policy import Policy
from fr_bench.planning.plan import make_plan

HERE = __name__
Blocks = list[tuple[str, nn.Module]]


def own(group: str, target: str, **settings: Any) -> dict[str, Any]:
    """Changes to a config: the function or class of this file in the place of ours."""
    return {group: {"_target_": f"{HERE}.{target}", "name": target.lower(), **settings}}


def assert_refused(message: str, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_plan(config)
    assert "\n" not in str(caught.value)


# --- models


class Shifted(nn.Module):
    """By what was computed elsewhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(np.zeros(width, np.float32)))

    def forward(self, h: Tensor) -> Tensor:
        return h - self.mean


def model(input_shape: tuple[int, ...], num_classes: int, what: str = "plain") -> Blocks:
    """A small one, built in a way that shapes alone may not do."""
    width = 8
    if what == "item":
        width = int(torch.linspace(0, 8, 3)[-1].item())
    first, last = nn.Linear(int(np.prod(input_shape)), width), nn.Linear(width, num_classes)
    head = nn.Sequential(nn.ReLU(), last)
    if what == "numpy weights":
        last.weight.data = torch.from_numpy(np.full((num_classes, width), 0.1, np.float32))
    if what == "numpy buffer":
        head.insert(0, Shifted(width))
    if what == "lock":
        head.lock, width = threading.Lock(), int(torch.tensor(8).item())  # type: ignore[assignment]
    if what == "device":
        head.to("cpu")
    if what == "loaded":
        last.load_state_dict({"weight": torch.full((num_classes, width), 0.1), "bias": torch.zeros(num_classes)})
    blocks: Blocks = [
        ("first", nn.Sequential(nn.Flatten(), first)),
        ("middle", nn.Linear(width, width)),
        ("head", head),
    ]
    if what.startswith("tied"):
        width = int(torch.tensor(8).item()) if what == "tied, with values" else 8
        blocks.insert(1, ("again", nn.Sequential(nn.Linear(width, width))))
        blocks[1][1][0].weight = blocks[2][1].weight  # type: ignore[index,assignment]
    if what.startswith("norm"):
        norm = nn.BatchNorm1d(width, affine=False)
        blocks.insert(1, ("norm", norm))
        blocks.insert(3, ("again", norm))
    return blocks


@pytest.mark.parametrize("what", ["item", "numpy weights", "numpy buffer", "device", "loaded"])
@pytest.mark.filterwarnings("error", "default::pytest.PytestUnraisableExceptionWarning")  # that may be another test's
def test_a_model_may_be_built_with_values(what: str, tmp_path: Path) -> None:
    """Before anything starts only its shapes are wanted, and not everything can be built of shapes alone."""
    config = tiny_config("fr", 2, **own("model", "model", what=what))
    check_plan(config)
    run = run_serial(config, tmp_path / "run")
    plain = run_serial(tiny_config("fr", 2, **own("model", "model")), tmp_path / "plain")
    assert (run.losses == plain.losses) == (what in ("item", "numpy buffer", "device"))
    if what in ("numpy weights", "loaded"):
        assert (run.weights["head.1.weight"] - 0.1).abs().max() < 0.1  # they begin there, and do not go far


def test_a_model_of_values_that_cannot_be_copied_is_one_line() -> None:
    """As shapes alone it can be had by copying it, and only so."""
    config = tiny_config("fr", 2, **own("model", "model", what="lock"))
    assert_refused("cannot pickle '_thread.lock' object; leave out what cannot be copied", config)


@pytest.mark.parametrize("what", ["tied", "tied, with values"])
def test_what_is_shared_stays_shared_without_values(what: str) -> None:
    settings = own("model", "model", what=what)
    check_plan(tiny_config("bp", 2, partition=[3], **settings))
    assert_refused("blocks 'again' and 'middle' share a parameter", tiny_config("bp", 2, partition=[2], **settings))


def test_running_statistics_of_two_modules_are_refused() -> None:
    """Each module would move its own, and K modules compute something else than one."""
    settings = own("model", "model", what="norm")
    check_plan(tiny_config("bp", 2, partition=[1], **settings))
    assert_refused(
        "blocks 'norm' and 'again' share a running statistic", tiny_config("bp", 2, partition=[2], **settings)
    )


class Still(nn.Linear):
    """Lets no gradient through to its input, nor to its weights if ``wholly``."""

    def __init__(self, width: int, wholly: bool) -> None:
        super().__init__(width, width)
        self.wholly = wholly

    def forward(self, h: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.wholly):
            return super().forward(h.detach())


def still_model(input_shape: tuple[int, ...], num_classes: int, where: int, wholly: bool) -> Blocks:
    blocks, width = model(input_shape, num_classes), 8 if where > 0 else int(np.prod(input_shape))
    blocks.insert(where, ("still", nn.Sequential(nn.Flatten(), Still(width, wholly))))
    return blocks


@pytest.mark.parametrize("wholly", [True, False])
@pytest.mark.parametrize("method", ["bp", "ddg"])
def test_a_block_that_lets_no_gradient_through_is_named_where_modules_wait_for_one(method: str, wholly: bool) -> None:
    middle = own("model", "still_model", where=1, wholly=wholly)
    assert_refused("module 2: block 'still' lets no gradient through", tiny_config(method, 2, partition=[1], **middle))
    check_plan(tiny_config(method, 1, partition=[], **middle))
    check_plan(tiny_config(method, 2, partition=[3], **middle))
    first = own("model", "still_model", where=0, wholly=wholly)
    check_plan(tiny_config(method, 2, partition=[2], **first))
    config = tiny_config(method, 2, partition=[1], **first)
    if wholly:
        assert_refused("module 1: block 'still' lets no gradient through", config)
    else:
        check_plan(config)


class Spectrum(nn.Linear):
    """Features become complex numbers, or real again."""

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(torch.fft.ifft(h).real) if h.is_complex() else torch.fft.fft(super().forward(h))


def complex_model(input_shape: tuple[int, ...], num_classes: int) -> Blocks:
    first, *others = model(input_shape, num_classes)
    return [first, ("there", Spectrum(8, 8)), ("back", Spectrum(8, 8)), *others]


def test_complex_features_go_from_module_to_module_in_one_process(tmp_path: Path) -> None:
    config = tiny_config("bp", 2, partition=[2], **own("model", "complex_model"))
    assert_same(run_serial(config, tmp_path / "two"), run_serial(config | {"k": 1, "partition": []}, tmp_path / "one"))
    message = r"partition=\[2\]: module 1 ends with complex64 features, which cannot be sent"
    with pytest.raises(ConfigError, match=message):
        check_plan(config | {"transport": "ipc"})
    check_plan(config | {"transport": "ipc", "partition": [3]})


class Skipped(nn.Linear):
    """As a layer that is dropped, which may be all of a module."""

    def forward(self, h: Tensor) -> Tensor:
        return h


def skipping_model(input_shape: tuple[int, ...], num_classes: int) -> Blocks:
    first, *others = model(input_shape, num_classes)
    return [first, ("skipped", Skipped(8, 8)), *others]


@pytest.mark.parametrize("method", ["bp", "fr", "ddg"])
def test_a_block_that_returns_its_input_lets_gradients_through(method: str, tmp_path: Path) -> None:
    alone = run_serial(tiny_config(method, 3, partition=[1, 2], **own("model", "skipping_model")), tmp_path / "alone")
    assert alone.losses[-1] < alone.losses[0]
    if method == "bp":
        beside = run_serial(tiny_config("bp", 2, partition=[2], **own("model", "skipping_model")), tmp_path / "beside")
        assert_same(alone, beside)


DRAWN_BY = ("torch", "python", "numpy")
NO_GRADIENT = "module 1: {} no gradient and will not learn: what comes behind lets none through"


@pytest.mark.parametrize(
    ("cuts", "changes", "who"),
    [
        ([], own("model", "still_model", where=1, wholly=False), "block 'first' gets"),
        ([], own("model", "still_model", where=2, wholly=True), "blocks 'first', 'middle' and 'still' get"),
        ([2], own("model", "skipping_model"), "block 'skipped' gets"),
        ([2], own("model", "skipping_model") | {"freeze": [1]}, None),
        ([], own("model", "model"), None),
        *[([], {"model": {"_target_": "tiny_models.layer_drop", "name": "drop", "of": of}}, None) for of in DRAWN_BY],
    ],
)
def test_blocks_that_no_gradient_reaches_are_named(cuts: list[int], changes: dict[str, Any], who: str | None) -> None:
    """They would be trained around, without a word. A block that some batches skip is none of them."""
    warnings = make_plan(tiny_config("fr", len(cuts) + 1, partition=cuts, **changes)).warnings
    told = [line for line in warnings if "no gradient" in line]
    assert [line.startswith(NO_GRADIENT.format(who)) for line in told] == [True] * (who is not None), told


def test_where_modules_wait_for_no_gradient_such_a_block_may_be(tmp_path: Path) -> None:
    config = tiny_config("dgl", 2, partition=[1], **own("model", "still_model", where=1, wholly=False))
    assert_same(run_processes(config | {"transport": "ipc"}, tmp_path / "ipc"), run_serial(config, tmp_path / "serial"))


def faulty_model(input_shape: tuple[int, ...], num_classes: int, error: str = "") -> Any:
    if error == "file":
        Path("/nowhere/weights.pt").read_bytes()
    if error == "library":
        np.zeros(3).reshape(2, 2)
    if error == "lazy":
        return [("lazy", nn.LazyLinear(8))]
    if error == "complex":
        return [("complex", nn.Linear(8, 8, dtype=torch.complex64))]
    if error == "name":
        return [("forward", nn.Linear(8, 8))]
    if error == "import":
        raise ModuleNotFoundError("no timm")
    raise KeyError("depth") if error == "key" else RuntimeError("two\nlines")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("key", r"model: .*faulty_model cannot be called with error='key': KeyError: 'depth' \(.*own_code.py:\d+\)"),
        ("runtime", r"RuntimeError: two lines"),
        ("import", r"ModuleNotFoundError: no timm \(.*own_code.py:\d+\)"),
        ("library", r"ValueError: cannot reshape .* \(.*own_code.py:\d+\)"),
        ("file", r"model: .*faulty_model: \[Errno 2\] No such file or directory: '/nowhere/weights.pt'"),
        ("lazy", "block 'lazy' has a lazy layer: give it its size"),
        ("complex", "block 'complex' has complex parameters"),
        ("name", "a block cannot be named 'forward'"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_line(error: str, message: str) -> None:
    assert_refused(message, tiny_config("bp", 1, **own("model", "faulty_model", error=error)))


def viewing(input_shape: tuple[int, int, int], num_classes: int) -> Blocks:
    class View(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(len(x), -1)

    num_features = 8 * input_shape[1] * input_shape[2]
    conv = nn.Conv2d(input_shape[0], 8, 3, padding=1)
    return [("conv", conv), ("view", nn.Sequential(View(), nn.Linear(num_features, num_classes)))]


def test_a_view_of_images_in_channels_last_says_what_to_do(tmp_path: Path) -> None:
    settings = own("model", "viewing")
    with pytest.raises(ConfigError, match=r"module 1: .* flatten or reshape in the model, or channels_last=false"):
        run_serial(tiny_config("bp", 1, channels_last=True, **settings), tmp_path / "one")
    assert run_serial(tiny_config("bp", 1, channels_last=False, **settings), tmp_path / "other").losses


# --- data


def clouds(shuffled_by: str = "nothing", mistake: str = "") -> Any:
    """Points in two clouds, which a loader may shuffle."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    points = torch.randn(64, 5, generator=generator) + 4 * labels.view(-1, 1)
    order = list(range(64))
    if shuffled_by == "python":
        shuffle(order)
    elif shuffled_by == "torch":
        order = torch.randperm(64).tolist()
    elif shuffled_by == "itself":
        np.random.default_rng().shuffle(order)
    split = Split(points[order], labels[order])
    if mistake == "raises":
        raise RuntimeError("the server is down")
    if mistake == "no test set":
        return Dataset(split, None, None, 2)  # type: ignore[arg-type]
    if mistake == "torch":
        return Dataset(torch.utils.data.TensorDataset(points, labels), split, None, 2)  # type: ignore[arg-type]
    return Dataset(split, split, None, "2" if mistake == "text" else 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("shuffled_by", ["python", "torch"])
def test_what_a_loader_draws_from_global_streams_is_the_same_in_all_processes(shuffled_by: str, tmp_path: Path) -> None:
    """Images and labels are loaded by different ones."""
    data = own("dataset", "clouds", shuffled_by=shuffled_by)
    in_processes = run_processes(tiny_config("fr", 2, "ipc", model=MLP, **data), tmp_path / "ipc")
    assert_same(in_processes, run_serial(tiny_config("fr", 2, model=MLP, **data), tmp_path / "serial"))
    assert in_processes.losses[-1] < 0.5 * in_processes.losses[0]


MLP = {"_target_": "fr_bench.models.mlp.mlp", "name": "mlp", "width": 8, "depth": 2}


def test_a_loader_that_shuffles_otherwise_every_time_is_refused(tmp_path: Path) -> None:
    config = tiny_config("bp", 2, "gloo", model=MLP, **own("dataset", "clouds", shuffled_by="itself"))
    with pytest.raises(
        ConfigError, match=r"clouds returns other samples, or in another order, .* seed what it shuffles"
    ):
        run_training(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("raises", r"dataset: .*clouds cannot be called with mistake='raises': RuntimeError: the server is down"),
        ("no test set", "test must be a fr_bench.data.Split, not None. Every run is tested: hold some samples out"),
        ("torch", "train must be a fr_bench.data.Split, not TensorDataset"),
        ("text", "num_classes='2' must be an integer"),
    ],
)
def test_data_that_cannot_be_used_are_one_line(mistake: str, message: str) -> None:
    assert_refused(message, tiny_config("bp", 1, model=MLP, **own("dataset", "clouds", mistake=mistake)))


# --- methods


def no_class(module: Any, link: Any) -> None:
    """A function."""


class NoMethod:
    def __init__(self, module: Any, link: Any) -> None:
        pass


class NoPolicy(Method):
    """Says nothing of what it keeps."""


class OddPolicy(FeaturesReplay):
    @classmethod
    def policy(cls, **_: Any) -> Policy:
        return Policy(keeps="activations", gradient="delayed")  # type: ignore[arg-type]


class DictPolicy(FeaturesReplay):
    @classmethod
    def policy(cls, **_: Any) -> Policy:
        return {"keeps": "inputs", "gradient": "delayed"}  # type: ignore[return-value]


class PolicyOfAnInstance(FeaturesReplay):
    def policy(self, **_: Any) -> Policy:  # type: ignore[override]
        return Policy(keeps="inputs", gradient="delayed")


class TargetsWithoutSettings(FeaturesReplay):
    @classmethod
    def needs_targets(cls) -> bool:  # type: ignore[override]
        return True


class NoMemory(FeaturesReplay):
    @classmethod
    def predict_memory(cls, *_: Any, **hyper_parameters: Any) -> dict[str, int]:
        return None  # type: ignore[return-value]


class FaultyMemory(FeaturesReplay):
    @classmethod
    def predict_memory(cls, *_: Any, **hyper_parameters: Any) -> dict[str, int]:
        return {"stash": hyper_parameters["gain"]}


class OddMemory(FeaturesReplay):
    @classmethod
    def predict_memory(cls, *_: Any, **hyper_parameters: Any) -> dict[str, int]:
        return {"cache": 8}


class WithoutCheck(FeaturesReplay):
    def __init__(self, module: Any, link: Any, *, gain: float, **settings: Any) -> None:
        super().__init__(module, link, **settings)


class OddCheck(FeaturesReplay):
    @classmethod
    def check(cls, **settings: Any) -> None:
        raise AssertionError("too large")


class WithOptimizer(FeaturesReplay):
    def __init__(self, module: Any, link: Any, *, inner: Any) -> None:
        super().__init__(module, link)

    @classmethod
    def check(cls, inner: Any) -> None:  # type: ignore[override]
        """Takes it."""


class NoLearn(FeaturesReplay):
    learn_lower = Method.learn_lower


class NoReturn(FeaturesReplay):
    def play_lower(self, x: Tensor, t: int) -> Tensor:
        super().play_lower(x, t)  # type: ignore[return]


class NoInputGradient(Backpropagation):
    def play_lower(self, x: Tensor, t: int) -> Tensor:
        self._live = self.module.play(x, t, input_gradient=False)
        return self._live.hand_over()


class NoTargets(FeaturesReplay):
    def learn_lower(self, t: int) -> None:
        self.link.targets(t)


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("no_class", {}, r"method._target_=.*no_class: must be a subclass of fr_bench.methods.base.Method"),
        ("NoMethod", {}, r"method._target_=.*NoMethod: must be a subclass of fr_bench.methods.base.Method"),
        ("NoPolicy", {}, "NoPolicy has no policy, a classmethod that returns a Policy"),
        ("OddPolicy", {}, "its policy has keeps='activations'; known are graph, graphs, inputs"),
        ("DictPolicy", {}, r"DictPolicy.policy must return a Policy, not dict\."),
        ("PolicyOfAnInstance", {}, r"PolicyOfAnInstance.policy cannot be called: TypeError: .* missing 1 required"),
        ("TargetsWithoutSettings", {"warmup": "zero"}, r"needs_targets cannot be called with warmup='zero': TypeError"),
        ("NoMemory", {}, r"NoMemory.predict_memory must return bytes by category, not NoneType\."),
        ("FaultyMemory", {}, r"FaultyMemory.predict_memory cannot be called: KeyError: 'gain' \(.*own_code.py:\d+\)"),
        ("OddMemory", {}, "OddMemory.predict_memory: 'cache' is no category of memory; known are parameters"),
        ("WithoutCheck", {"gain": 2.0}, r"unexpected keyword argument 'gain'; give the class a check of its own"),
        ("OddCheck", {}, r"OddCheck cannot be called: AssertionError: too large \(.*own_code.py:\d+\)"),
        ("WithOptimizer", {"inner": {"_target_": "torch.optim.Adam"}}, "inner needs `_partial_: true`"),
    ],
)
def test_a_method_that_cannot_be_is_one_line(target: str, settings: dict[str, Any], message: str) -> None:
    assert_refused(message, tiny_config("fr", 2) | own("method", target, **settings))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("NoLearn", "NoLearn has no learn_lower"),
        ("NoReturn", "NoReturn.play_lower must return h_k, not NoneType"),
        ("NoInputGradient", "no gradient to send down: was the pass one with input_gradient=False"),
        ("NoTargets", "needs_targets must return True"),
    ],
)
def test_what_a_method_lacks_in_training_is_named(target: str, message: str, tmp_path: Path) -> None:
    config = tiny_config("fr", 3) | own("method", target)
    with pytest.raises((NotImplementedError, RuntimeError, TypeError), match=message):
        run_serial(config, tmp_path)


class OddState(FeaturesReplay):
    def __init__(self, module: Any, link: Any, *, what: str) -> None:
        super().__init__(module, link)
        self.what = what

    @classmethod
    def check(cls, what: str) -> None:  # type: ignore[override]
        """Takes it."""

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return {"array": {**state, "seen": {"last": np.zeros(2)}}, "list": [state]}[self.what]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("array", r"OddState.state_dict\(\)\['seen'\]\['last'\] is of type ndarray, which a checkpoint cannot hold"),
        ("list", r"OddState.state_dict\(\) must return a dict, not list"),
    ],
)
def test_a_state_that_cannot_be_saved_is_told_before_the_first_step(what: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=f"module 1 failed before the first step: TypeError: {message}"):
        run_training(tiny_config("fr", 2) | own("method", "OddState", what=what), tmp_path)


class RaisesInPython(FeaturesReplay):
    def learn_lower(self, t: int) -> None:
        shuffle("ab")  # type: ignore[arg-type]


class RaisesInOurs(FeaturesReplay):
    def learn_lower(self, t: int) -> None:
        self.module.record("one record", 0.0)


class RaisesLines(FeaturesReplay):
    def learn_lower(self, t: int) -> None:
        raise RuntimeError("two\nlines")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (RaisesInPython, "TypeError: 'str' object does not support item assignment"),
        (RaisesInOurs, "ValueError: .*"),
        (RaisesLines, "RuntimeError: two lines"),
    ],
)
def test_what_goes_wrong_in_training_is_one_line_with_its_place(
    method: type[Method], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RunFailed) as caught:
        run_training(tiny_config("fr", 2) | own("method", method.__name__), tmp_path)
    place = f"{__file__}:{method.learn_lower.__code__.co_firstlineno + 1}"
    expected = rf"module 1 failed in step 1: {message} \({re.escape(place)}\); see \S+rank_1.log"
    assert re.fullmatch(expected, str(caught.value)), caught.value


# --- optimizers and schedules


class OddSgd(torch.optim.SGD):
    """Keeps for each parameter what no checkpoint can hold."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["last"] = np.float32(0)
        return super().step(closure)


class WrappedSgd(torch.optim.SGD):
    """Saves itself beside something else, as Lookahead does with the optimizer that it wraps."""

    def state_dict(self) -> dict[str, Any]:
        return {"slow": [], "base": super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["base"])


@pytest.mark.parametrize("optimizer", ["OddSgd", "WrappedSgd"])
def test_what_an_optimizer_keeps_and_cannot_be_saved_costs_the_checkpoint_alone(
    optimizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"checkpoint": {"every": 4}, **own("optimizer", optimizer, lr=0.05, momentum=0.9, weight_decay=5e-4)}
    run = run_processes(tiny_config("fr", 2, "ipc", **changes), tmp_path / "run")
    assert_same(run, run_serial(tiny_config("fr", 2), tmp_path / "plain"))
    assert capsys.readouterr().err.count("\n") == 1
    assert not whole_folders(tmp_path / "run" / "checkpoints")


def matrices_alone(params: Any, lr: float) -> torch.optim.Optimizer:
    """Vectors, such as biases and batch norm's weights, do not learn."""
    return torch.optim.Adam([p for p in params if p.dim() > 1], lr=lr)


def test_an_optimizer_may_leave_parameters_out(tmp_path: Path) -> None:
    """It is tried beforehand, and its memory predicted, on parameters like those of a network."""
    config = tiny_config("fr", 2, **own("optimizer", "matrices_alone", lr=0.01))
    check_plan(config)
    run_training(config, tmp_path / "run")
    memory = [record for record in read_records(tmp_path / "run") if record["kind"] == "memory"]
    assert all(record["optimizer"] == record["predicted_optimizer"] > 0 for record in memory)
    biases = [value for name, value in read_weights(tmp_path / "run").items() if name.endswith("norm.bias")]
    assert biases and not any(bias.any() for bias in biases)


class NoOptimizer:
    def __init__(self, params: Any, lr: float) -> None:
        self.param_groups = [{"params": list(params), "lr": lr}]

    def step(self) -> None:
        pass


class OddSchedule:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def factor(self, t: int, steps_per_epoch: int, epochs: float) -> Any:
        return {"none": None, "tensor": torch.tensor(0.5), "numpy": np.float32(0.5)}[self.kind]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (own("optimizer", "NoOptimizer", lr=0.1), "must make a torch.optim.Optimizer, not NoOptimizer"),
        (own("schedule", "OddSchedule", kind="none"), r"factor\(...\) must return a number, not NoneType"),
        (own("schedule", "OddSchedule", kind="tensor"), r"factor\(...\) must return a number, not Tensor"),
    ],
)
def test_an_optimizer_or_schedule_that_cannot_be_is_one_line(changes: dict[str, Any], message: str) -> None:
    assert_refused(message, tiny_config("bp", 1, **changes))


class TypedSchedule(OddSchedule):
    def __init__(self, kind: str = "numpy", rate: float = 1.0) -> None:
        super().__init__(kind)


def half_typed(rate: Nowhere = 1.0, steps: int = 1) -> None:  # type: ignore[name-defined] # noqa: F821
    """Its annotations cannot be read."""


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "builtins.dict"}, "builtins.dict: does not tell its arguments; wrap it in a function"),
        ({"_target_": f"{HERE}.TypedSchedule", "rate": "fast"}, "schedule.rate=fast: must be a number"),
        ({"_target_": f"{HERE}.TypedSchedule", "kind": 3}, "schedule.kind=3: must be text"),
        ({"_target_": f"{HERE}.TypedSchedule", "rate": 2}, None),  # an integer is a number
        ({"_target_": f"{HERE}.half_typed", "steps": "many"}, None),
    ],
)
def test_settings_are_compared_with_what_a_signature_declares(node: dict[str, Any], message: str | None) -> None:
    with contextlib.nullcontext() if message is None else pytest.raises(ConfigError, match=re.escape(message)):
        check_callable("schedule", node, ())


def test_an_optimizer_that_takes_no_dense_gradient_is_refused_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer: torch.optim.SparseAdam: RuntimeError: .*dense gradients"):
        check_optimizer({"_target_": "torch.optim.SparseAdam"})


def test_a_schedule_may_count_in_numpy(tmp_path: Path) -> None:
    run = run_training(tiny_config("bp", 1, **own("schedule", "OddSchedule", kind="numpy")), tmp_path / "run")
    assert run["steps"] == 10
