#!/usr/bin/env python
r"""Kills a run with SIGKILL at random moments, starts it again each time, and compares it with one left alone.

    scripts/kill_and_resume.py [--methods bp fr ddg dni cdni dgl] [--kills 10] [--seed 0] [--out DIR] \
        [SETTING=VALUE ...]

Prints a line for each method. The exit code is 0 if every record (but for times) and every final weight is equal.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

SETTINGS = ["model=mlp", "dataset=digits", "k=3", "batch_size=64", "epochs=20", "log_every=1", "threads=1"]
SETTINGS += ["checkpoint.every=10", "console=off", "wandb.mode=disabled"]
WALL = ("train_time", "images_per_s", "play_s", "learn_s", "wait_s", "send_s", "efficiency", "peak")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["bp", "fr", "ddg", "dni", "cdni", "dgl"])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("outputs/kill-and-resume"))
    parser.add_argument("settings", nargs="*", help="further settings of fr-bench train")
    arguments = parser.parse_intermixed_args()
    moments, equal = random.Random(arguments.seed), True
    for method in arguments.methods:
        folder = arguments.out / method
        shutil.rmtree(folder, ignore_errors=True)
        settings = [*SETTINGS, f"method={method}", *arguments.settings]
        subprocess.run(command(folder / "alone", settings), check=True)
        killed_at = kill_again_and_again(folder / "killed", settings, arguments.kills, moments)
        difference = compare(folder / "alone", folder / "killed")
        equal = equal and difference is None
        times = f"{len(killed_at)} times, after steps {killed_at}"
        print(f"{method}: killed {times}: {difference or 'equal, bit for bit'}", flush=True)
    return 0 if equal else 1


def command(run_dir: Path, settings: list[str]) -> list[str]:
    return [sys.executable, "-m", "fr_bench", "train", *settings, f"run_dir={run_dir}"]


def kill_again_and_again(run_dir: Path, settings: list[str], num_kills: int, moments: random.Random) -> list[int]:
    """Each life lasts until a step drawn from what is left; returns the last step logged before each kill."""
    total = json.loads((run_dir.parent / "alone" / "summary.json").read_text(encoding="utf-8"))["steps"]
    killed_at = []
    for number in range(num_kills):
        left = total - last_step(run_dir)
        target = total - left + moments.uniform(0, 2 * left / (num_kills - number + 2))
        process = subprocess.Popen(command(run_dir, settings), stderr=subprocess.DEVNULL)
        seen = (run_dir / "status.json").stat().st_mtime_ns if run_dir.exists() else 0
        while process.poll() is None and not (has_begun(run_dir, seen) and last_step(run_dir) >= target):
            time.sleep(0.01)
        if process.poll() is None:
            time.sleep(moments.uniform(0, 0.1))  # somewhere between two records
        process.kill()
        if process.wait() == -signal.SIGKILL:  # else it was done before
            killed_at.append(last_step(run_dir))
    subprocess.run(command(run_dir, settings), check=True, stderr=subprocess.DEVNULL)
    return killed_at


def has_begun(run_dir: Path, seen: int) -> bool:
    """Whether the new life has taken the directory over."""
    status = run_dir / "status.json"
    return status.exists() and status.stat().st_mtime_ns != seen


def records(run_dir: Path) -> list[dict]:
    found = []
    path = run_dir / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # the last line is being written
            continue
    return found


def last_step(run_dir: Path) -> int:
    return max((record["step"] for record in records(run_dir)), default=0)


def compare(one: Path, other: Path) -> str | None:
    """What differs; None if nothing does."""

    def key(record: dict) -> tuple:
        return record["step"], record["kind"], record.get("module", 0)

    ours, theirs = (
        [
            {name: value for name, value in record.items() if name not in WALL}
            for record in sorted(records(run), key=key)
        ]
        for run in (one, other)
    )
    if ours != theirs:
        first = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), "their number")
        return f"records differ: {first}"
    for path in sorted((one / "checkpoints" / "final").glob("*.safetensors")):
        weights, others = load_file(path), load_file(other / "checkpoints" / "final" / path.name)
        for name, value in weights.items():
            if not torch.equal(value, others[name]):
                return f"{name} differs"
    return None


if __name__ == "__main__":
    sys.exit(main())
