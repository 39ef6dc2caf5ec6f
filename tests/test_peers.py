"""The peers: what a user would run instead, on their own for the bench and as methods of `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import tiny_config
from torch import Tensor, nn

from fr_bench.models import build_blocks
from fr_bench.peers import make_tasks
from fr_bench.supervisor import Supervisor, watch_signals

NUM_STEPS = 5
SHAPE, NUM_CLASSES = (3, 8, 8), 4


def run_peer(peer: str, tmp_path: Path, num_processes: int, **settings: Any) -> tuple[list[float], list[Any]]:
    """The losses of a peer that runs in processes of its own, and its tasks."""
    config = tiny_config("bp", 1)
    tasks: list[Any] = []

    def make(_: Any, store_port: int | None) -> list[Any]:
        tasks.extend(
            make_tasks(
                peer, config, input_shape=SHAPE, num_classes=NUM_CLASSES, num_processes=num_processes, threads=1,
                num_steps=NUM_STEPS, store_port=store_port, keep_losses=True, **settings,
            )
        )  # fmt: skip
        return tasks

    with (
        watch_signals() as signals,
        Supervisor(make, num_processes, tmp_path, needs_store=num_processes > 1) as supervisor,
    ):
        events = [event for event in supervisor.events(signals) if event and event["event"] == "peer"]
    assert sorted(event["module"] for event in events) == list(range(1, num_processes + 1))
    assert all(len(event["ends_ns"]) == NUM_STEPS for event in events)
    return next(event["losses"] for event in events if event["losses"]), tasks


def plain_losses(batches: list[tuple[Tensor, Tensor]], num_parts: int) -> list[float]:
    """A loop in plain PyTorch that adds up the gradients of ``num_parts`` equal parts of each batch."""
    config = tiny_config("bp", 1)
    blocks = build_blocks(config["model"], SHAPE, NUM_CLASSES, config["seed"])
    network = nn.Sequential(*(block for _, block in blocks)).to(memory_format=torch.channels_last)
    settings = {key: value for key, value in config["optimizer"].items() if key not in ("_target_", "name")}
    optimizer = torch.optim.SGD(network.parameters(), **settings)
    losses = []
    torch.set_num_threads(1)
    for step in range(NUM_STEPS):
        x, y = batches[step % len(batches)]
        parts = [
            F.cross_entropy(network(each), labels, reduction="sum") / len(x)
            for each, labels in zip(x.chunk(num_parts), y.chunk(num_parts), strict=True)
        ]
        for part in parts:
            part.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(torch.stack(parts).sum().item())
    return losses


def test_the_plain_loop_is_a_plain_loop(tmp_path: Path) -> None:
    losses, tasks = run_peer("plain", tmp_path, 1)
    assert losses == plain_losses(tasks[0].batches(), 1)


@pytest.mark.parametrize(
    ("peer", "cuts", "num_microbatches"),
    [
        ("gpipe", [3], 1),
        ("gpipe", [3], 4),
        ("1f1b", [3], 4),
        ("zero_bubble", [3], 4),
        ("interleaved", [1, 3, 5], 4),
    ],
)
def test_a_pipeline_of_its_own_equals_adding_up_micro_batches(
    peer: str, cuts: list[int], num_microbatches: int, tmp_path: Path
) -> None:
    losses, tasks = run_peer(peer, tmp_path, 2, cuts=cuts, num_microbatches=num_microbatches)
    assert losses == plain_losses(tasks[0].batches(), num_microbatches)


def test_ddp_of_its_own_equals_adding_up_the_shares(tmp_path: Path) -> None:
    losses, tasks = run_peer("ddp", tmp_path, 2)
    torch.testing.assert_close(losses, plain_losses(tasks[0].batches(), 2), rtol=1e-6, atol=1e-6)
