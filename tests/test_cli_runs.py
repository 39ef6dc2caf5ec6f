"""The command line with real runs behind it."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness import call
from hydra.utils import get_object
from run_files import write_run

from fr_bench.cli import main
from fr_bench.commands.train import check_jobs, parse
from fr_bench.launching import launch
from fr_bench.planning.plan import make_plan
from fr_bench.settings.compose import compose
from fr_bench.settings.config import COMPONENTS, NAMED_COMPONENTS, check

CONF = Path(__file__).parents[1] / "conf"
OPTIONS = {group: sorted(file.stem for file in (CONF / group).glob("*.yaml")) for group in COMPONENTS}

BROKEN_MODEL = """
import math

import torch
from torch import nn


class BreaksLater(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if x.device.type != "meta":
            self.calls += 1
            if self.training and self.calls > 3:
                raise RuntimeError("this block broke")
        return x


def build(input_shape, num_classes, breaks):
    last = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))
    return [("first", BreaksLater() if breaks else nn.Identity()), ("last", last)]
"""


def test_a_run_exits_with_0_and_fills_the_folder_it_was_given(tmp_path):
    done = call(tmp_path, "train", "debug=fast", "k=2", "run_dir=run")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["method"], summary["k"], summary["steps"]) == ("fr", 2, 20)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["run_dir"] == str(tmp_path / "run") and "hydra" not in config


def test_a_sweep_trains_every_combination_and_tells_how_it_went(tmp_path):
    done = call(tmp_path, "train", "-m", "debug=fast", "max_steps=2", "method=bp,fr", "k=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") >= 2
    assert len(list(tmp_path.glob("multirun/*/*/summary.json"))) == 2


def test_a_sweep_whose_own_code_was_edited_says_so_and_is_no_mean_with_the_runs_before(tmp_path, monkeypatch):
    """Started again with one more seed: the run that is there was made by the code before."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited.py").write_text("from fr_bench.methods.fr import FeaturesReplay as Mine\n")
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "mine.yaml").write_text("_target_: edited.Mine\nname: mine\n")
    words = ["-cd", "mine", "debug=fast", "max_steps=2", "method=mine", "k=2", "transport=serial", "sweep_dir=sweep"]
    done = call(tmp_path, "train", "-m", *words, "seed=0")
    assert done.returncode == 0 and "other code" not in done.stderr, done.stderr
    with (tmp_path / "edited.py").open("a") as stream:
        stream.write("# another version\n")
    done = call(tmp_path, "train", "-m", *words, "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("was made by other code of edited than is there now; remove ") == 1
    done = call(tmp_path, "report", "sweep", "--csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["runs_finished"] for row in rows] == ["1", "1"]
    assert [row["variant"].partition("=")[0] for row in rows] == ["edited", "edited"]


def test_of_jobs_that_differ_in_the_seed_alone_one_is_planned(tmp_path, monkeypatch, capsys):
    planned = []

    def plan(config, **settings):
        planned.append((config["k"], config["seed"]))
        return make_plan(config, **settings)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "make_plan", plan)
    sweep = ["-m", "debug=fast", "wandb.name=seed-${seed}", "seed=0,1"]
    check_jobs(compose(parse([*sweep, "k=1,3"])), run_elsewhere=False, starts_processes=False)
    assert sorted(planned) == [(1, 0), (3, 0)]
    # What is asked of each by itself still is.
    second = compose(parse([*sweep, "sweep_dir=there"])).jobs[1].config["run_dir"]
    write_run(Path(second), "bp", seed=1)
    assert main(["train", *sweep, "sweep_dir=there"]) == 2
    assert "seed=1 sweep_dir=there': run_dir=" in (told := capsys.readouterr().err) and "other settings" in told
    assert main(["train", *sweep, "sweep_dir=there", "resume=never"]) == 2
    assert "seed=1 sweep_dir=there resume=never': run_dir=" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "there").iterdir()] == [Path(second).name]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["schedule.gamma=x"], "schedule.gamma=x: must be a number"),
        (["schedule.gamma=null"], "schedule.gamma=null: must be a number"),
        (["schedule.gamma=-1"], "schedule.gamma=-1: must be 0 or more"),
        (["schedule=cosine", "schedule.final=-1"], "schedule.final=-1: must be 0 or more"),
        (["optimizer.nesterov=x"], "optimizer.nesterov=x: must be true or false"),
        (["optimizer.foreach=x"], "optimizer.foreach=x: must be true or false or null"),
        (["optimizer=adam", "optimizer.betas=[0.9]"], "optimizer: torch.optim.Adam: IndexError"),
        (
            ["method=dni", "method.optimizer.lr=-1"],
            "method.optimizer: torch.optim.SGD: ValueError: Invalid learning rate",
        ),
        (["method=dni", "method.optimizer=null"], "method.optimizer=None: must have a _target_"),
        (["method=dni", "method.conditional=x"], "method.conditional=x: must be true or false"),
        (["method=dni", "method.num_hidden=true"], "method.num_hidden=true: must be an integer"),
        (["method=dni", "method.clip_norm=true"], "method.clip_norm=true: must be a number or null"),
        (["method=dgl", "batch_size=1", "model.norm=none"], "method: what it trains beside the model cannot run"),
        (["precision=bf16", "memory_limit_gb=4"], "memory_limit_gb=4: memory is not predicted under bf16"),
    ],
)
def test_what_a_component_cannot_be_called_with_is_a_mistake(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "debug=fast", "k=2", "partition=equal", *words]) == 2
    told = capsys.readouterr().err
    assert named in told and told.count("\n") == 1 and not list(tmp_path.iterdir()), told


