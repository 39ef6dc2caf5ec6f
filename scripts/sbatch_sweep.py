#!/usr/bin/env python3
"""A sweep as a plain Slurm job array, submitted at once: this returns, where `fr-bench train -m cluster=slurm` waits.

    scripts/sbatch_sweep.py --partition=gpu --time=600 --gpus=4 -- sweep_dir=/shared/one method=bp,fr seed=0,1,2

Before `--` are flags of sbatch, behind it what would stand behind `fr-bench train -m`. Every combination is checked
first. One task runs one, in the folder that the sweep would use. A task whose time is up goes back into the queue and
on from its checkpoint. The same command again submits what is not finished.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from fr_bench.commands.train import check_jobs, parse
from fr_bench.errors import ConfigError, FrBenchError
from fr_bench.records.run_directory import RunDirectory
from fr_bench.settings.cluster import SLURM_LAUNCHER
from fr_bench.settings.compose import compose
from fr_bench.settings.paths import quoted, with_quoted_paths

BATCH_SCRIPT = Path(__file__).resolve().with_name("sbatch_task.sh")


def main(words: list[str]) -> int:
    """Returns sbatch's exit code, 2 for a mistake."""
    if "--" not in words or not any(word.startswith("sweep_dir=") for word in words):
        print(__doc__, file=sys.stderr)
        return 2
    flags, overrides = words[: words.index("--")], words[words.index("--") + 1 :]
    try:
        arguments = parse(["-m", *with_quoted_paths(overrides)])
        composition = compose(arguments)
        if composition.launcher == SLURM_LAUNCHER:
            raise ConfigError("cluster=slurm: is for `fr-bench train -m`; here sbatch's flags say what a task needs.")
        folder = Path(str(composition.sweep_dir))
        if {"\\", "\n"} & set(str(folder)):
            raise ConfigError(f"sweep_dir={folder}: sbatch and its task file take no backslash and no new line in it.")
        check_jobs(composition, run_elsewhere=True)
    except FrBenchError as error:
        print(f"fr-bench: {error}", file=sys.stderr)
        return error.exit_code
    config_dir = ["--config-dir", str(Path(arguments.config_dir).resolve())] if arguments.config_dir else []
    tasks = []
    for job in composition.jobs:
        found = RunDirectory(Path(job.config["run_dir"])).find()
        if found is None or found.state != "finished":
            own = [word for word in job.overrides if not word.startswith("sweep_dir=")]
            command = [sys.executable, "-m", "fr_bench", "train", *config_dir, *own]
            tasks.append(shlex.join([*command, f"run_dir={quoted(job.config['run_dir'])}"]))
    if not tasks:
        print("All runs are finished.")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tasks.txt").write_bytes(os.fsencode("\n".join(tasks) + "\n"))  # paths as they were typed
    log = f"{str(folder).replace('%', '%%')}/slurm-%A_%a.out"
    ours = [f"--array=0-{len(tasks) - 1}", "--job-name=fr-bench", f"--output={log}"]
    ours += ["--open-mode=append", "--requeue", "--signal=B:USR2@120"]
    done = subprocess.run(["sbatch", *ours, *flags, str(BATCH_SCRIPT), str(folder / "tasks.txt")])
    if done.returncode == 0:
        print(f"{len(tasks)} of {len(composition.jobs)} runs; how they did, at any time: fr-bench report {folder}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
