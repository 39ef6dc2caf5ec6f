"""cuda_graphs=true: what is captured, when it is used, and what is refused. On a GPU: gpu/test_gpu_graphs.py.

Here a recording is repeated by doing its work again, into the results of the first time: what surrounds the graphs is
the real thing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import METHODS, Result, assert_same, assert_same_run, run_serial, tiny_config, train_here
from test_tokens import TOKENS, on
from torch import Tensor

from fr_bench.bench.time_prediction import predict_time
from fr_bench.cli import main
from fr_bench.errors import ConfigError
from fr_bench.modules import passes as passes_file
from fr_bench.modules.graphs import PairGraph, Work
from fr_bench.planning.plan import make_plan
from fr_bench.workers.worker import own_stream

counts = {"recorded": 0, "repeated": 0}


class RepeatedWork:
    """A recording that does its work again."""

    def record(self, work: Work) -> list[Tensor]:
        self._work = work
        self._results = list(work())
        counts["recorded"] += 1
        return self._results

    def repeat(self) -> None:
        counts["repeated"] += 1
        new: Sequence[Tensor] = self._work()
        with torch.no_grad():
            for result, value in zip(self._results, new, strict=True):
                result.copy_(value)


class RepeatingRecorder:
    def __init__(self, device: torch.device) -> None:
        pass

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def new_pool(self) -> Any:
        return object()

    def new_recording(self, pool: Any) -> RepeatedWork:
        return RepeatedWork()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run on the CPU may ask for graphs."""
    monkeypatch.setattr(passes_file, "CudaRecorder", RepeatingRecorder)
    monkeypatch.setattr("fr_bench.planning.plan.check_cuda_graphs", lambda *_: None)
    counts.update(recorded=0, repeated=0)
    yield


def same_with_graphs(config: dict[str, Any], folder: Path) -> Result:
    """The run of ``config`` without graphs, which the one with them must equal."""
    plain = run_serial(config, folder / "plain")
    assert counts["recorded"] == 0
    assert_same(run_serial(config | {"cuda_graphs": True}, folder / "graphed"), plain)
    assert counts["repeated"] > 0
    return plain


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(("method", "k"), [("bp", 1), *((method, 4) for method in METHODS)])
def test_every_bit_is_that_without(method: str, k: int, tmp_path: Path) -> None:
    """Batch norm's statistics and the counters of its batches among them. With one module all methods are BP."""
    same_with_graphs(tiny_config(method, k), tmp_path)
    # Every pass of training is a launch, and so is its backward; FR's lower modules play once more.
    num_steps = [10 - (k - j if method in ("fr", "ddg") else 0) for j in range(1, k + 1)]
    num_plays = 10 * (k - 1) if method == "fr" else 0 if method != "ddg" else sum(10 - steps for steps in num_steps)
    assert counts["repeated"] == 2 * sum(num_steps) + num_plays


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("method", ["bp", "fr", "ddg"])
def test_every_bit_is_that_without_with_tokens_too(method: str, tmp_path: Path) -> None:
    same_with_graphs(on(TOKENS, method, 3), tmp_path)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("fr", {"bn_stats": "play"}),
        ("fr", {"bn_stats": "both", "warmup": "zero"}),
        ("fr", {"carry_history": False}),
        ("ddg", {"carry_history": False}),
        ("bp", {"checkpoint_activations": True}),
    ],
)
def test_so_it_is_with_every_choice_of_a_method(method: str, own: dict[str, Any], tmp_path: Path) -> None:
    """Where the pipe is emptied each epoch, passes end without a backward: their graphs are free again."""
    same_with_graphs(tiny_config(method, 3, method=METHODS[method] | own), tmp_path)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("method", ["bp", "fr", "ddg"])
def test_gradients_keep_a_layout_that_is_not_that_of_the_features(method: str, tmp_path: Path) -> None:
    model = {"_target_": "tiny_models.post_normed", "name": "post_normed"}
    same_with_graphs(tiny_config(method, 3, model=model), tmp_path)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("method", ["bp", "fr", "ddg"])