def test_no_config_of_ours_makes_a_sweep_without_the_flag():
    """So that a config need not be composed to see whether it does."""
    for file in CONF.rglob("*.yaml"):
        assert "mode" not in (yaml.safe_load(file.read_text()).get("hydra") or {}), file


def test_a_sweep_survives_a_broken_job(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken.py").write_text(BROKEN_MODEL)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "broken.yaml").write_text("_target_: broken.build\nname: broken\nbreaks: true\n")
    words = ["-cd", "mine", "debug=fast", "max_steps=5", "method=bp", "k=1", "model=broken"]
    done = call(tmp_path, "train", "-m", *words, "model.breaks=true,false")
    assert done.returncode == 1, done.stderr
    assert "this block broke" in done.stderr
    states = [line.split()[1] for line in done.stdout.partition("job  ")[2].splitlines()[1:3]]
    assert states == ["failed", "finished"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["k=99"], ["k=99"]),
        (["batch_size=100000"], ["batch_size=100000"]),
        (["transport=nccl"], ["transport=nccl"]),
        (["+method.wramup=zero"], ["wramup", "warmup"]),
        (["method.warmup=zeor"], ["zeor", "zero"]),
        (["model._target_=fr_bench.models.nothing"], ["model", "nothing"]),
        (["-m", "k=1,99"], ["k=99", "in the combination"]),
    ],
)
def test_what_only_the_plan_can_see_is_found_before_anything_is_made(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "debug=fast", *words]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in named) and "Traceback" not in message, message
    assert message.count("\n") == 1, message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", range(max(map(len, OPTIONS.values()))))
def test_every_component_names_something_that_exists(number):
    """One of each group in a config."""
    chosen = {group: options[number] for group, options in OPTIONS.items() if number < len(options)}
    config = compose(parse([f"{group}={option}" for group, option in chosen.items()])).jobs[0].config
    for group, option in chosen.items():
        assert callable(get_object(config[group]["_target_"])), option
        if group in NAMED_COMPONENTS:
            assert config[group]["name"] == option


@pytest.mark.parametrize("group", ["experiment", "debug"])
def test_every_experiment_and_debug_config_composes(group):
    for file in sorted((CONF / group).glob("*.yaml")):
        (job,) = compose(parse([f"{group}={file.stem}"])).jobs
        check(job.config)


@pytest.mark.parametrize(
    "words",
    [[], *([f"experiment={name}"] for name in ("poster_convergence", "poster_generalization", "authors_code"))],
    ids=str,
)
def test_settings_said_to_be_the_papers_are_those_of_its_published_numbers(words, tmp_path, capsys):
    (job,) = compose(parse([*words, "k=2"])).jobs
    write_run(tmp_path / "run", k=2, settings=job.config | {"seed": 0})
    assert main(["report", str(tmp_path), "--csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["method"] == "fr" and row["published_test_error"] == "0.0603"


@pytest.mark.parametrize(("k", "rates"), [(1, [1.0]), (2, [2.0, 1.0]), (4, [2.0, 1.0, 1.0, 1.0])])
def test_the_authors_code_trains_module_1_at_twice_the_rate_for_every_k(k, rates):
    (job,) = compose(parse(["experiment=authors_code", f"k={k}"])).jobs
    assert job.config["module_lr"] == rates
    assert job.config["method"]["bn_stats"] == "both" and job.config["method"]["warmup"] == "skip"
    assert job.config["optimizer"]["nesterov"] and job.config["partition"] == "equal"


def test_the_authors_code_can_be_planned_and_its_rates_be_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=authors_code", "model=resnet20_basic", "dataset=digits", "device=cpu", "dry_run=true"]
    assert main(["train", *words, "k=3"]) == 0
    assert "module  device" in capsys.readouterr().out
    assert main(["train", *words, "k=3", "module_lr=[1,1]"]) == 2
    assert "2 multipliers for k=3 modules" in capsys.readouterr().err


def test_a_run_ends_well_whose_output_has_no_room_and_no_letters_for_it(tmp_path):
    """Hydra's logging is turned off too: in a process of its own, whose logging it is."""
    words = ["debug=fast", "max_steps=2", "k=1", "console=plain", f"run_dir={tmp_path / 'é'}"]
    words += ["hydra/job_logging=disabled"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "ascii"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fr_bench", "train", *words],
            cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0 and "No space left on device); training goes on" in done.stderr, done.stderr
        report = [sys.executable, "-m", "fr_bench", "report", str(tmp_path / "é")]
        told = subprocess.run(report, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (told.returncode, told.stderr.count("\n")) == (1, 1) and "the output cannot be written" in told.stderr
    shown = call(tmp_path, "report", "é")
    assert shown.returncode == 0 and "n = 1" in shown.stdout, shown.stderr
    closed = subprocess.run(f"{shlex.join(report)} >&-", shell=True, env=environment, stderr=subprocess.PIPE, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_a_run_without_stdout_and_stderr_trains_in_processes_of_its_own(tmp_path):
    """As a daemon may start it."""
    words = ["debug=fast", "max_steps=1", "k=2", "transport=ipc", f"run_dir={tmp_path / 'run'}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = shlex.join([sys.executable, "-m", "fr_bench", "train", *words])
    done = subprocess.run(f"{command} <&- >&- 2>&-", shell=True, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
