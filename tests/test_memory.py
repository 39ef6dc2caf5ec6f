"""The memory account: what is measured is what was predicted, each storage once, and measuring changes nothing."""

from __future__ import annotations

import mmap
import resource
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import METHODS, assert_same, run_processes, run_serial, tiny_config
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fr_bench.errors import ConfigError
from fr_bench.measuring.categories import CATEGORIES, OTHER
from fr_bench.measuring.saved_tensors import PeakOfSaved, SavedTensors, optimizer_state_bytes, tensor_bytes
from fr_bench.methods.fr import FeaturesReplay
from fr_bench.modules.loss import loss_sum
from fr_bench.modules.network import Network
from fr_bench.modules.passes import Pass
from fr_bench.planning.batch_norm import BatchNormByShape
from fr_bench.planning.plan import make_plan
from fr_bench.training import evaluation
from fr_bench.training.memory import Account, Peak, PeakMemory, peak_resident_bytes, unexplained
from fr_bench.workers.worker import build_modules

RESNET20 = {"_target_": "fr_bench.models.preactivation.resnet", "name": "resnet20", "depth": 20}


def last_accounts(result: Any, k: int) -> list[dict[str, Any]]:
    return sorted(result.of("memory"), key=lambda record: (record["step"], record["module"]))[-k:]


def checkpointed(k: int, **changes: Any) -> dict[str, Any]:
    config = tiny_config("bp", k, **changes)
    config["method"]["checkpoint_activations"] = True
    return config


class Hoarder(FeaturesReplay):
    """Keeps something of a kind of its own."""

    def kept_tensors(self) -> dict[str, list[torch.Tensor]]:
        return super().kept_tensors() | {"sums": [torch.zeros(3)]}


class Larger(FeaturesReplay):
    """Keeps a thousand bytes beside FR's history."""

    @classmethod
    def predict_memory(cls, *_: Any, **hyper_parameters: Any) -> dict[str, int]:
        return {"history": 1000}


def test_what_a_method_predicts_is_beside_what_its_policy_tells() -> None:
    plans = [
        make_plan(tiny_config("fr", 2)),
        make_plan(tiny_config("fr", 2, method={"_target_": "test_memory.Larger"})),
    ]
    ours, theirs = ([found["history"] for found in plan.predicted_memory] for plan in plans)
    assert ours[0] > 0 and theirs == [ours[0] + 1000, ours[1]]


def test_what_is_kept_of_an_unknown_kind_is_refused_not_left_out(tmp_path: Path) -> None:
    config = tiny_config("fr", 2)
    config["method"]["_target_"] = "test_memory.Hoarder"
    with pytest.raises(ConfigError, match=r"Hoarder.kept_tensors: 'sums' is no category of memory; known are history"):
        run_serial(config, tmp_path)


@pytest.mark.parametrize(
    ("method", "k"),
    [
        *[(method, 4) for method in [*METHODS, "checkpointed"]],
        *[("bp", 1), ("checkpointed", 1)],  # with one module the others have no more than BP
        *[("fr", 2), ("ddg", 2)],  # who keep less, the fewer modules are above
    ],
)
def test_prediction_and_measurement_agree(method: str, k: int, tmp_path: Path) -> None:
    """Exactly in all categories but activations, which may differ by 2 %."""
    changes = {"model": RESNET20, "epochs": 1}
    config = checkpointed(k, **changes) if method == "checkpointed" else tiny_config(method, k, **changes)
    accounts = last_accounts(run_serial(config, tmp_path), k)
    assert [account["module"] for account in accounts] == list(range(1, k + 1))
    for account in accounts:
        for category in CATEGORIES:
            tolerance = 0.02 if category in ("activations", "synthesizer") else 0
            assert account[category] == pytest.approx(account[f"predicted_{category}"], rel=tolerance), category
        assert account["predicted"] == sum(account[f"predicted_{category}"] for category in CATEGORIES)


def test_under_bf16_what_is_recomputed_is_counted_as_it_is_computed(tmp_path: Path) -> None:
    recomputed = {}
    for precision in ("fp32", "bf16"):
        for k in (1, 2):
            run = run_serial(
                checkpointed(k, model=RESNET20, precision=precision, epochs=1), tmp_path / f"{precision}-{k}"
            )
            recomputed[precision, k] = sum(account["activations"] for account in last_accounts(run, k))
    assert 0.4 < recomputed["bf16", 1] / recomputed["fp32", 1] < 0.8
    assert 0.4 < recomputed["bf16", 2] / recomputed["fp32", 2] < 0.8


