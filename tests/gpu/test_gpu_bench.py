"""fr-bench bench on one GPU: rows with a profile's idle share, of modules in one process and in several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import call

WORDS = ["bench", "device=cuda", "model=resnet20", "batch_size=64", "bench.k=[1,2]", "bench.warmup=3", "bench.steps=4"]


def test_a_bench_tells_of_each_row_how_long_the_gpu_is_idle(cuda: dict[str, Any], tmp_path: Path) -> None:
    methods = "bench.methods=[plain,'plain precision=tf32','plain precision=bf16',bp,fr,'fr transport=serial']"
    result = call(tmp_path, *WORDS, methods, f"run_dir={tmp_path / 'b'}")
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert content["failures"] == [] and content["env"]["gpus"] and content["env"]["cuda"] and content["env"]["driver"]
    rows = {(row["words"], row["k"]): row for row in content["rows"]}
    assert len(rows) == 7
    for (words, k), row in rows.items():
        assert row["num_samples"] == 4 and row["speedup_vs_plain"] > 0
        assert row["num_kernels"] > 100 and row["device_busy_s"] > 0
        assert row["num_processes"] == (1 if "serial" in words else k)  # two modules share the GPU
        assert (row["idle_share"] is None) == (row["num_processes"] > 1)  # who of them it worked for is not told
        assert row["idle_share"] is None or 0 <= row["idle_share"] < 1
        assert len(row["peak_memory"]) == k and min(row["peak_memory"]) > 2**20
        assert row["limit"] is None and row["efficiency"] is None and row["waiting_share"] is None
    # The same kernels but for those that draw images, so about as long.
    busy_s = {key: row["device_busy_s"] for key, row in rows.items()}
    assert busy_s["bp", 1] == pytest.approx(busy_s["plain", 1], rel=0.25)
    assert "GPU idle" in result.stdout and (tmp_path / "b" / "bench.png").exists()
