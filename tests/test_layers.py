"""Dependencies point one way: what computes does not know what configures, launches or logs."""

from __future__ import annotations

import subprocess
import sys

# What stands below the worker sees neither the config system nor W&B, not even through something it imports.
COMPUTING = [
    *[f"methods.{name}" for name in ("base", "policy", "delayed", "bp", "fr", "ddg", "dni", "synthesizer")],
    *["methods.pipeline", "methods.data_parallel", "pipelining"],
    *[f"transport.{name}" for name in ("channel", "spec", "side", "link", "open", "ipc", "distributed", "replicas")],
    *["trainer", "module", "network", "evaluation", "diagnostics", "memory", "meter", "stopwatch", "schedules"],
    *["relay", "clocks", "board", "checkpointer"],
]
FORBIDDEN = ("hydra", "omegaconf", "wandb", "rich", "matplotlib")


def test_what_computes_does_not_see_what_configures_and_shows() -> None:
    program = f"""
import importlib, sys
sys.modules |= dict.fromkeys({FORBIDDEN!r})  # None: importing it raises ImportError, which names it
for name in {COMPUTING!r}:
    importlib.import_module("fr_bench." + name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_methods_see_their_module_and_nothing_of_the_transport() -> None:
    program = """
import sys
import fr_bench.methods.fr, fr_bench.methods.ddg, fr_bench.methods.dni, fr_bench.methods.bp
import fr_bench.methods.pipeline, fr_bench.methods.data_parallel
seen = [name for name in sys.modules if name.startswith("fr_bench.") and not name.startswith("fr_bench.methods")]
names = "module passes graphs network stopwatch finite saved_tensors memory_errors seeds errors pipelining"
allowed = {"fr_bench." + name for name in names.split()}
sys.exit(f"methods import {set(seen) - allowed}" if set(seen) - allowed else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