@pytest.mark.parametrize(
    ("method", "k", "channels", "channels_last"),
    [
        *[(method, k, 3, True) for method, k in [("bp", 1), ("bp", 2), ("fr", 2), ("ddg", 3), ("checkpointed", 2)]],
        *[("bp", 1, 3, False), ("bp", 1, 1, False), ("bp", 2, 1, True)],
        *[("fr", 2, 3, False), ("fr", 2, 1, True), ("ddg", 3, 1, True), ("checkpointed", 2, 3, False)],
    ],
)
def test_what_flattening_images_copies_is_predicted_to_the_byte(
    method: str, k: int, channels: int, channels_last: bool, tmp_path: Path
) -> None:
    """The first block flattens: a view of contiguous images, a copy of those of several channels in channels_last."""
    model = {"_target_": "fr_bench.models.mlp.mlp", "name": "mlp", "width": 16}
    changes = {"model": model, "dataset": {"channels": channels}, "channels_last": channels_last, "epochs": 1}
    config = checkpointed(k, **changes) if method == "checkpointed" else tiny_config(method, k, **changes)
    for account in last_accounts(run_serial(config, tmp_path), k):
        measured = {category: account[category] for category in CATEGORIES}
        assert measured == {category: account[f"predicted_{category}"] for category in CATEGORIES}


@pytest.mark.parametrize(
    ("family", "norm", "method", "channels_last"),
    [
        ("basic", "batch", "fr", True),
        ("basic", "batch", "checkpointed", False),
        ("basic", "group", "ddg", True),
        ("basic", "group", "fr", False),
        ("basic", "none", "fr", True),
        ("basic", "none", "dni", True),
        ("preactivation", "group", "fr", True),
        ("preactivation", "none", "cdni", True),
        ("basic", "batch", "dgl", True),
        ("preactivation", "none", "dgl", False),
        ("preactivation", "none", "ddg", False),
    ],
)
def test_the_prediction_is_exact_for_every_family_and_norm(
    family: str, norm: str, method: str, channels_last: bool, tmp_path: Path
) -> None:
    node = {"_target_": f"fr_bench.models.{family}.resnet", "name": family, "depth": 20, "norm": norm}
    changes = {"model": node, "channels_last": channels_last, "epochs": 1}
    config = checkpointed(3, **changes) if method == "checkpointed" else tiny_config(method, 3, **changes)
    for account in last_accounts(run_serial(config, tmp_path), 3):
        assert {c: account[c] for c in CATEGORIES} == {c: account[f"predicted_{c}"] for c in CATEGORIES}


