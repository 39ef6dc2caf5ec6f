"""Memory that runs out in a module, as the module's process sees it; the whole program is in test_faults.py."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import ListConnection, tiny_config

from fr_bench.checkpoints.files import Checkpoint
from fr_bench.errors import RunFailed
from fr_bench.memory_errors import is_out_of_memory
from fr_bench.planning.out_of_memory import explain
from fr_bench.planning.plan import make_plan
from fr_bench.processes.reporter import BEFORE_TRAINING, Reporter
from fr_bench.transport.open import ModulePorts
from fr_bench.transport.spec import PeerLost
from fr_bench.workers.resumption import Resumption, restore
from fr_bench.workers.worker import WorkerTask


def failure(folder: Path, config: dict[str, Any]) -> str:
    """What all modules of a run, in this process, are told to have failed with."""
    plan = make_plan(config)
    reporter = Reporter(ListConnection(), [BEFORE_TRAINING] * plan.k)  # type: ignore[arg-type]
    threads = torch.get_num_threads()
    try:
        with pytest.raises(RunFailed) as caught:
            WorkerTask(plan, list(range(1, plan.k + 1)), [ModulePorts()] * plan.k, None, folder).run_here(reporter)
    finally:
        torch.set_num_threads(threads)
    assert caught.value.module == 1
    return str(caught.value)


def test_a_model_that_does_not_fit_is_told_before_the_first_step(tmp_path: Path) -> None:
    model = {"_target_": "fr_bench.models.mlp.mlp", "name": "mlp", "width": 3_000_000}  # 36 TB a layer
    config = tiny_config("bp", 1, model=model)
    config["method"]["checkpoint_activations"] = False
    message = failure(tmp_path, config)
    assert message.startswith("module 1 ran out of memory before the first step, on cpu: ")
    assert "a batch_size below 8; more modules than k=1" in message and "checkpoint_activations=true" in message


def test_memory_that_python_lacks_is_memory_too_and_a_process_names_all_its_modules(tmp_path: Path) -> None:
    model = {"_target_": "tiny_models.bad_day", "name": "bad_day", "what": "python", "at": 8}
    message = failure(tmp_path, tiny_config("fr", 3, model=model))
    assert message.startswith("modules 1 to 3, in one process, ran out of memory in step 4, on cpu: MemoryError\n")


def test_where_memory_cannot_be_predicted_the_message_says_why(tmp_path: Path) -> None:
    model = {"_target_": "tiny_models.bad_day", "name": "bad_day", "what": "python", "at": 8}
    assert "the memory of this run is not predicted under bf16" in failure(
        tmp_path, tiny_config("fr", 3, model=model, precision="bf16")
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 36 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), torch.OutOfMemoryError),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), torch.AcceleratorError),
        (PeerLost("module 2 is gone"), PeerLost),
        (RuntimeError("size mismatch for weight"), RunFailed),
    ],
)
def test_a_checkpoint_is_blamed_for_what_it_is_to_blame_for(
    error: Exception, told: type[Exception], tmp_path: Path
) -> None:
    def fail() -> None:
        raise error

    trainer: Any = SimpleNamespace(synchronize=fail)
    with pytest.raises(told) as caught:
        restore(trainer, Resumption(Checkpoint(tmp_path, {"step": 3, "modules": []}), is_exact=True))
    assert ("does not fit" in str(caught.value)) == (told is RunFailed)


def test_with_cuda_graphs_it_says_that_they_take_memory() -> None:
    plan = make_plan(tiny_config("fr", 2))
    told = str(explain(plan, [1], "in step 3", MemoryError()))
    assert "cuda_graphs" not in told
    graphs = replace(plan, config=plan.config | {"cuda_graphs": True})
    assert "cuda_graphs=false, which lets passes use the same memory" in str(
        explain(graphs, [1], "in step 3", MemoryError())
    )
