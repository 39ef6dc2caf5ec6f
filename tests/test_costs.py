"""What blocks and modules cost: by arithmetic, the same everywhere; by a clock, cached; under each method's policy."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from harness import tiny_config
from torch import nn

from fr_bench.components import bind
from fr_bench.data import SampleSpec
from fr_bench.errors import ConfigError
from fr_bench.methods.bp import Backpropagation
from fr_bench.methods.ddg import DecoupledDelayedGradients
from fr_bench.methods.dni import DecoupledNeuralInterfaces
from fr_bench.methods.fr import FeaturesReplay
from fr_bench.planning.balance import Balance
from fr_bench.planning.block_memory import BlockMemory
from fr_bench.planning.costs import (
    BlockCost,
    ModuleCosts,
    NetworkCosts,
    OperationMeter,
    advice_on,
    module_cost,
    network_costs,
)
from fr_bench.planning.measured_costs import MeasuringTask, measured_costs
from fr_bench.planning.memory_model import MemoryModel
from fr_bench.planning.partition import balanced_cuts, module_slices
from fr_bench.planning.plan import Plan, make_plan
from fr_bench.planning.tracing import batch_on_meta, blocks_on_meta

RESNET164 = {"_target_": "fr_bench.models.preactivation.resnet", "name": "resnet164", "depth": 164}
DEEP = {"_target_": "tiny_models.residual", "name": "tiny", "depth": 10}
UNIFORM = NetworkCosts([BlockCost(play=1.0, forward=1.0, backward=2.0)] * 52, [0.0] * 52)


def on_meta(blocks: Any, *shape: int, companion_of: Any = lambda h: None) -> NetworkCosts:
    with torch.device("meta"):
        built = blocks()
    return network_costs(built, torch.empty(shape, device="meta"), OperationMeter(), companion_of)


def tiny(width: int = 8) -> Any:
    return lambda: tiny_models.residual((3, 8, 8), 4, width=width)


# --- the cost of a block


def test_a_wider_block_a_larger_image_and_a_larger_batch_cost_more() -> None:
    [base, wide, large, many] = (
        on_meta(tiny(width), batch, 3, size, size).blocks[1].forward
        for width, batch, size in [(8, 8, 8), (16, 8, 8), (8, 8, 16), (8, 16, 8)]
    )
    assert base < min(wide, large, many)
    assert large == pytest.approx(4 * base, rel=0.05)  # all but what goes to the weights


def test_a_convolution_pays_for_its_operations_and_its_bytes() -> None:
    from fr_bench.planning.costs import BYTES_PER_S, FLOPS_PER_S

    [cost] = on_meta(lambda: [("conv", nn.Conv2d(3, 8, 3, padding=1, bias=False))], 2, 3, 8, 8).blocks
    operations, num_bytes = 2 * 2 * 8 * 8 * 8 * 3 * 9, 4 * (2 * 3 * 8 * 8 + 8 * 3 * 9 + 2 * 8 * 8 * 8)
    assert cost.play == cost.forward == pytest.approx(operations / FLOPS_PER_S + num_bytes / BYTES_PER_S)


def test_the_first_block_has_no_gradient_to_send_down() -> None:
    blocks = lambda: [(str(i), nn.Conv2d(8, 8, 3, padding=1)) for i in range(3)]  # noqa: E731
    first, second, third = on_meta(blocks, 4, 8, 16, 16).blocks
    assert first.forward == second.forward and first.backward < second.backward == third.backward


def test_what_lies_below_the_first_parameter_has_no_backward() -> None:
    costs = on_meta(lambda: [("flat", nn.Flatten()), ("linear", nn.Linear(48, 4))], 2, 3, 4, 4)
    assert costs.blocks[0].backward == 0 < costs.blocks[1].backward


def test_blocks_that_differ_in_a_plain_attribute_are_not_taken_for_the_same() -> None:
    class Repeats(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.conv, self.times = nn.Conv2d(4, 4, 1), times

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(self.times):
                x = self.conv(x)
            return x

    costs = on_meta(lambda: [("a", Repeats(1)), ("b", Repeats(1)), ("c", Repeats(3))], 2, 4, 8, 8)
    assert costs.blocks[0].forward == costs.blocks[1].forward == pytest.approx(costs.blocks[2].forward / 3)


def test_a_block_may_change_its_input_in_place() -> None:
    assert len(on_meta(lambda: tiny_models.in_place((3, 8, 8), 4), 2, 3, 8, 8).blocks) == 5


def test_blocks_that_do_not_fit_together_are_named() -> None:
    model = {"_target_": "tiny_models.residual", "name": "tiny", "width": 7}
    make_plan(tiny_config("fr", 2, partition="auto", model=model))
    blocks = lambda: [("one", nn.Conv2d(3, 8, 1)), ("two", nn.Conv2d(4, 8, 1))]  # noqa: E731
    with pytest.raises(ConfigError, match=r"model: block 'two' cannot run on input \(2, 8, 4, 4\)"):
        on_meta(blocks, 2, 3, 4, 4)


def test_an_optimizer_step_is_counted_where_it_is_asked_for_and_moves_nothing() -> None:
    torch.manual_seed(0)
    blocks = [("linear", nn.Linear(3, 5)), ("relu", nn.ReLU())]
    before = {name: tensor.clone() for name, tensor in blocks[0][1].state_dict().items()}

    def costs(optimizer_of: Any) -> NetworkCosts:
        return network_costs(blocks, torch.ones(2, 3), OperationMeter(), lambda h: None, optimizer_of=optimizer_of)

    stepped = costs(lambda trained: torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.1))
    assert stepped.blocks[0].step > 0 == stepped.blocks[1].step
    assert [replace(block, step=0.0) for block in stepped.blocks] == costs(None).blocks
    assert all(torch.equal(tensor, before[name]) for name, tensor in blocks[0][1].state_dict().items())


# --- the cost of a module


def test_each_method_pays_for_the_passes_that_it_makes() -> None:
    block = [BlockCost(play=1.0, forward=10.0, backward=100.0)]
    busy = {
        (policy.words(), k): module_cost(policy, k, 2, block)
        for policy in (
            FeaturesReplay.policy(),
            DecoupledDelayedGradients.policy(),
            DecoupledNeuralInterfaces.policy(),
            Backpropagation.policy(),
            Backpropagation.policy(checkpoint_activations=True),
        )
        for k in (1, 2)
    }
    assert list(busy.values()) == [111, 110, 110, 110, 110, 110, 110, 110, 111, 111]


@pytest.mark.parametrize(("k", "cuts"), [(2, [22]), (4, [12, 24, 36])])
def test_module_k_of_fr_gets_four_thirds_of_the_others_blocks(k: int, cuts: list[int]) -> None:
    """It does not replay: with a backward of two forwards, 3 forwards a block instead of 4."""
    cost = ModuleCosts(UNIFORM, FeaturesReplay.policy(), k, [True] * 52)
    assert balanced_cuts(cost, 52, k) == cuts
    assert balanced_cuts(ModuleCosts(UNIFORM, Backpropagation.policy(), 4, [True] * 52), 52, 4) == [13, 26, 39]


def test_dni_pays_for_the_synthesizer_at_the_cut_below_the_top_alone() -> None:
    costs = NetworkCosts([BlockCost(0.0, 1.0, 2.0)] * 3, [30.0, 10.0, 50.0])
    cost = ModuleCosts(costs, DecoupledNeuralInterfaces.policy(), 2, [True] * 3)
    assert (cost(0, 1, 1), cost(0, 2, 1), cost(1, 3, 2), cost(2, 3, 2)) == (33, 16, 6, 3)
    assert balanced_cuts(cost, 3, 2) == [2]


def test_the_synthesizer_of_the_config_is_what_dni_pays_for() -> None:
    synthesizer = DecoupledNeuralInterfaces.companion
    small, large = (
        on_meta(
            tiny(), 8, 3, 8, 8,
            companion_of=lambda h, n=n: synthesizer(h.shape, 4, num_hidden=2, hidden_channels=n).to("meta"),
        )
        for n in (8, 64)
    )  # fmt: skip
    assert small.blocks == large.blocks
    assert 0 < small.companions[1] < large.companions[1] / 8


def test_the_synthesizer_that_is_costed_is_by_default_the_one_that_is_trained() -> None:
    defaults = [
        {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
        for function in (DecoupledNeuralInterfaces.__init__, DecoupledNeuralInterfaces.companion)
    ]
    sizes = ("conditional", "num_hidden", "hidden_channels", "kernel_size")
    assert [defaults[0][size] for size in sizes] == [defaults[1][size] for size in sizes]


# --- the cuts of a run


def test_the_cuts_are_the_same_on_repeated_calls_and_for_any_number_of_threads() -> None:
    changes: dict[str, Any] = {"partition": "auto", "model": RESNET164}
    plans = [make_plan(tiny_config("fr", 4, threads=threads, **changes)) for threads in (1, 1, 2)]
    assert len({str((plan.cuts, plan.expected_share)) for plan in plans}) == 1


@pytest.mark.parametrize(
    ("method", "k", "cuts"),
    [("fr", 4, [10, 19, 31]), ("ddg", 4, [11, 20, 35]), ("bp", 4, [11, 20, 35]), ("fr", 2, [17])],
)
def test_the_cuts_of_the_papers_network(method: str, k: int, cuts: list[int]) -> None:
    """ResNet164, batches of 128. They change the numbers of FR and DDG: a new version must not move them unnoticed."""
    dataset = {"height": 32, "width": 32, "num_train": 128, "num_classes": 10}
    changes: dict[str, Any] = {"partition": "auto", "model": RESNET164, "batch_size": 128, "dataset": dataset}
    plan = make_plan(tiny_config(method, k, **changes))
    assert plan.cuts == cuts
    assert max(plan.expected_share) == 1.0 and min(plan.expected_share) > 0.89


def test_equal_cuts_have_an_expected_share_too() -> None:
    plan = make_plan(tiny_config("fr", 3))
    assert len(plan.expected_share) == 3 and max(plan.expected_share) == 1.0
    assert plan.description()["expected_share"] == plan.expected_share
    assert make_plan(tiny_config("fr", 1, partition="auto")).expected_share == [1.0]
    of_one = make_plan(tiny_config("fr", 2, "gloo")).expected_share
    assert make_plan(tiny_config("fr", 2, "gloo", replicas=2)).expected_share == of_one * 2


# --- the memory limit


@pytest.mark.parametrize(
    ("model", "method", "settings"),
    [
        *(("preactivation", method, {}) for method in ("bp", "fr", "ddg", "dni", "cdni", "dgl")),
        *(("basic", method, {}) for method in ("fr", "ddg")),
        *(("torchvision_resnet", method, {}) for method in ("bp", "fr", "cdni", "dgl")),
        ("preactivation", "bp", {"checkpoint_activations": True}),
    ],
)
def test_memory_added_up_by_block_is_that_of_the_traced_module(
    method: str, model: str, settings: dict[str, Any]
) -> None:
    depth = {"preactivation": 20, "basic": 20, "torchvision_resnet": 18}[model]
    node = {"_target_": f"fr_bench.models.{model}.resnet", "name": model, "depth": depth}
    config = tiny_config(method, 3, model=node, partition=[2, 5], method=settings)
    plan = make_plan(config)
    sample = SampleSpec((3, 8, 8), 4)
    blocks, x = blocks_on_meta(config, sample), batch_on_meta(config, sample)
    method_node, optimizer = bind(config["method"]), bind(config["optimizer"])
    memory_model = MemoryModel(3, method_node.func, method_node.keywords, optimizer, "serial", 4)  # type: ignore[attr-defined]
    memory = BlockMemory(memory_model, blocks, x, "cpu")
    for k, part in enumerate(module_slices(plan.cuts, len(blocks)), start=1):
        predicted = plan.predicted_memory[k - 1]
        assert memory(part.start, part.stop, k) == pytest.approx(sum(predicted.values()), rel=0.01)
        state_bytes = memory(part.start, part.stop, k) - memory(part.start, part.stop, k, frozen=True)
        assert state_bytes == predicted["optimizer"] > 0


def test_a_device_needs_the_memory_of_all_its_modules_and_each_machine_has_its_own() -> None:
    """Four modules of a GiB on two GPUs a machine: two on each of one machine, one on each of two."""
    config, devices = tiny_config("fr", 4, memory_limit_gb=1.5), ["cuda:0", "cuda:1"] * 2
    balance = Balance(config, FeaturesReplay, {}, [], torch.empty(0), SampleSpec((), 4), devices, 1, "gloo")
    with pytest.raises(ConfigError, match="the device of module 1 needs 2;"):
        balance.check_limit([{"parameters": 2**30}] * 4)
    replace(balance, num_per_machine=2).check_limit([{"parameters": 2**30}] * 4)


def needed_gb(plan: Plan) -> float:
    """All modules are on one device: each has an equal part of it."""
    return plan.size * max(sum(found.values()) for found in plan.predicted_memory) / 2**30


def test_the_cuts_move_until_the_limit_is_kept() -> None:
    free = make_plan(tiny_config("ddg", 3, model=DEEP, partition="auto"))
    limit_gb = needed_gb(free) * 0.9
    kept = make_plan(tiny_config("ddg", 3, model=DEEP, partition="auto", memory_limit_gb=limit_gb))
    assert kept.cuts != free.cuts and needed_gb(kept) <= limit_gb
    with pytest.raises(ConfigError, match=r"with partition=.* the device of module \d needs"):  # the largest does
        make_plan(tiny_config("ddg", 3, model=DEEP, partition=free.cuts, memory_limit_gb=limit_gb))
    with pytest.raises(ConfigError, match=r"memory_limit_gb=1e-06: no cuts into k=3 modules"):
        make_plan(tiny_config("ddg", 3, model=DEEP, partition="auto", memory_limit_gb=1e-6))
    for partition in ("equal", [1, 2]):
        with pytest.raises(
            ConfigError, match=r"memory_limit_gb=1e-06: with partition=.* the device of module \d needs"
        ):
            make_plan(tiny_config("ddg", 3, model=DEEP, partition=partition, memory_limit_gb=1e-6))


@pytest.mark.parametrize("changes", [{"freeze": [1, 2, 3], "batch_size": 4}, {"replicas": 2}])
def test_what_frozen_modules_and_replicas_do_not_need_is_no_reason_to_cut_otherwise(changes: dict[str, Any]) -> None:
    config = tiny_config("ddg", 3, "gloo", model=DEEP, partition="auto", **changes)
    free = make_plan(config)
    assert make_plan(config | {"memory_limit_gb": 1.01 * needed_gb(free)}).cuts == free.cuts


@pytest.mark.parametrize(("method", "k", "transport"), [("bp", 1, "serial"), ("ddp", 2, "gloo")])
def test_where_nothing_is_cut_no_other_cuts_are_advised(method: str, k: int, transport: str) -> None:
    message = r"^memory_limit_gb=1e-06: the device of module 1 needs [\d.]+; a smaller batch_size needs less$"
    with pytest.raises(ConfigError, match=message):
        make_plan(tiny_config(method, k, partition="auto", transport=transport, memory_limit_gb=1e-6))


# --- measured costs


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fr-bench" / "measured_costs"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[MeasuringTask]:
    """Notes what would be measured, and measures nothing."""
    tasks: list[MeasuringTask] = []

    def measure(task: MeasuringTask) -> NetworkCosts:
        tasks.append(task)
        return NetworkCosts([BlockCost(1.0, 1.0, 2.0)] * 6, [0.0] * 6)

    monkeypatch.setattr("fr_bench.planning.measured_costs._measure_in_child", measure)
    return tasks


@pytest.mark.parametrize("method", ["fr", "cdni"])
def test_measured_times_are_positive_and_kept_for_the_next_run(
    method: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(method, 3, partition="measured")
    plan = make_plan(config)
    assert len(plan.cuts) == 2 and 0 < plan.cuts[0] < plan.cuts[1] < 6
    assert "timing the blocks of tiny on cpu" in capsys.readouterr().err
    [path] = cache.iterdir()
    times = json.loads(path.read_text())
    assert all(block[part] > 0 for block in times["blocks"] for part in ("play", "forward", "backward", "step"))
    assert times["load"] > 0 and times["copy_s_per_byte"] > 0
    assert [seconds > 0 for seconds in times["companions"]] == [method != "fr"] * 6
    assert abs(times["measured_at"] - path.stat().st_mtime) < 60
    again = make_plan(config)
    assert (again.cuts, again.expected_share) == (plan.cuts, plan.expected_share)
    assert "timing" not in capsys.readouterr().err


def test_nothing_is_measured_without_need(cache: Path, measured: list[MeasuringTask]) -> None:
    """Where nothing is cut, and on a login node."""
    make_plan(tiny_config("bp", 1, partition="measured"))
    elsewhere = make_plan(tiny_config("fr", 3, partition="measured"), runs_here=False)
    assert measured == [] and elsewhere.cuts == make_plan(tiny_config("fr", 3, partition="auto")).cuts


def test_a_cache_that_is_broken_or_of_something_else_is_measured_again(
    cache: Path, measured: list[MeasuringTask]
) -> None:
    config = tiny_config("fr", 2, partition="measured")
    make_plan(config)
    [path] = cache.iterdir()
    content = path.read_text()
    times = json.loads(content)
    for broken in (content[: len(content) // 2], "[]", "", json.dumps(times | {"key": {}}), json.dumps({"key": 1})):
        path.write_text(broken)
        make_plan(config)
        assert path.read_text() == content
    assert len(measured) == 6
    assert list(cache.iterdir()) == [path]


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[MeasuringTask]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert make_plan(tiny_config("fr", 2, partition="measured")).cuts == [2]


def test_other_conditions_are_measured_anew_and_another_seed_method_or_k_is_not(
    cache: Path, measured: list[MeasuringTask]
) -> None:
    same: list[dict[str, Any]] = [{}, {"seed": 4}, {"method": "ddg"}, {"k": 3}, {"optimizer": {"lr": 0.5}}]
    other: list[dict[str, Any]] = [
        {"batch_size": 4}, {"precision": "fp64"}, {"threads": 2}, {"channels_last": False}, {"method": "dni"},
        {"model": {"width": 16}}, {"optimizer": {"momentum": 0.0}}, {"dataset": {"augmentation": {}}},
    ]  # fmt: skip
    for changes in same + other:
        settings = {"method": "fr", "k": 2, "partition": "measured"} | changes
        make_plan(tiny_config(settings.pop("method"), settings.pop("k"), **settings))
    assert len(measured) == len(list(cache.iterdir())) == 1 + len(other)


def test_a_model_that_was_edited_is_measured_anew(
    cache: Path, measured: list[MeasuringTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "edited_model.py"
    config = tiny_config("fr", 2, partition="measured", model={"_target_": "edited_model.build", "name": "mine"})
    for text in ("import tiny_models", "import tiny_models", "import tiny_models  # another one"):
        source.write_text(f"{text}\n\n\nbuild = tiny_models.residual\n")
        make_plan(config)
    assert len(measured) == 2


def test_so_are_all_under_another_version_of_torch_and_on_a_gpu_under_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")

    def key(device: str, threads: int) -> dict[str, Any]:
        return MeasuringTask.of(tiny_config("fr", 2), SampleSpec((3, 8, 8), 4), device, threads, 6, False).key()

    assert key("cpu", 1) != key("cpu", 2) and key("cuda:0", 1) == key("cuda:0", 2)
    before = key("cpu", 1)
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert key("cpu", 1) != before


def test_a_model_with_another_number_of_blocks_is_too(cache: Path, measured: list[MeasuringTask]) -> None:
    """Whatever made it another: what was measured is of no use."""
    for num_blocks in (6, 7):
        config = tiny_config("fr", 2)
        measured_costs(MeasuringTask.of(config, SampleSpec((3, 8, 8), 4), "cpu", 1, num_blocks, False), "a test")
    assert len(measured) == 2


def test_a_measurement_that_fails_is_a_mistake_with_its_cause(cache: Path) -> None:
    model = {"_target_": "tiny_models.faulty", "name": "faulty", "at": 9}
    with pytest.raises(ConfigError, match=r"partition=measured: .*the bug in block 'faulty'.*partition=auto"):
        make_plan(tiny_config("fr", 2, partition="measured", model=model))
    assert not cache.exists()


def test_a_measured_cost_is_the_median_of_its_samples_and_the_companions_is_both_its_passes() -> None:
    class Scripted:  # a meter: the first sample pays for what is done once
        def __init__(self):
            self.known, self.seconds = {}, iter([9.0, 9.0, 9.0, 1.0, 2.0, 4.0, 1.0, 2.0, 4.0] * 3)

        def measure(self, action):
            return next(self.seconds), action()

        def is_enough(self, samples):
            return len(samples) == 3

    class Beside(nn.Linear):
        def forward(self, h, labels):
            return super().forward(h)

    def companion_of(h):
        return Beside(3, 3)

    found = network_costs([("one", nn.Linear(3, 3))], torch.zeros(2, 3), Scripted(), companion_of)
    (block,) = found.blocks
    assert (block.play, block.forward, block.backward) == (1.0, 2.0, 4.0)
    assert found.companions == [6.0]


def test_a_backward_that_is_not_known_for_shapes_is_two_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    (cost,) = on_meta(lambda: [("linear", nn.Linear(4, 4))], 2, 4).blocks
    assert cost.backward == 2 * cost.forward > 0


def test_a_module_with_nothing_to_train_costs_more_than_any_other() -> None:
    costs = NetworkCosts([BlockCost(1.0, 1.0, 2.0)] * 4, [0.0] * 4)
    cost = ModuleCosts(costs, Backpropagation.policy(), 2, [False, False, True, True])
    assert cost(0, 2, 1) == float("inf") and cost(0, 3, 1) < float("inf")
    assert balanced_cuts(cost, 4, 2) == [3]


def test_a_batch_of_one_is_advised_to_be_larger() -> None:
    assert "try a larger batch_size" in advice_on(torch.zeros(1, 3))
    assert advice_on(torch.zeros(2, 3)) == ""
    assert "has to embed" in advice_on(torch.zeros(2, 3, dtype=torch.int64))