class Operations(TorchDispatchMode):
    """Notes what is computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(operation)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"track_running_stats": False}])
def test_batch_norm_by_its_shape_alone_is_as_torch_has_it(
    settings: dict[str, bool], form: torch.memory_format, dtype: torch.dtype
) -> None:
    def account(norm: nn.Module, shape: tuple[int, ...]) -> list[Any]:
        saved = SavedTensors()
        x = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
        with saved.listen():
            h = norm(x.contiguous(memory_format=form) if len(shape) == 4 else x)
        return [(each.shape, each.dtype, each.stride()) for each in (h, *saved.tensors)]

    with torch.device("meta"):
        norms = [nn.BatchNorm2d(6, **settings).to(dtype), nn.BatchNorm1d(6, **settings).to(dtype)]
    for norm, shape in zip(norms, [(4, 6, 5, 3), (4, 6)], strict=True):
        expected = account(norm, shape)
        with Operations() as operations, BatchNormByShape():
            assert account(norm, shape) == expected
        by_torch = torch.ops.aten.native_batch_norm.default in operations.seen
        assert by_torch == (dtype == torch.bfloat16)
        norm.eval()
        expected = account(norm, shape)
        with BatchNormByShape():
            assert account(norm, shape) == expected


def test_a_batch_norm_of_another_width_is_refused_as_ever() -> None:
    with torch.device("meta"), pytest.raises(RuntimeError), BatchNormByShape():
        nn.BatchNorm2d(6)(torch.empty(4, 5, 3, 3))


@pytest.mark.parametrize("transport", ["gloo", "ipc"])
@pytest.mark.parametrize("method", ["fr", "dgl"])
def test_between_processes_the_buffers_are_those_predicted(method: str, transport: str, tmp_path: Path) -> None:
    for account in last_accounts(run_processes(tiny_config(method, 3, transport, epochs=1), tmp_path), 3):
        assert account["buffers"] == account["predicted_buffers"]
        # Rings are the senders', and DGL's top sends nothing. Over gloo receivers hold messages, too.
        assert (account["buffers"] > 0) == (method == "fr" or transport == "gloo" or account["module"] < 3)
        assert account["peak"] > 2**20 and account["device"] == "cpu"


def test_under_autocast_nothing_is_predicted_and_all_is_measured(tmp_path: Path) -> None:
    accounts = last_accounts(run_serial(tiny_config("fr", 2, precision="bf16"), tmp_path), 2)
    assert all(account["activations"] > 0 and "predicted" not in account for account in accounts)


def test_a_hand_count_of_fr_and_ddg(tmp_path: Path) -> None:
    """K = 3, batches of 8 images of 3 x 8 x 8 floats, features of 8 x 8 x 8: who keeps how many of them."""
    image_bytes, feature_bytes = 8 * 3 * 8 * 8 * 4, 8 * 8 * 8 * 8 * 4
    fr = last_accounts(run_serial(tiny_config("fr", 3), tmp_path / "fr"), 3)
    assert [account["history"] for account in fr] == [3 * image_bytes, 2 * feature_bytes, 0]
    assert [account["stash"] for account in fr] == [0, 0, 0]
    bp = last_accounts(run_serial(tiny_config("bp", 3), tmp_path / "bp"), 3)
    ddg = last_accounts(run_serial(tiny_config("ddg", 3), tmp_path / "ddg"), 3)
    one_graph = [account["activations"] for account in bp]
    assert [account["activations"] for account in ddg] == [3 * one_graph[0], 2 * one_graph[1], one_graph[2]]
    # A stash holds parameters; batch norm's statistics are no part of it. So with K-k+1 times the gradients' bytes.
    assert [account["stash"] for account in ddg] == [3 * ddg[0]["gradients"], 2 * ddg[1]["gradients"], 0]
    # What FR replays it counts as history and not as activations.
    assert fr[1]["activations"] == bp[1]["activations"] - feature_bytes


def test_momentum_is_the_state_of_sgd_and_a_frozen_module_has_none(tmp_path: Path) -> None:
    accounts = last_accounts(run_serial(tiny_config("bp", 2, freeze=[1]), tmp_path), 2)
    assert accounts[0]["optimizer"] == accounts[0]["predicted_optimizer"] == 0
    assert accounts[1]["optimizer"] == accounts[1]["predicted_optimizer"] == accounts[1]["gradients"] > 0


@pytest.mark.parametrize("method", ["fr", "ddg"])
def test_parameters_that_want_no_gradient_have_none(method: str, tmp_path: Path) -> None:
    """Nor a state, but they are in DDG's copies."""
    model = {"_target_": "tiny_models.partly_frozen", "name": "partly_frozen"}
    config = tiny_config(method, 3, model=model)
    parameters = dict(build_modules(make_plan(config), [2])[0].network.named_parameters())
    trained = sum(4 * p.numel() for p in parameters.values() if p.requires_grad)
    accounts = last_accounts(run_serial(config, tmp_path), 3)
    assert 0 < accounts[1]["gradients"] == trained < sum(4 * p.numel() for p in parameters.values())
    for account in accounts:
        for category in ("gradients", "optimizer", "stash"):
            assert account[category] == account[f"predicted_{category}"], category


def test_the_peak_of_a_process_is_not_what_it_has_now() -> None:
    before = peak_resident_bytes()
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    with mmap.mmap(-1, before - now + 100 * 2**20) as memory:
        for page in range(0, len(memory), resource.getpagesize()):
            memory[page] = 1
    assert peak_resident_bytes() >= before + 50 * 2**20


@pytest.mark.parametrize(("optimizer", "copies", "fixed"), [(torch.optim.SGD, 0, 0), (torch.optim.Adam, 2, 4)])
def test_the_state_of_an_optimizer_is_found_on_a_small_parameter(optimizer: Any, copies: int, fixed: int) -> None:
    parameters = [nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(3))]
    expected = copies * (35 + 3) * 4 + 2 * fixed
    assert optimizer_state_bytes(lambda p: optimizer(p, lr=0.1), parameters) == expected