def test_batch_norms_that_do_not_count_one_batch_a_pass_count_what_they_would(method: str, tmp_path: Path) -> None:
    model = {"_target_": "tiny_models.oddly_normed", "name": "tiny"}
    plain = same_with_graphs(tiny_config(method, 2, model=model), tmp_path)
    counted = {name: int(value) for name, value in plain.weights.items() if name.endswith("num_batches_tracked")}
    num_batches = 9 if method == "fr" else 10  # the last one that was played was not replayed
    assert counted["odd.twice.num_batches_tracked"] == 2 * num_batches
    assert counted["odd.still.num_batches_tracked"] == 0


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("method", ["bp", "ddg"])
def test_a_parameter_that_no_pass_uses_is_left_alone(method: str, tmp_path: Path) -> None:
    """A gradient of zeros would let weight decay act on it."""
    model = {"_target_": "tiny_models.with_an_idle_parameter", "name": "tiny"}
    plain = same_with_graphs(tiny_config(method, 2, model=model), tmp_path)
    assert torch.equal(plain.weights["block1.idle"], torch.ones(3))


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("method", ["fr", "ddg", "cdni", "dgl"])
def test_stopped_and_started_again_it_is_the_run_left_alone(method: str, tmp_path: Path) -> None:
    train_here(tiny_config(method, 3), tmp_path / "alone")
    train_here(tiny_config(method, 3, cuda_graphs=True), tmp_path / "run", stop_at=4)
    train_here(tiny_config(method, 3, cuda_graphs=True), tmp_path / "run")
    assert_same_run(tmp_path / "alone", tmp_path / "run")


@pytest.mark.usefixtures("graphs")
def test_diagnostics_and_clipping_change_nothing_and_are_not_changed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"diagnostics": {"sigma": {"every": 3, "window": 2}}, "clip_norm": 0.5, "freeze": [1]}
    plain = run_serial(tiny_config("ddg", 3, **settings), tmp_path / "plain")
    graphed = run_serial(tiny_config("ddg", 3, cuda_graphs=True, **settings), tmp_path / "graphed")
    assert_same(graphed, plain)
    numbers = [[{**record, "time_ns": 0} for record in run.of("direction")] for run in (graphed, plain)]
    assert numbers[0] == numbers[1] != []


@pytest.mark.usefixtures("graphs")
def test_a_pass_that_finds_no_free_graph_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PairGraph, "is_free", False)
    graphed = run_serial(tiny_config("ddg", 2, cuda_graphs=True), tmp_path / "graphed")
    assert counts["repeated"] == 0
    assert_same(graphed, run_serial(tiny_config("ddg", 2), tmp_path / "plain"))


@pytest.mark.usefixtures("graphs")
def test_blocks_that_draw_random_numbers_unseen_by_the_plan_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fr_bench.planning.plan.check_captured_blocks", lambda *_: None)
    model = {"_target_": "tiny_models.residual", "name": "tiny", "dropout": 0.5}
    with pytest.raises(ConfigError, match=r"^cuda_graphs=true: block '.*' draws random numbers"):
        run_serial(tiny_config("fr", 2, cuda_graphs=True, model=model), tmp_path)


