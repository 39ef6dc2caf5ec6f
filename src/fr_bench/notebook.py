"""What a run left, for a script or a notebook of your own. Its records, lines of JSON, need nothing of ours."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fr_bench.commands.evaluate import (
    fill,
    find_weights,
    read_config,
    read_weights,
    refuse_foreign_code,
    with_its_data,
)
from fr_bench.data import build_dataset, evaluation_inputs
from fr_bench.models import build_blocks
from fr_bench.planning.plan import check_model_and_data
from fr_bench.planning.tracing import DTYPES


def load_model(run_dir: str | Path, *, step: int | None = None, trust: bool = False) -> nn.Sequential:
    """The network of a run with its final weights, or those of its newest good checkpoint if it has not come so far.

    Args:
        run_dir: of the run, however many modules it had.
        step: take the weights of the checkpoint after so many iterations instead.
        trust: whether to call what its config.yaml names where that is not fr-bench's own.

    Returns:
        The blocks in order, under their names, in evaluation mode on the CPU, in the dtype of the weights (of a run in
        bf16 that is float32): inputs as those of :func:`load_test_set` in; logits [N, classes] out, or [N, ...,
        classes] where a sample has several labels.

    Raises:
        ConfigError: it is no run's folder, its weights are missing or damaged, its data set, which says what the inputs
            are like, is not there, or it would call code of others.
    """
    with torch.device("cpu"):  # whatever torch.set_default_device says
        config = _read(run_dir, trust)
        folder, _ = find_weights(Path(run_dir) / "checkpoints", config["k"], step)
        dataset = build_dataset(config["dataset"])
        model = nn.Sequential(OrderedDict(build_blocks(config["model"], dataset.input_shape, dataset.num_classes, 0)))
        fill(model.to(DTYPES[config["precision"]]), read_weights(folder), folder)
        return model.eval()


def load_test_set(run_dir: str | Path, *, trust: bool = False) -> tuple[Tensor, Tensor]:
    """The test set of a run's data set, on the CPU: images [N, C, H, W], scaled to 0..1 and normalised as the run had
    them, and int64 labels [N] or [N, ...]. Other inputs are int64 or floats, with their values as stored. Floats are of
    the dtype that the model has.

    Raises:
        ConfigError: see :func:`load_model`; or the data set's files are not there.
    """
    with torch.device("cpu"):
        config = _read(run_dir, trust)
        dataset = build_dataset(config["dataset"])
        images = evaluation_inputs(
            dataset, dataset.test, len(dataset.test.images),
            device=torch.device("cpu"), dtype=DTYPES[config["precision"]], memory_format=torch.contiguous_format,
        )  # fmt: skip
        return images.batch(0), dataset.test.labels.long()


def _read(run_dir: str | Path, trust: bool) -> dict[str, Any]:
    config = read_config(Path(run_dir))
    called = {key: config[key] for key in ("model", "dataset")}
    if not trust:
        refuse_foreign_code(called, Path(run_dir), trusting="pass trust=True")
    check_model_and_data(called)
    return with_its_data(config, Path(run_dir))