def test_the_peak_of_what_is_saved_is_that_of_all_kinds_together() -> None:
    peak = PeakOfSaved([])
    peak.hold(first := torch.zeros(10))
    peak.hold(second := torch.zeros(2), "buffers")
    del first
    peak.hold(third := torch.zeros(5), "buffers")
    assert peak.num_bytes == {"activations": 40, "buffers": 8}
    peak.hold(torch.zeros(6))  # 52 bytes with those two
    assert peak.num_bytes == {"activations": 24, "buffers": 28}
    del second, third


def test_what_is_counted_is_let_go_without_a_backward() -> None:
    """An activation function saves its output, whose graph then must not hold itself: nothing would ever free it."""
    saved, x = SavedTensors(), torch.randn(3, 4, requires_grad=True)
    with saved.listen():
        h = torch.relu(x * 2).sigmoid()
    assert tensor_bytes(saved.tensors) >= 2 * 12 * 4
    ends = [weakref.ref(h)]
    del saved, h
    assert [end() for end in ends] == [None]


def test_the_account_of_a_run_leaves_no_graph_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    relu = torch.Tensor.relu

    def watched(x: torch.Tensor) -> torch.Tensor:
        made.append(weakref.ref(h := relu(x)))
        return h

    monkeypatch.setattr(torch.Tensor, "relu", watched)
    for method in ("bp", "fr", "ddg"):
        run_serial(tiny_config(method, 2, epochs=3), tmp_path / method)
    weights = {"method": METHODS["ddg"] | {"weights": "current", "carry_history": False}}
    run_serial(tiny_config("ddg", 3, epochs=3, **weights), tmp_path / "current")
    assert len(made) > 100 and not any(end() is not None for end in made)


def test_a_storage_counts_once_whatever_views_of_it_are_saved() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    saved = SavedTensors()
    with saved.listen():
        (x[:2] * x[2:]).exp()
    result_bytes = 2 * 6 * 4
    assert len(saved.tensors) == 3  # both factors, which are views of x, and the result of exp
    assert tensor_bytes(saved.tensors) == x.numel() * 4 + result_bytes
    assert tensor_bytes(saved.tensors, except_for=[x]) == result_bytes


@pytest.mark.parametrize("k", [1, 3])
def test_checkpointing_changes_no_number_and_keeps_less(k: int, tmp_path: Path) -> None:
    """Batch-norm statistics count a batch once although its blocks run twice, and dropout draws the same again."""
    changes = {"model": {"_target_": "tiny_models.residual", "name": "tiny", "dropout": 0.3, "depth": 8}}
    plain = run_serial(tiny_config("bp", k, **changes), tmp_path / "plain")
    less = run_serial(checkpointed(k, **changes), tmp_path / "checkpointed")
    assert_same(less, plain)
    before, after = last_accounts(plain, k), last_accounts(less, k)
    assert sum(a["activations"] for a in after) < 0.75 * sum(a["activations"] for a in before)


def test_a_process_that_checkpoints_never_has_whole_graphs(tmp_path: Path) -> None:
    """Nor does it in the passes before training: the system, or a GPU, would run out of memory there."""
    images = {"height": 32, "width": 32, "num_train": 64, "num_test": 16}
    changes = {"model": {**RESNET20, "depth": 56}, "dataset": images, "batch_size": 64, "epochs": 1}
    (plain,) = last_accounts(run_processes(tiny_config("bp", 1, **changes), tmp_path / "plain"), 1)
    (less,) = last_accounts(run_processes(checkpointed(1, **changes), tmp_path / "checkpointed"), 1)
    saved = plain["activations"] - less["activations"]
    assert saved > 2**28 and plain["peak"] - less["peak"] > 0.5 * saved


