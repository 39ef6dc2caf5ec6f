"""CUDA graphs and a stream a module change no bit; on the CPU: test_cuda_graphs.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import METHODS, assert_same, assert_same_run, run_processes, run_serial, tiny_config, train_here
from test_tokens import TOKENS, on

from fr_bench.errors import ConfigError
from fr_bench.modules.graphs import CudaRecording
from fr_bench.modules.module import Module
from fr_bench.modules.passes import Pass

WIDE = {"_target_": "fr_bench.models.preactivation.resnet", "name": "resnet20", "depth": 20}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many graphs were launched in this process."""
    number, repeat = [0], CudaRecording.repeat

    def counted(self: CudaRecording) -> None:
        number[0] += 1
        repeat(self)

    monkeypatch.setattr(CudaRecording, "repeat", counted)
    return number


@pytest.mark.parametrize("model", [None, WIDE], ids=["tiny", "resnet20"])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_graphs_and_streams_change_no_bit(
    method: str, k: int, model: dict[str, Any] | None, cuda: dict[str, Any], launches: list[int], tmp_path: Path
) -> None:
    settings = cuda | ({} if model is None else {"model": model})
    plain = run_serial(tiny_config(method, k, streams=False, **settings), tmp_path / "plain")
    assert_same(run_serial(tiny_config(method, k, **settings), tmp_path / "streams"), plain)
    assert launches == [0]
    taking_turns = tiny_config(method, k, cuda_graphs=True, streams=False, **settings)
    assert_same(run_serial(taking_turns, tmp_path / "graphs"), plain)
    assert launches[0] > 0
    assert_same(run_serial(tiny_config(method, k, cuda_graphs=True, **settings), tmp_path / "both"), plain)


@pytest.mark.parametrize("method", ["bp", "fr", "ddg"])
def test_graphs_change_no_bit_with_tokens(
    method: str, cuda: dict[str, Any], launches: list[int], tmp_path: Path
) -> None:
    """Whose inputs are integers, and whose samples have several labels."""
    plain = run_serial(on(TOKENS, method, 3, streams=False, **cuda), tmp_path / "plain")
    assert_same(run_serial(on(TOKENS, method, 3, cuda_graphs=True, **cuda), tmp_path / "graphs"), plain)
    assert launches[0] > 0


@pytest.mark.parametrize("method", ["bp", "fr", "ddg"])
def test_processes_that_launch_graphs_compute_the_same(method: str, cuda: dict[str, Any], tmp_path: Path) -> None:
    plain = run_serial(tiny_config(method, 3, **cuda), tmp_path / "plain")
    assert_same(run_processes(tiny_config(method, 3, "ipc", cuda_graphs=True, **cuda), tmp_path / "graphs"), plain)


@pytest.mark.parametrize("method", ["fr", "ddg", "cdni", "dgl"])
def test_stopped_and_started_again_it_is_the_run_left_alone(method: str, cuda: dict[str, Any], tmp_path: Path) -> None:
    train_here(tiny_config(method, 3, **cuda), tmp_path / "alone")
    train_here(tiny_config(method, 3, cuda_graphs=True, **cuda), tmp_path / "run", stop_at=4)
    train_here(tiny_config(method, 3, cuda_graphs=True, **cuda), tmp_path / "run")
    assert_same_run(tmp_path / "alone", tmp_path / "run")


@pytest.mark.parametrize(
    ("method", "own", "settings"),
    [
        ("fr", {"bn_stats": "both", "warmup": "zero"}, {}),
        ("ddg", {"carry_history": False}, {"clip_norm": 0.5, "freeze": [1]}),
        ("bp", {"checkpoint_activations": True}, {}),
        ("bp", {"checkpoint_activations": True}, {"precision": "bf16"}),
        ("ddg", {}, {"diagnostics": {"sigma": {"every": 3, "window": 2}}}),
        ("fr", {}, {"precision": "bf16"}),
        ("fr", {}, {"precision": "tf32"}),
        ("fr", {}, {"optimizer": {"fused": True}}),
        ("ddg", {}, {"compile": True, "precision": "fp64"}),
    ],
)
def test_nor_do_graphs_with_any_other_choice(
    method: str, own: dict[str, Any], settings: dict[str, Any], cuda: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"model": WIDE, "method": METHODS[method] | own, **cuda, **settings}
    plain = run_serial(tiny_config(method, 3, **settings), tmp_path / "plain")
    assert_same(run_serial(tiny_config(method, 3, cuda_graphs=True, **settings), tmp_path / "graphs"), plain)


def test_dropout_is_refused(cuda: dict[str, Any], tmp_path: Path) -> None:
    model = {"_target_": "tiny_models.residual", "name": "tiny", "dropout": 0.5}
    with pytest.raises(ConfigError, match="draws random numbers"):
        run_serial(tiny_config("fr", 2, cuda_graphs=True, model=model, **cuda), tmp_path)


@pytest.mark.parametrize("streams", [True, False])
def test_modules_that_share_a_process_have_a_stream_each(
    streams: bool, cuda: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play, used = Module.play, set()

    def watched(self: Module, *args: Any, **settings: Any) -> Pass:
        used.add((self.k, torch.cuda.current_stream().cuda_stream))
        return play(self, *args, **settings)

    monkeypatch.setattr(Module, "play", watched)
    run_serial(tiny_config("bp", 3, streams=streams, eval_every=100, **cuda), tmp_path)
    default = torch.cuda.default_stream().cuda_stream
    of_training = {(k, stream) for k, stream in used if stream != default}  # where the rehearsal is
    assert len({stream for _, stream in of_training}) == len(of_training) == (3 if streams else 0)
