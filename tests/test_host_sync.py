"""Inside an iteration nothing waits for the device: no tensor is turned into a number, or decides what is done next.

On a GPU each of these would let the device run dry. They show on the CPU too, as operators of torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import METHODS, run_serial, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from fr_bench.modules.module import BatchResult
from fr_bench.training.trainer import Trainer

# Operators whose result, or its shape, is on the host: `.item()`, `.tolist()`, `bool(x)`, `torch.equal`, `x[mask]`.
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique2"}


def is_mask(index: Any) -> bool:
    return index is not None and index.dtype == torch.bool


class Waiting(TorchDispatchMode):
    """Notes the operators that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING or (name in ("index", "index_put_") and any(map(is_mask, args[1]))):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS)
def test_no_iteration_waits_for_the_device(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what is done with its loss, until it is logged."""
    waiting = Waiting()
    num_iterations = [0]
    iterate, log = Trainer._iterate, Trainer._log

    def watched_iteration(self: Trainer, t: int) -> BatchResult | None:
        num_iterations[0] += 1
        with waiting:
            return iterate(self, t)

    def watched_log(self: Trainer, t: int, result: BatchResult, is_logged: bool, **others: Any) -> None:
        if is_logged:
            return log(self, t, result, is_logged, **others)
        with waiting:
            return log(self, t, result, is_logged, **others)

    monkeypatch.setattr(Trainer, "_iterate", watched_iteration)
    monkeypatch.setattr(Trainer, "_log", watched_log)
    model = {"_target_": "tiny_models.residual", "name": "tiny", "dropout": 0.2}
    run_serial(tiny_config(method, 3, model=model, log_every=4, clip_norm=1.0), tmp_path)
    assert num_iterations == [10] and waiting.found == []


def test_it_sees_what_waits() -> None:
    x = torch.arange(3.0)
    with Waiting() as waiting:
        x.sum().item()
        x[x > 1]
        torch.equal(x, x)
        if x[0]:
            pass
    assert {"_local_scalar_dense", "index", "equal"} <= set(waiting.found)