def test_of_the_blocks_that_are_recomputed_one_at_a_time_is_held() -> None:
    """To count them, too: it would be the account that a process needs most memory for."""
    made: list[StorageWeakRef] = []
    num_held: list[int] = []

    class Block(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            num_held.append(sum(not each.expired() for each in made))
            h = super().forward(x).exp()
            made.append(StorageWeakRef(h.untyped_storage()))
            return h * 2

    network = Network([(name, Block(3, 3)) for name in ("one", "two", "three")], seed=0)
    num_bytes = network.block_graph_bytes(torch.ones(4, 3), 0)
    assert num_bytes == [2 * 4 * 3 * 4] * 3  # the input, and what exp returns
    assert num_held == [0, 0, 0]


def test_resnet164_on_cifar_is_as_in_the_literature_predicted_without_running_anything() -> None:
    """B = 128, K = 4, float32, equal cuts: activations, history and stash of FR and DDG over BP's."""

    def total(method: str, k: int = 4, depth: int = 164) -> int:
        changes = {"model": {**RESNET20, "depth": depth}, "batch_size": 128}
        dataset = {"height": 32, "width": 32, "num_train": 128, "num_classes": 10}
        plan = make_plan(tiny_config(method, k, dataset=dataset, **changes))
        return sum(sum(m[c] for c in ("activations", "history", "stash")) for m in plan.predicted_memory)

    bp = total("bp")
    assert 3.0e9 < bp < 3.5e9
    assert 1.0 < total("fr") / bp < 1.07
    assert 2.4 < total("ddg") / bp < 3.1
    assert total("ddg", 1, depth=20) == total("fr", 1, depth=20) == total("bp", 1, depth=20)


def test_what_no_category_explains_is_never_negative() -> None:
    assert unexplained({"parameters": 30, "activations": 60}, peak=100) == 10
    assert unexplained({"parameters": 30, "activations": 90}, peak=100) == 0


@pytest.mark.parametrize("k", [1, 2])
def test_what_no_category_explains_is_told_of_a_module_that_has_its_gpu_process_alone(
    k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak is the process's, of whichever of its modules."""
    take, gpu = Account.take, torch.device("cuda")
    monkeypatch.setattr(Account, "take", lambda self, size, _, peak, alone: take(self, size, gpu, peak, alone))
    accounts = last_accounts(run_serial(tiny_config("fr", k), tmp_path), k)
    assert [OTHER in account for account in accounts] == [k == 1] * k


def test_an_evaluation_builds_no_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []

    def watched(h: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        outputs.append(h)
        return loss_sum(h, targets)

    monkeypatch.setattr(evaluation, "loss_sum", watched)
    run_serial(tiny_config("fr", 2), tmp_path)
    assert outputs and not any(h.requires_grad for h in outputs)


def test_the_peak_on_a_gpu_is_that_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a counter in place of the GPU's."""
    allocated = [0]
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"active_bytes.all.peak": max(allocated)})
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2 * max(allocated))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: allocated.clear() or allocated.append(1))
    segments = [
        {"device": 0, "segment_pool_id": (0, 0), "total_size": 5000, "active_size": 100},
        {"device": 0, "segment_pool_id": (0, 1), "total_size": 8, "active_size": 3},
        {"device": 1, "segment_pool_id": (0, 2), "total_size": 8000, "active_size": 0},
    ]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    peak = PeakMemory(torch.device("cuda:0"), has_graphs=True)
    allocated.append(900)  # a rehearsal
    for trained, between in ((40, 700), (30, 800)):
        peak.begin()
        allocated.append(trained)
        peak.end()
        allocated.append(between)  # a diagnostic, an evaluation
    assert peak.take() == Peak(40 + 5, 80)  # 5 of them inside graphs
    peak.begin()
    allocated.append(20)
    peak.end()
    assert peak.take().as_record() == {"peak": 25, "reserved": 40}
    allocated.append(60)
    assert peak.take() == Peak(60 + 5, 120)  # nothing was trained: what there was until then
    for of_a_process in ({"peak": 90, "reserved": 70}, {"peak": 50, "reserved": 95}):  # before its modules were in one
        peak.load_state_dict(of_a_process)
    assert peak.take() == Peak(90, 95)


def test_the_peak_on_the_cpu_is_that_of_the_process() -> None:
    peak = PeakMemory(torch.device("cpu"))
    peak.begin()
    peak.end()
    assert peak.take().reserved is None
    assert peak.take().num_bytes == pytest.approx(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, rel=0.01)


def test_no_clock_runs_while_the_peak_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []

    def end(self: PeakMemory) -> None:
        ends.append(self)
        time.sleep(0.5)

    monkeypatch.setattr(PeakMemory, "end", end)
    run = run_serial(tiny_config("bp", 1), tmp_path)
    assert len(ends) == 2  # of 5 iterations each
    assert len(times := run.of("time")) > 0 and all(record["wall_s"] < 0.1 for record in times)


def test_an_output_that_was_handed_over_is_let_go_while_its_graph_waits() -> None:
    """A graph in flight keeps what autograd saved, not the features that it sent away."""
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    live = Pass(0, x, layer(x) + 1)
    output = weakref.ref(live.h)
    h = live.hand_over()
    assert torch.equal(h, layer(x) + 1) and output() is None and not h.requires_grad
    d = torch.randn(2, 3)
    torch.autograd.backward(live.end, d)
    assert torch.equal(layer.weight.grad, d.T @ x)