@pytest.mark.usefixtures("graphs")
def test_what_cannot_be_captured_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(PairGraph, "__init__", fail)
    with pytest.raises(
        ConfigError, match=r"these blocks cannot be captured: operation not permitted .* capturing; use false"
    ):
        run_serial(tiny_config("bp", 2, cuda_graphs=True), tmp_path)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(
    ("first", "raised", "message"),
    [
        (RuntimeError("operation not permitted"), ConfigError, "be captured: operation not permitted; use false"),
        (torch.OutOfMemoryError("no memory"), torch.OutOfMemoryError, "no memory"),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), RuntimeError, "^CUDNN_STATUS_ALLOC_FAILED$"),
        (RuntimeError(""), ConfigError, "cannot be captured: RuntimeError; use false"),
    ],
)
def test_what_went_wrong_first_is_told_though_the_end_of_the_capture_fails_too(
    first: RuntimeError, raised: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises what ``capture_end`` says."""

    def fail(*_: Any) -> None:
        try:
            raise first
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(RepeatedWork, "record", fail)
    with pytest.raises(raised, match=message):
        run_serial(tiny_config("bp", 1, cuda_graphs=True), tmp_path)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("fr", {}, "a mode of NVIDIA GPUs"),
        ("1f1b", {"devices": "cuda"}, "the library that method=1f1b brings"),
        ("ddg", {"devices": "cuda", "weights": "current"}, "method.weights=current"),
        ("fr", {"devices": "cuda", "replicas": 2}, "replicas send their gradients"),
        ("fr", {"devices": "cuda", "dropout": 0.5}, "block 'block1' draws random numbers, such as those of dropout"),
        ("fr", {"devices": "cuda", "model": "noisy"}, "block 'noise' draws random numbers"),
        ("fr", {"devices": "cuda", "model": "layer_drop", "of": "python"}, "block 'block1' draws random numbers"),
    ],
)
def test_where_there_are_no_graphs_it_is_refused(
    method: str, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(method, 2, "gloo", cuda_graphs=True, replicas=settings.get("replicas", 1))
    if "weights" in settings:
        config["method"]["weights"] = settings["weights"]
    config["model"] = {"_target_": f"tiny_models.{settings.get('model', 'residual')}", "name": "tiny"}
    config["model"] |= {key: settings[key] for key in ("dropout", "of") if key in settings}
    if settings.get("devices") == "cuda":
        monkeypatch.setattr("fr_bench.planning.site.module_devices", lambda device, devices, k, launch: ["cuda:0"] * k)
    with pytest.raises(ConfigError, match=f"^cuda_graphs=true: .*{message}"):
        make_plan(config)


def test_the_command_says_so_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "debug=fast", "cuda_graphs=true", "device=cpu"]) == 2
    assert "cuda_graphs=true: a mode of NVIDIA GPUs" in capsys.readouterr().err


@pytest.mark.usefixtures("graphs")
def test_blocks_that_are_timed_are_not_captured_and_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = make_plan(tiny_config("fr", 2, partition="measured", cuda_graphs=True))
    assert any(line.startswith("partition=measured: kernels were timed") for line in plan.warnings)
    plain = make_plan(tiny_config("fr", 2, partition="measured"))
    assert plain.warnings == []
    for each, says_so in ((plan, True), (plain, False)):
        prediction = predict_time(each)
        assert prediction is not None
        assert any("those of a graph may take less" in note for note in prediction.notes) == says_so


@pytest.mark.usefixtures("graphs")
def test_what_is_profiled_is_launched_too(tmp_path: Path) -> None:
    plain = run_serial(tiny_config("fr", 2, profile=2), tmp_path / "plain")
    graphed = run_serial(tiny_config("fr", 2, profile=2, cuda_graphs=True), tmp_path / "graphed")
    assert counts["repeated"] == (10 + 2 * 9) + 2 * 10  # of modules 1 and 2: as without a profile
    assert_same(graphed, plain)


MANY_BLOCKS = {"model": {"_target_": "fr_bench.models.mlp.mlp", "name": "mlp", "width": 2, "depth": 20}}


@pytest.mark.parametrize(
    ("k", "transport", "device", "changes", "has_one"),
    [
        (3, "serial", "cuda", {}, True),
        (16, "serial", "cuda", MANY_BLOCKS, True),
        (17, "serial", "cuda", MANY_BLOCKS, False),
        (3, "serial", "cuda", {"streams": False}, False),
        (1, "serial", "cuda", {}, False),
        (3, "gloo", "cuda", {}, False),
        (3, "serial", "cpu", {}, False),
    ],
)
def test_modules_that_share_a_gpu_and_a_process_have_a_stream_each(
    k: int, transport: str, device: str, changes: dict[str, Any], has_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    plan = make_plan(tiny_config("fr", k, transport, **changes))
    assert own_stream(plan, torch.device(device)) == ("a stream of cuda" if has_one else None)
