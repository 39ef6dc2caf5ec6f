"""Tests that need a GPU, of which one is enough. ``FR_BENCH_GPU_TESTS_ON=cpu`` rehearses them on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

DEVICE = os.environ.get("FR_BENCH_GPU_TESTS_ON", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is in this folder where there is no GPU."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason="torch sees no GPU here"))


@pytest.fixture
def gpu() -> dict[str, Any]:
    """Settings of a run whose modules share one GPU, and whose numbers are the same every time."""
    return {"device": DEVICE, "devices": [0] if DEVICE == "cuda" else None, "deterministic": True}


@pytest.fixture
def cuda(gpu: dict[str, Any]) -> dict[str, Any]:
    """The same, for what has no counterpart on the CPU."""
    if DEVICE != "cuda":
        pytest.skip("a rehearsal on the CPU has no counterpart of this")
    return gpu
