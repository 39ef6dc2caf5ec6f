"""The command line: help, completion, checks and exit codes. The runs themselves are stubbed here."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fr_bench.cli import COMMANDS, main
from fr_bench.commands.train import parse
from fr_bench.errors import ConfigError, Interrupted, RunFailed
from fr_bench.settings.compose import Job, compose, job_folder, take_apart
from fr_bench.settings.config import check
from fr_bench.settings.paths import with_quoted_paths
from fr_bench.sweeps.outcomes import Outcome, OutcomeLog, exit_code

SMALL = ["model=mlp", "dataset=digits"]
CONF = Path(__file__).parents[1] / "conf"
MADE_BY = ("_target_", "_partial_", "name")


class FakeLaunch(types.ModuleType):
    """Stands in for fr_bench.launching.launch: notes the configs it is given and trains nothing."""

    def __init__(self) -> None:
        super().__init__("fr_bench.launching.launch")
        self.planned: list[dict[str, Any]] = []
        self.started: list[dict[str, Any]] = []
        self.refuse: Callable[[dict[str, Any]], None] = lambda config: None
        self.train: Callable[[dict[str, Any]], float] = lambda config: 0.25

    def check_plan(self, config: dict[str, Any], planned: set[str], *, runs_here: bool) -> None:
        self.planned.append(config)
        self.refuse(config)

    def check_data(self, config: dict[str, Any], as_planned: dict[str, bool], *, runs_here: bool) -> None:
        pass

    def run_training(self, config: dict[str, Any], run_dir: Path, _: Any = None) -> dict[str, Any]:
        self.started.append(config)
        assert run_dir.is_dir() and config["run_dir"] == str(run_dir)
        return {"best_test_error": self.train(config)}


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeLaunch:
    fake = FakeLaunch()
    monkeypatch.setitem(sys.modules, "fr_bench.launching.launch", fake)
    monkeypatch.chdir(tmp_path)
    return fake


def train(*words: str) -> int:
    return main(["train", *words])


def composed(*words: str) -> list[dict[str, Any]]:
    """The configs of a command line's jobs as they are checked, before Hydra composes the same."""
    return [job.config for job in compose(parse(with_quoted_paths(words))).jobs]


def fails(error: Exception) -> Callable[[dict[str, Any]], Any]:
    def fail(config: dict[str, Any]) -> Any:
        raise error

    return fail


# --- the dispatcher


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_lists_the_subcommands_and_three_examples(words, capsys):
    assert main(words) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    examples = text.partition("examples:")[2].partition("\n\n")[0]
    assert examples.count("fr-bench train") == 3


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_output_that_nobody_reads_is_no_accident(words: list[str], unbuffered: str) -> None:
    """As in ``fr-bench train --help | head``."""
    assert told_to_nobody(*words, PYTHONUNBUFFERED=unbuffered) == (1, "")


def told_to_nobody(*words: str, **variables: str) -> tuple[int, str]:
    """Exit code and stderr of the command whose output nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fr_bench", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=os.environ | variables)
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--info"], ["--cfg", "job"]])
def test_nor_is_what_hydra_tells(words: list[str], unbuffered: str) -> None:
    """It logs line by line, and logging would tell of each that it was not read; of the rest it would itself."""
    assert told_to_nobody("train", *words, PYTHONUNBUFFERED=unbuffered) == (1, "")


def test_a_run_goes_on_when_nobody_reads_its_output(tmp_path: Path) -> None:
    """As in ``fr-bench train | head -1``: metrics.jsonl has everything."""
    reader, writer = os.pipe()
    os.close(reader)
    words = ["train", "-m", "debug=fast", "max_steps=1", "k=1", "seed=0,1", f"sweep_dir={tmp_path / 'runs'}"]
    command = [sys.executable, "-m", "fr_bench", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writer)
    said = "fr-bench: nobody reads the output any more; training goes on, and is logged as ever"
    assert done.returncode == 0 and done.stderr == f"{said}\n"
    states = [json.loads(path.read_text())["state"] for path in (tmp_path / "runs").glob("*/status.json")]
    assert states == ["finished"] * 2
    commands = [json.loads(path.read_text())["command"] for path in (tmp_path / "runs").glob("*/env.json")]
    assert commands == [["fr-bench", *words]] * 2


@pytest.mark.parametrize("words", [[], ["debug=fast"]])
def test_hydras_flags_are_shown_whatever_the_settings(words, capsys):
    assert main(["train", *words, "--hydra-help"]) == 0
    assert "--config-dir" in capsys.readouterr().out


def test_nor_is_a_bench_lost_when_nobody_reads_its_output(tmp_path: Path) -> None:
    words = ["model=mlp", "dataset.height=8", "dataset.width=8", "dataset.num_train=64", "batch_size=16", "threads=1"]
    words += ["bench.k=[1]", "bench.methods=[bp]", "bench.rounds=2", "bench.steps=2"]
    code, said = told_to_nobody("bench", *words, f"run_dir={tmp_path / 'bench'}")
    assert code == 0
    assert said == (
        "fr-bench: nobody reads the output any more; measuring goes on, and its files are written as ever\n"
    )
    assert json.loads((tmp_path / "bench" / "bench.json").read_text())["rows"]
    assert (tmp_path / "bench" / "bench.png").exists()


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"], ["report", "--version"]])
def test_version_names_the_libraries(words, capsys):
    assert main(words) == 0
    text = capsys.readouterr().out
    assert text.startswith("fr-bench 0.") and "torch" in text and "hydra-core" in text


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], "'train'"),
        (["k=4"], "'fr-bench train k=4'"),
        (["-m", "k=1,2"], "'fr-bench train -m k=1,2'"),
    ],
)
def test_an_unknown_subcommand_gets_the_nearest_one(words, hint, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert hint in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize("words", [["train", "debug=fast"], ["report", "."], ["doctor"]])
def test_a_folder_that_is_gone_is_no_place_to_start(words, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert main(words) == 2
    assert capsys.readouterr().err == "fr-bench: the folder that this was started in is gone; cd to one that is there\n"


def test_every_subcommand_has_a_module_of_ours():
    for command in COMMANDS.values():
        assert (Path(__file__).parents[1] / "src" / Path(*command.module.split("."))).with_suffix(".py").exists()


# --- completion


def complete(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fr-bench tr", ["train"]),
        ("fr-bench ", list(COMMANDS)),
        ("fr-bench train method=f", ["method=fr"]),
        ("fr-bench train schedule=co", ["schedule=constant", "schedule=cosine"]),
        ("fr-bench train -m k=1,2 batch", ["batch_size="]),
        ("fr-bench train optimizer.mom", ["optimizer.momentum="]),
        ("fr-bench train precision=", ["precision=fp32", "precision=tf32", "precision=bf16", "precision=fp64"]),
        ("fr-bench train -m transport=ipc,gl", ["transport=ipc,gloo"]),
        ("fr-bench train wandb.mode=off", ["wandb.mode=offline"]),
        ("fr-bench train cuda_graphs=", ["cuda_graphs=true", "cuda_graphs=false"]),
        ("fr-bench train partition=m", ["partition=measured"]),
        ("fr-bench train resume=", ["resume=auto", "resume=never"]),
        ("fr-bench train precision=fp32 k", ["k="]),
        ("fr-bench doctor ", []),
    ],
)
def test_completion(line, expected, monkeypatch, capsys):
    assert complete(line, monkeypatch, capsys) == expected


def test_the_completion_script_is_for_fr_bench(capsys):
    assert main(["-sc", "install=bash"]) == 0
    assert "-F hydra_bash_completion fr-bench" in capsys.readouterr().out


def test_completion_for_a_shell_that_hydra_does_not_know_is_refused(capsys):
    assert main(["-sc", "install=tcsh"]) == 2
    assert "install=bash" in capsys.readouterr().err


def test_looking_around_imports_no_torch(tmp_path):
    looks = [["--help"], ["train", "--help"], ["train", "--cfg", "job"], ["-sc", "query=bash"], ["--version"]]
    code = f"import sys; from fr_bench.cli import main\nfor words in {looks!r}:\n"
    code += "    if main(words) or 'torch' in sys.modules: sys.exit(f'{words} imports torch, or fails')"
    environment = {"COMP_LINE": "fr-bench train method=", "PATH": ""}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- what Hydra's flags show


def test_cfg_job_shows_the_config_and_runs_nothing(launch, tmp_path, capsys):
    assert train("--cfg", "job", "k=2") == 0
    assert "\nk: 2\n" in capsys.readouterr().out
    assert not launch.planned and not launch.started and not list(tmp_path.iterdir())


def help_of(capsys, *words: str) -> str:
    assert train("--help", *words) == 0
    return " ".join(capsys.readouterr().out.split())


def test_train_help_lists_groups_settings_and_examples(launch, capsys):
    text = help_of(capsys)
    assert "schedule constant, cosine, multistep (the learning rate over the epochs)" in text
    assert "batch_size=128 samples an iteration" in text and "fr-bench train -m" in text
    assert "dataset.root=${oc.env:FR_BENCH_DATA,data} folder" in text


def test_train_help_is_of_the_groups_and_values_given(launch, capsys):
    text = help_of(capsys, "method=cdni", "experiment=quickstart", "k=2", "method.optimizer.lr=0.5")
    assert "method=cdni: DNI whose synthesizers also see the labels." in text
    assert "method.optimizer.lr=0.5 learning rate" in text  # described in dni.yaml, on which cdni.yaml builds
    assert "experiment=quickstart: Features Replay on real images" in text
    sigma = help_of(capsys, "experiment=poster_sigma")  # the whole comment: commands, and what to expect
    assert "fr-bench plot outputs/sigma" in sigma and "Should show: sigma above 0" in sigma
    assert " k=2 number of modules" in text and "epochs=15 length of the run" in text
    assert "method.bn_stats" not in text


def test_train_help_resolves_references_if_asked(launch, monkeypatch, capsys):
    monkeypatch.setenv("FR_BENCH_DATA", "/here")
    assert "dataset.root=/here" in help_of(capsys, "--resolve")


def test_train_help_is_of_files_of_ones_own_too(launch, tmp_path, capsys):
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "mine.yaml").write_text(
        "# Mine.\n# Learns backwards.\n\n_target_: m.Mine\nname: mine\n"
        "how: 1  # from 0\nparts:  # of it\n  a: {b: '#'}\n  c: [1, null]  # of these\n"
    )
    text = help_of(capsys, "--config-dir", "mine", "method=mine")
    described = "method.how=1 from 0 method.parts.a.b=# method.parts.c=[1,null] of these"
    assert f"method=mine: Mine. Learns backwards. {described} model=resnet164" in text


def test_no_key_lacks_a_description():
    """Nor does a group, or a choice of one."""
    from fr_bench.commands.train_help import all_meanings, heading, meanings_in, settings

    def anatomy_of(*words: str) -> Any:
        return take_apart(parse([*words]), Job([*words], {}, {}))

    groups = anatomy_of().groups
    composed = ("experiment", "debug", "cluster")  # these set keys outside their group too
    for words in [[], *([f"{group}={option}"] for group in composed for option in groups[group])]:
        anatomy = anatomy_of(*words)
        meanings = all_meanings(anatomy.sources)
        described = [*(key for key, _ in settings(anatomy)), *(f"defaults.{group}" for group in groups)]
        assert [key for key in described if not meanings.get(key)] == []
        assert [source.name for source in anatomy.sources if not heading(source.text)] == []
    for group in groups.keys() - {*composed}:
        for option in groups[group]:
            text = (CONF / group / f"{option}.yaml").read_text()
            assert heading(text), option
            meanings = meanings_in(text)
            for key, value in yaml.safe_load(text).items():
                nested = isinstance(value, dict) and "_target_" not in value and key != "defaults"
                keys = [f"{key}.{inner}" for inner in value] if nested else [key]
                assert key in MADE_BY or "defaults:" in text or all(meanings.get(each) for each in keys), keys


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [\n", "line 2, column 1: is not YAML: expected the node content"),
        ("a: b: c\n", "line 1, column 5: is not YAML: mapping values are not allowed"),
        ("a: 1\na: 2\n", "line 2, column 1: is not YAML: found duplicate key a"),
        ("a: !foo x\n", "is not YAML: could not determine a constructor for the tag"),
    ],
)
def test_a_file_that_is_not_yaml_is_named_with_the_place(text, why, launch, tmp_path, capsys):
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "broken.yaml").write_text(text)
    assert train("--config-dir", "mine", "method=broken", "debug=fast") == 2
    err = capsys.readouterr().err
    assert "broken.yaml, line " in err and why in err and err.count("\n") == 1
    assert not launch.started


def test_a_finished_run_may_be_where_nothing_can_be_written(launch, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert train("debug=fast", "run_dir=run") == 2
    assert "is not writable" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text('{"state": "finished"}')
    assert train("debug=fast", "run_dir=run") == 0


def test_jobs_that_would_share_a_folder_of_a_new_sweep_are_refused(launch, capsys):
    assert train("-m", "debug=fast", "hydra.sweep.subdir=k${k}", "seed=1,2", "k=2") == 2
    assert "seed=1 and seed=2: two jobs of the sweep would be one run" in capsys.readouterr().err
    assert not launch.started


def test_info_may_stand_at_the_end(launch, capsys):
    assert train("debug=fast", "-i") == 0
    assert "debug" in capsys.readouterr().out


def test_info_passes_through(launch, capsys):
    assert train("--info", "searchpath") == 0
    assert "pkg://fr_bench.conf" in capsys.readouterr().out


# --- defaults, groups and files of one's own


def test_the_defaults_are_the_papers():
    [config] = composed()
    assert (config["method"]["name"], config["model"]["name"], config["dataset"]["name"]) == (
        "fr",
        "resnet164",
        "cifar10",
    )
    assert (config["k"], config["epochs"], config["batch_size"]) == (4, 300, 128)
    optimizer = config["optimizer"]
    assert (optimizer["lr"], optimizer["momentum"], optimizer["weight_decay"]) == (0.01, 0.9, 5e-4)
    assert config["schedule"]["milestones"] == [0.5, 0.75]
    assert config["checkpoint"] == {"every": None, "minutes": 10, "keep": 2}  # ours; as docs/resuming.md has it


def test_the_run_gets_a_plain_resolved_config_without_hydra(launch):
    assert train(*SMALL) == 0
    [config] = launch.started
    assert json.loads(json.dumps(config)) == config
    assert "hydra" not in config and "${" not in json.dumps(config)


@pytest.mark.parametrize(("optimizer", "schedule"), [("sgd", "multistep"), ("adam", "cosine"), ("sgd", "constant")])
def test_every_optimizer_and_schedule_is_called_as_its_yaml_says(optimizer, schedule):
    import torch
    from hydra.utils import instantiate

    [config] = composed(*SMALL, f"optimizer={optimizer}", f"schedule={schedule}")
    assert instantiate(config["schedule"], _convert_="all").factor(0, 10, 5) <= 1
    assert instantiate(config["optimizer"], [torch.nn.Parameter(torch.ones(1))], _convert_="all").param_groups


def test_an_experiment_changes_groups_and_values_and_the_command_line_wins_over_it():
    [first] = composed("experiment=quickstart")
    [second] = composed("experiment=quickstart", "method=bp", "k=2", "optimizer.lr=0.3")
    assert (first["model"]["name"], first["epochs"], first["optimizer"]["lr"]) == ("resnet20", 15, 0.05)
    assert (second["method"]["name"], second["k"], second["optimizer"]["lr"]) == ("bp", 2, 0.3)
    assert second["model"]["name"] == "resnet20"


@pytest.mark.parametrize("name", ["fast", "serial"])
def test_debug_configs_run_in_one_process(name):
    [config] = composed("experiment=quickstart", f"debug={name}")
    assert config["transport"] == "serial"


def test_a_method_of_ones_own_is_one_yaml_in_config_dir(launch, tmp_path):
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "mine.yaml").write_text("_target_: mine.Method\nname: mine\ndepth: 3\n")
    assert train("--config-dir", "mine", "method=mine", "method.depth=4", *SMALL) == 0
    assert launch.started[0]["method"] == {"_target_": "mine.Method", "name": "mine", "depth": 4}


def test_local_defaults_come_before_the_experiment(launch, tmp_path):
    (tmp_path / "mine" / "local").mkdir(parents=True)
    (tmp_path / "mine" / "local" / "default.yaml").write_text("# @package _global_\nthreads: 3\nepochs: 7\n")
    [config] = composed("--config-dir", "mine", "experiment=quickstart")
    assert (config["threads"], config["epochs"]) == (3, 15)


def test_flags_and_settings_mix_in_any_order(launch, tmp_path):
    (tmp_path / "mine").mkdir()
    assert train("k=2", "--config-dir", "mine", *SMALL, "--multirun", "seed=1") == 0
    assert [(config["k"], config["seed"]) for config in launch.started] == [(2, 1)]


def test_a_primary_config_of_ones_own(launch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "study.yaml").write_text("defaults: [config, _self_]\nk: 3\n")
    [config] = composed("--config-dir", "mine", "--config-name", "study", *SMALL)
    assert config["k"] == 3


# --- run directories


def test_two_runs_of_one_second_have_different_folders():
    first, second = (config["run_dir"] for _ in range(2) for config in composed(*SMALL))
    assert first != second
    assert Path(first).parent.name == "digits-mlp-fr-k4-s0"


def test_what_names_a_run_is_the_same_wherever_it_is_referred_to(launch):
    assert train(*SMALL, "run_dir='runs/${now:%f}-${run_id:}'", "wandb.name='${now:%f}-${run_id:}'") == 0
    assert Path(launch.started[0]["run_dir"]).name == launch.started[0]["wandb"]["name"]


def test_run_dir_is_used_as_given_and_hydra_leaves_nothing_of_its_own_there(launch, tmp_path):
    assert train(*SMALL, "run_dir=here/run") == 0
    assert launch.started[0]["run_dir"] == str(tmp_path / "here" / "run")
    assert not list((tmp_path / "here" / "run").iterdir())


def test_in_a_sweep_dir_of_ones_own_a_combination_has_the_same_folder_every_time(tmp_path):
    folder = f"sweep_dir={tmp_path / 'mine'}"
    configs = composed("-m", *SMALL, folder, "method=bp,fr,ddg", "k=2")
    first = [(Path(config["run_dir"]), config["method"]["name"], config["k"]) for config in configs]
    assert len({path for path, _, _ in first}) == 3 and {path.parent for path, _, _ in first} == {tmp_path / "mine"}
    # Another order, fewer values, and what changes nothing about a run.
    without_effect = ["console=off", "max_time=5", "++hang_timeout=9", "checkpoint.every=3", "wandb.group=mine"]
    configs = composed("-m", "k=2", *SMALL, folder, *without_effect, "log_every=3", "method=fr,bp")
    again = [(Path(config["run_dir"]), config["method"]["name"], config["k"]) for config in configs]
    assert len(again) == 2 and set(again) <= set(first)


@pytest.mark.parametrize("word", ["checkpoint.every=1,2", "method=fr,fr"])
def test_two_jobs_are_never_one_run(word, launch, tmp_path, capsys):
    key, _, values = word.partition("=")
    assert train("-m", *SMALL, f"sweep_dir={tmp_path / 'mine'}", word) == 2
    error = capsys.readouterr().err
    assert f"{key}={values[0]}" in error and "two jobs of the sweep would be one run" in error
    assert not launch.started and not list(tmp_path.iterdir())
    assert len({config["run_dir"] for config in composed("-m", *SMALL, word)}) == 2  # in folders with numbers


def test_overrides_that_make_no_folder_name_are_shortened_without_a_clash():
    names = ["a/b c", "a_b c", "x" * 200, "x" * 199 + "y", "\u753b" * 100, "\udce4"]  # one is no text
    folders = [
        job_folder("mine", "0", _root_=OmegaConf.create({"hydra": {"overrides": {"task": [f"dataset.root={name}"]}}}))
        for name in names
    ]
    assert len(set(folders)) == 6 and not any("/" in name for name in folders)
    assert max(map(len, folders)) < 140 and max(len(os.fsencode(name)) for name in folders) <= 255


def test_run_dir_is_refused_in_a_sweep(launch, tmp_path, capsys):
    for word in ("run_dir=here", "hydra.run.dir=here"):
        assert train("-m", *SMALL, "k=1,2", word) == 2
        assert f"fr-bench: {word}: under -m every job has a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_sweep_dir_is_refused_without_a_sweep(launch, tmp_path, capsys):
    for word in ("sweep_dir=mine", "++sweep_dir=mine"):
        assert train(*SMALL, word) == 2
        assert f"{word}: is of a sweep, which needs -m" in capsys.readouterr().err
    assert not launch.started and not list(tmp_path.iterdir())
    assert train(*SMALL, "sweep_dir=null") == 0


def test_a_run_dir_that_cannot_be_made_is_a_mistake(launch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train(*SMALL, "run_dir=file/run") == 2
    assert "file is a file" in capsys.readouterr().err and not launch.started
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert train(*SMALL, "run_dir=link/run") == 2
    assert "link is a link that leads nowhere" in capsys.readouterr().err and not launch.started


@pytest.mark.parametrize(("run_dir", "message"), [("/proc/run", ": /proc "), ("x" * 300, "File name too long")])
def test_a_run_dir_that_only_looks_as_if_it_could_be_made_is_a_mistake(run_dir, message, launch, tmp_path, capsys):
    assert train(*SMALL, f"run_dir={run_dir}") == 2
    told = capsys.readouterr().err
    assert f"cannot make the folder {run_dir}" in told.replace(f"{tmp_path}/", "") and message in told
    assert told.count("\n") == 1 and not launch.started and not list(tmp_path.iterdir())


def test_a_dry_run_does_not_even_try_to_make_a_folder(launch, tmp_path, monkeypatch):
    monkeypatch.setattr("fr_bench.commands.train._try_to_make_one_in", lambda *_: pytest.fail("it did"))
    monkeypatch.setattr("fr_bench.commands.train._report_all", lambda composition: 0)
    assert train(*SMALL, "run_dir=run", "dry_run=true") == 0


# --- paths that Hydra's grammar would read as something else

ODD = "demo/epochs=12,experiment=quickstart,method=fr"


PATHS = [ODD, "été", "2024_01", "1.10", "it's (new)", "a\\b=1", "a\\'b=1", "b=1\\", "x={1}"]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_as_given(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [config] = composed(*SMALL, f"run_dir={path}", f"++resume={path}")
    assert (config["run_dir"], config["resume"]) == (str(tmp_path / path), path)


@pytest.mark.parametrize(("dataset", "key"), [("cifar10", "root"), ("text", "path")])
def test_so_is_that_of_data(dataset, key):
    assert composed(f"dataset={dataset}", f"dataset.{key}=/data/{ODD}")[0]["dataset"][key] == f"/data/{ODD}"


@pytest.mark.parametrize("path", [ODD, "it's (new)"])
def test_so_is_that_of_a_sweep(path, launch, tmp_path):
    assert train("-m", *SMALL, f"sweep_dir={path}", f"resume={path}", "k=1") == 0
    assert all(Path(config["run_dir"]).parent == tmp_path / path for config in launch.started)
    assert [(config["k"], config["resume"]) for config in launch.started] == [(1, path)]


def test_what_could_be_a_sweep_is_none_where_there_is_a_path_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [config["resume"] for config in composed("-m", *SMALL, "resume=a,b")] == ["a", "b"]
    (tmp_path / "a,b").mkdir()
    for words in (["-m"], []):
        assert [config["resume"] for config in composed(*words, *SMALL, "resume=a,b")] == ["a,b"]


def test_several_paths_that_are_there_are_a_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("k=1", "k=2"):
        (tmp_path / name).mkdir()
    assert [config["resume"] for config in composed("-m", *SMALL, "resume=k=1,k=2")] == ["k=1", "k=2"]
    (tmp_path / "k=1,k=2").mkdir()
    assert [config["resume"] for config in composed("-m", *SMALL, "resume=k=1,k=2")] == ["k=1,k=2"]


def test_a_path_in_quotes_or_with_references_is_what_it_was(launch, tmp_path):
    words = [f"resume='{ODD}'", "run_dir=k=${k}/${model.name}", "++sweep_dir=null"]
    assert train(*SMALL, *words) == 0
    assert launch.started[0]["resume"] == ODD and launch.started[0]["run_dir"] == str(tmp_path / "k=4" / "mlp")
    assert launch.started[0]["sweep_dir"] is None


def test_a_folder_is_not_called_tilde(launch, tmp_path, capsys):
    assert train(*SMALL, "run_dir=~nobody-of-that-name/run") == 2
    assert "run_dir=~nobody-of-that-name/run" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_home_folder_is_meant_where_a_shell_leaves_its_sign(launch, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert train(*SMALL, "run_dir=~/run", "resume=~/k=4") == 0
    assert launch.started[0]["run_dir"] == str(tmp_path / "home" / "run")
    assert launch.started[0]["resume"] == str(tmp_path / "home" / "k=4")


@pytest.mark.parametrize("words", [["resume=a=1", "k=2"], ["resume=a=1", "-m", "k=2", "sweep_dir=b=2"]])
def test_a_run_knows_the_command_line_as_it_was_typed(words, launch):
    seen = []
    launch.train = lambda config: seen.append(list(sys.argv)) or 0.25
    assert train(*words, *SMALL) == 0
    assert seen[0] == ["fr-bench", "train", *words, *SMALL]


# --- mistakes

MISTAKES = [
    (["metod=fr"], ["metod=fr", "'method'"]),
    (["lr=0.1", "method=dni"], ["lr=0.1", "Did you mean 'optimizer.lr'?"]),
    (["learning_rate=0.1"], ["learning_rate=0.1", "'optimizer.lr'"]),
    (["optimizer.learning_rate=0.1"], ["optimizer.learning_rate=0.1", "'optimizer.lr'", "momentum"]),
    (["Momentum=0.9"], ["Momentum=0.9", "'optimizer.momentum'"]),
    (["weight_decay=0"], ["weight_decay=0", "'optimizer.weight_decay'"]),
    (["name=x"], ["name=x", "'method.name', 'model.name', 'dataset.name' or 'wandb.name'?"]),
    (["K=2"], ["K=2", "'k'"]),
    (["k=${nope}"], ["fr-bench: k=${nope}: Interpolation key 'nope' not found."]),
    (["~k"], ["fr-bench: ~k: cannot be left out, as run_dir refers to it."]),
    (["wandb.tags=${method}"], ["fr-bench: wandb.tags=${method}: Cannot merge"]),
    (["method=[bp,fr]"], ["method=[bp,fr]: would be all of these in one run; ", "a sweep: -m method=bp,fr."]),
    (["-m", "k=1,2", "method=[bp,fr]"], ["method=[bp,fr]: would be all of these in one run"]),
    (["-m", "k=1,2", "hydra.sweeper=null"], ["hydra.sweeper: has no _target_"]),
    (["batch=64"], ["batch=64", "'batch_size'"]),
    (["bs=64"], ["bs=64", "'batch_size'"]),
    (
        ["experiment=poster"],
        ["experiment=poster", "'poster_convergence', 'poster_generalization', ", "'poster_sigma'?"],
    ),
    (["model=resnet"], ["model=resnet", "no such model. Available: mlp, "]),
    (["+experiment=quickstart"], ["+experiment=quickstart", "leave out the +", ": experiment=quickstart."]),
    (["+method=fr", "k=2"], ["+method=fr", "leave out the +"]),
    (["+k=2"], ["+k=2", "leave out the +"]),
    (["method.optimizer.lr=1", "method=bp"], ["method.optimizer.lr=1", "method=cdni, method=dni."]),
    (["schedule.gama=0.1"], ["schedule.gama=0.1", "'schedule.gamma'"]),
    (["wandb.mdoe=online"], ["wandb.mdoe=online", "'wandb.mode'", "tags"]),
    (["hydra.sweep.dirr=x"], ["hydra.sweep.dirr=x", "'hydra.sweep.dir'"]),
    (["+sede=3"], ["+sede=3", "'seed'"]),
    (["method=frr"], ["method=frr", "'fr'", "Available: 1f1b, bp, "]),
    (["eval_every=often"], ["eval_every=often", "must be a number"]),
    (["eval_every=null"], ["eval_every=null", "cannot be null"]),
    (["run_dir="], ["run_dir=: is empty", "leave it out"]),
    (["-m", "sweep_dir="], ["sweep_dir=: is empty", "leave it out"]),
    (["freeze=${method.name}"], ["freeze: must be a list, such as freeze=[1,2]"]),
    (["optimizer.lr.x=1"], ["optimizer.lr.x=1", "optimizer.lr is a single value"]),
    (["run_dir=a", "hydra.run.dir=b"], ["hydra.run.dir=b", "use run_dir=b"]),
    (["experiment=quickstrat"], ["experiment=quickstrat", "'quickstart'"]),
    (["dataset=null"], ["dataset=null"]),
    (["k"], ["'k'", "key=value"]),
    (["-m", "optimizer.lr=0.1,", "0.2"], ["'optimizer.lr=0.1,'", "a blank ends a word"]),
    (["partition=[1,", "2]"], ["'partition=[1,'", "the values of partition without any"]),
    (["epchs"], ["'epchs'", "'epochs=VALUE'"]),
    (["partition=[1,2"], ["partition=[1,2"]),
    (["hydra.job.chdir=true"], ["hydra.job.chdir=true", "relative paths"]),
    (["k=1,2"], ["k=1,2", "-m"]),
    (["k=two"], ["k=two", "an integer"]),
    (["epochs=2.5"], ["epochs=2.5", "an integer"]),
    (["k=null"], ["k=null", "null"]),
    (["deterministic=maybe"], ["deterministic=maybe", "true or false"]),
    (["freeze=3"], ["freeze=3", "a list"]),
    (["module_lr=[1,x]", "k=2"], ["module_lr=[1,x]", "a number"]),
    (["wandb=online"], ["wandb=online", "wandb.mode"]),
    (["k=???"], ["k", "no value"]),
    (["wandb.name=${nothing}"], ["wandb.name", "nothing"]),
    (["memory_limit_gb=lots"], ["memory_limit_gb=lots", "a number"]),
    (["method.name=a/b"], ["method.name", "a/b"]),
    (["~method.name"], ["method.name", "missing"]),
    (["~method._target_"], ["method", "_target_"]),
    (["--epochs=3"], ["--epochs", "epochs=3"]),
    (["--cfg", "jbo"], ["jbo", "job"]),
    (["--multirun", "--cfg", "job"], ["--multirun", "--cfg"]),
    (["--config-dir", "nowhere"], ["nowhere"]),
    (["--config-name", "confg"], ["confg", "'config'"]),
]
# What is said of these needs nothing but the config.
WRONG_VALUES = [
    (["device=gpu"], ["device=gpu", "'cuda'"]),
    *((["precision=" + word], [f"precision={word}", "'bf16'"]) for word in ("fp16", "half", "float16", "AMP", "BF16")),
    *((["precision=" + word], [f"precision={word}", "'fp32'"]) for word in ("float32", "float", "single")),
    *((["precision=" + word], [f"precision={word}", "'fp64'"]) for word in ("double", "float64")),
    (["precision=fp8"], ["precision=fp8", "Did you mean 'fp32' or 'fp64'?"]),
    (["optimizer.lr=nan"], ["optimizer.lr=nan", "must be a finite number"]),
    (["optimizer.weight_decay=inf"], ["optimizer.weight_decay=inf", "must be a finite number"]),
    (["schedule.milestones=[0.5,nan]"], ["schedule.milestones=nan", "must be a finite number"]),
    (["eval_every=0"], ["eval_every=0", "above 0"]),
    (["max_time=nan"], ["max_time=nan", "must be a finite number"]),
    (["memory_limit_gb=nan"], ["memory_limit_gb=nan", "must be a finite number"]),
    (["threads=100000"], ["threads=100000: must be at most 1024"]),
    (["k=0"], ["k=0", "at least 1"]),
    (["epochs=0"], ["epochs=0", "at least 1"]),
    (["max_steps=0"], ["max_steps=0", "at least 1"]),
    (["batch_size=-1"], ["batch_size=-1", "at least 1"]),
    (["log_every=0"], ["log_every=0", "at least 1"]),
    (["threads=0"], ["threads=0", "at least 1"]),
    (["trace=-1"], ["trace=-1", "at least 0"]),
    (["profile=-1"], ["profile=-1", "at least 0"]),
    (["replicas=0"], ["replicas=0", "at least 1"]),
    (["precision=fp23"], ["precision=fp23", "'fp32'", "bf16"]),
    (["transport=glo"], ["transport=glo", "'gloo'"]),
    (["wandb.mode=onlin"], ["wandb.mode=onlin", "'online'", "disabled"]),
    (["partition=equl"], ["partition=equl", "'equal'"]),
    (["partition=atuo"], ["partition=atuo", "'auto'", "measured"]),
    (["partition=mesured"], ["partition=mesured", "'measured'"]),
    (["transport=icp"], ["transport=icp", "'ipc'"]),
    (["console=of"], ["console=of", "'off'"]),
    (["memory_limit_gb=0"], ["memory_limit_gb=0", "above 0"]),
    (["max_time=0"], ["max_time=0", "above 0"]),
    (["checkpoint.every=0"], ["checkpoint.every=0", "at least 1"]),
    (["checkpoint.minutes=0"], ["checkpoint.minutes=0", "above 0"]),
    (["checkpoint.keep=0"], ["checkpoint.keep=0", "at least 1"]),
    (["hang_timeout=1.5"], ["hang_timeout=1.5", "at least 2", "null"]),
    (["hang_timeout=nan"], ["hang_timeout=nan", "must be a finite number"]),
    (["diagnostics.sigma.every=-1"], ["diagnostics.sigma.every=-1: must be 0"]),
    (["diagnostics.sigma.window=0"], ["diagnostics.sigma.window=0: must be an integer of at least 1."]),
    (["diagnostics.sigma.every=5"], ["diagnostics.sigma.window=10: must be at most diagnostics.sigma.every=5"]),
    (["partition=[8,18]"], ["partition=[8, 18]", "k=4", "3"]),
    (["partition=[8,8,32]"], ["partition=[8, 8, 32]", "empty module"]),
    (["partition=[0,8,32]"], ["partition=[0, 8, 32]", "empty module"]),
    (["partition=[8,32,18]"], ["partition=[8, 32, 18]", "falling cuts"]),
    (["partition=[8,x,18]"], ["partition=", "block numbers"]),
    (["module_lr=[2.0,1.0]"], ["module_lr=[2.0, 1.0]", "k=4"]),
    (["module_lr=[2,1,1,0]"], ["module_lr=", "above 0"]),
    (["module_lr=[2,1,1,1,1]"], ["module_lr=", "5 multipliers for k=4"]),
    (["freeze=[5]"], ["freeze=[5]", "k=4"]),
    (["freeze=[0]"], ["freeze=[0]", "no module 0"]),
    (["clip_norm=0"], ["clip_norm=0", "above 0"]),
    (["label_smoothing=1"], ["label_smoothing=1", "at least 0 and below 1"]),
    (["label_smoothing=-0.1"], ["label_smoothing=-0.1", "at least 0 and below 1"]),
    (["method.name='a b'"], ["method.name is 'a b'"]),
    (["devices=[0]", "device=cpu"], ["devices=[0]", "device=cpu"]),
    (["devices=[]"], ["devices=[]", "list of GPU numbers"]),
    (["devices=[0,-1]"], ["devices=[0, -1]", "list of GPU numbers"]),
    (["optimizer.lr=fast"], ["optimizer.lr=fast", "a number"]),
    (["optimizer.lr=-0.1"], ["optimizer.lr=-0.1", "at least 0"]),
    (["optimizer.lr=true"], ["optimizer.lr=True", "a number"]),
    (["compile=true", "partition=measured"], ["partition=measured", "compile=true"]),
]
# What lies at the very end of what may be had.
RIGHT_VALUES = [
    ["k=1"], ["replicas=1"], ["epochs=1"], ["max_steps=1"], ["batch_size=1"], ["threads=1"], ["threads=1024"],
    ["log_every=1"], ["trace=0"], ["profile=0"], ["label_smoothing=0.0"], ["label_smoothing=0.99"], ["optimizer.lr=0"],
    ["checkpoint.every=1", "checkpoint.keep=1"], ["hang_timeout=2.0"], ["eval_every=0.01"], ["max_time=0.01"],
    ["diagnostics.sigma.every=10"], ["diagnostics.sigma.every=1", "diagnostics.sigma.window=1"],
    ["partition=[1,2,3]"], ["module_lr=[0.1,1.0,1.0,1.0]", "freeze=[1,4]"], ["devices=[0]"], ["method.warmup=inf"],
    *([f"transport={name}"] for name in ("auto", "serial", "gloo", "nccl", "ipc")),
    *([f"console={name}"] for name in ("auto", "live", "plain", "off")),
]  # fmt: skip


@pytest.mark.parametrize(("words", "named"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_clear_line_and_exit_code_2(words, named, launch, tmp_path, capsys):
    assert train(*words) == 2
    captured = capsys.readouterr()
    assert all(part in captured.err for part in named), captured.err
    assert captured.err.startswith("fr-bench: ") and captured.err.count("\n") == 1, captured.err
    assert not launch.started and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def valid() -> dict[str, Any]:
    (config,) = composed()
    check(config)
    return config


def changed(config: dict[str, Any], words: list[str]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    for override in OverridesParser.create().parse_overrides(words):
        *above, key = override.key_or_group.split(".")
        section = functools.reduce(dict.__getitem__, above, config)
        assert key in section
        section[key] = override.value()
    return config


@pytest.mark.parametrize("words", RIGHT_VALUES, ids=" ".join)
def test_what_is_just_right_is_taken(words, valid):
    check(changed(valid, words))


@pytest.mark.parametrize(("words", "named"), WRONG_VALUES, ids=[" ".join(words) for words, _ in WRONG_VALUES])
def test_a_wrong_value_is_one_clear_line(words, named, valid):
    """As the command line tells it: the test below."""
    with pytest.raises(ConfigError) as refused:
        check(changed(valid, words))
    message = str(refused.value)
    assert all(part in message for part in named) and "\n" not in message, message


@pytest.mark.parametrize("words", [["k=0"], ["method=frr"]])  # one is found by the checks, one by composing
def test_cfg_refuses_what_train_refuses(words, launch, capsys):
    assert train(*words) == 2
    message = capsys.readouterr().err
    assert train(*words, "--cfg", "job") == 2
    assert capsys.readouterr().err == message


def test_what_the_plan_refuses_is_a_mistake_too(launch, tmp_path, capsys):
    launch.refuse = fails(ConfigError("k=99: the model has 8 blocks"))
    assert train(*SMALL) == 2
    assert capsys.readouterr().err == "fr-bench: k=99: the model has 8 blocks\n"
    assert not list(tmp_path.iterdir())


def test_a_group_of_ones_own_is_added_with_a_plus(launch, tmp_path, capsys):
    (tmp_path / "mine" / "extra").mkdir(parents=True)
    (tmp_path / "mine" / "extra" / "more.yaml").write_text("# @package _global_\nk: 2\n")
    assert train(*SMALL, "--config-dir", "mine", "extra=more") == 2
    assert "extra: is not in the defaults list; add it with +extra=NAME." in capsys.readouterr().err
    assert train(*SMALL, "--config-dir", "mine", "+extra=more") == 0 and launch.started[0]["k"] == 2


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("# @package _global_\nepohcs: 3\n", ["experiment/mine.yaml", "'epochs'"]),
        ("# @package _global_\nk: two\n", ["experiment/mine.yaml", "an integer"]),
        ("k: 3\n", ["experiment/mine.yaml", "# @package _global_"]),
        ("# @package _global_\ndefaults: [override /method: frr]\n", ["method=frr", "'fr'"]),
    ],
)
def test_a_mistake_in_a_file_names_the_file(text, named, launch, tmp_path, capsys):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "mine.yaml").write_text(text)
    assert train("--config-dir", "mine", "experiment=mine") == 2
    message = capsys.readouterr().err
    assert all(part in message for part in named), message


# --- sweeps


@pytest.mark.parametrize(
    ("words", "combination"),
    [
        (["method=bp,frr", "k=1,2"], "method=frr k=1"),
        (["k=range(0,3)"], "k=0"),
        (["k=2,two"], "k=two"),
        (["k=4,2", "partition=[1,2,3]"], "k=2"),
        (["method=glob(b*)", "k=2,-1"], "method=bp k=-1"),
    ],
)
def test_a_mistake_in_any_combination_is_found_before_the_first_job(words, combination, launch, tmp_path, capsys):
    assert train("-m", *SMALL, *words) == 2
    message = capsys.readouterr().err
    assert combination in message and "in the combination" in message and message.count("\n") == 1, message
    assert not launch.started and not list(tmp_path.iterdir())


def test_a_data_set_is_downloaded_when_nothing_is_wrong_with_any_combination(tmp_path, monkeypatch, capsys):
    fetched = []

    def prepare(config: dict[str, Any]) -> None:
        fetched.append(config["name"])
        raise ConfigError("there is no network")

    monkeypatch.setattr("fr_bench.planning.plan.prepare_dataset", prepare)
    monkeypatch.chdir(tmp_path)
    words = ["-m", "model=mlp", "dataset=fashion_mnist,cifar10", "device=cpu", "dataset.root=data"]
    assert train(*words, "k=2,99") == 2
    assert "k=99: the model has only" in capsys.readouterr().err and not fetched
    assert train(*words, "k=2,1") == 2
    assert "there is no network" in capsys.readouterr().err and fetched == ["fashion_mnist"]
    assert not list(tmp_path.iterdir())


def test_how_an_object_is_made_is_not_among_the_keys(launch, capsys):
    assert train(*SMALL, "optimizer.frob=1") == 2
    err = capsys.readouterr().err
    assert "optimizer has: lr, momentum, " in err and "+optimizer.frob=..." not in err
    assert train(*SMALL, "wandb=online") == 2
    assert "set one of wandb.mode, " in capsys.readouterr().err


def test_a_new_key_is_suggested_where_something_takes_it(launch, capsys):
    """Where nothing does, the test above sees that it is not."""
    assert train(*SMALL, "optimizer.maximize=1") == 2
    assert "+optimizer.maximize=..." in capsys.readouterr().err


def test_a_broken_file_of_ones_own_does_not_hide_another_mistake(launch, tmp_path, capsys):
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "broken.yaml").write_text("name: [\n")
    assert train(*SMALL, "--config-dir", "mine", "method=bp", "method.warmup=zero") == 2
    err = capsys.readouterr().err
    assert "method.warmup=zero" in err and "It is a key of method=ddg, method=fr." in err and err.count("\n") == 1


def test_a_key_that_a_combination_lacks_is_compared_with_its_own_keys(launch, capsys):
    assert train("-m", *SMALL, "method.warmup=skip", "method=fr,bp") == 2
    message = capsys.readouterr().err
    assert "unknown key 'method.warmup'. method has: " in message and "checkpoint_activations" in message, message


def test_a_sweep_declared_in_a_file_is_checked_too(launch, tmp_path, capsys):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      k: 1,0\n"
    (tmp_path / "mine" / "experiment" / "mine.yaml").write_text(text)
    assert train("-m", *SMALL, "--config-dir", "mine", "experiment=mine") == 2
    assert "in the combination 'k=0" in capsys.readouterr().err and not launch.started


def test_every_combination_is_planned_before_the_first_job(launch, tmp_path, capsys):
    def refuse(config):
        if config["method"]["name"] == "fr" and config["k"] == 2:
            raise ConfigError("k=2: too many")

    launch.refuse = refuse
    assert train("-m", *SMALL, "method=bp,fr", "k=1,2") == 2
    assert "method=fr k=2" in capsys.readouterr().err
    assert len(launch.planned) == 4 and not launch.started and not list(tmp_path.iterdir())


def test_a_sweep_runs_every_combination_in_a_folder_that_says_what_it_is_and_ends_with_a_table(launch, capsys):
    launch.train = lambda config: config["k"] / 100
    assert train("-m", *SMALL, "method=glob([bp,fr])", "k=range(1,3)") == 0
    assert [(config["method"]["name"], config["k"]) for config in launch.started] == [
        ("bp", 1),
        ("bp", 2),
        ("fr", 1),
        ("fr", 2),
    ]
    names = [Path(config["run_dir"]).name for config in launch.started]
    assert names == [f"{n}-digits-mlp-{name}-s0" for n, name in enumerate(("bp-k1", "bp-k2", "fr-k1", "fr-k2"))]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-6] == f"all jobs: {' '.join(SMALL)}"
    assert lines[-5].split()[:2] == ["job", "state"]
    assert lines[-1].split()[:-1] == ["3", "finished", "2.00", "%", "method=fr", "k=2"]
    assert "[4/4 done] job 3 finished: best test error 2.00 % (method=fr k=2)" in lines
    assert launch.started[-1]["run_dir"].endswith(lines[-1].split()[-1])


def test_what_a_setting_refers_to_is_that_of_its_own_combination(launch):
    words = ["-m", *SMALL, "wandb.name='run-${seed}'", "seed=3,4", "max_steps=${seed}", "sweep_dir=runs"]
    assert train(*words) == 0
    assert launch.planned == launch.started
    assert [(config["wandb"]["name"], config["max_steps"]) for config in launch.started] == [("run-3", 3), ("run-4", 4)]
    without_quotes = [word.replace("'", "") for word in words]
    assert [config["wandb"]["name"] for config in composed(*without_quotes)] == ["run-3", "run-4"]


def test_a_sweep_runs_on_past_a_failed_job_and_ends_with_1(launch, capsys):
    def fail_on_two(config):
        if config["k"] == 2:
            raise RunFailed("module 2 died at step 7", module=2)
        return 0.25

    launch.train = fail_on_two
    assert train("-m", *SMALL, "k=2,1") == 1
    captured = capsys.readouterr()
    assert captured.err.count("fr-bench: module 2 died at step 7\n") == 1 and "Traceback" not in captured.err
    *table, last = captured.out.splitlines()[-3:]
    assert [line.split()[:2] for line in table] == [["0", "failed"], ["1", "finished"]]
    assert last == "job 0 failed: module 2 died at step 7"


def test_an_interruption_stops_the_sweep(launch, capsys):
    launch.train = fails(Interrupted("stopped", 75))
    assert train("-m", *SMALL, "k=1,2,3") == 75
    assert len(launch.started) == 1
    assert "2 of 3 jobs did not run" in capsys.readouterr().out


def test_a_second_sweep_in_the_same_folder_is_not_told_about_the_first(launch, capsys):
    folder = "hydra.sweep.dir='it\\'s here'"
    assert train("-m", *SMALL, "k=1,2", folder) == 0
    launch.train = fails(RunFailed("broken"))
    capsys.readouterr()
    assert train("-m", *SMALL, "k=3", folder) == 1
    table = capsys.readouterr().out.partition("job  ")[2].splitlines()
    assert table[1].split()[:2] == ["0", "failed"] and table[2:] == ["job 0 failed: broken"]


def test_hydra_mode_in_a_config_makes_a_sweep_without_the_flag(launch):
    for word in ("hydra.mode=MULTIRUN", "++hydra.mode=MULTIRUN"):
        assert [config["k"] for config in composed(*SMALL, "k=1,2", word)] == [1, 2]
    assert train(*SMALL, "k=1,2", "hydra.mode=MULTIRUN") == 0
    assert [config["k"] for config in launch.started] == [1, 2]


@pytest.mark.parametrize("words", [["--config-dir", "mine"], ["hydra.searchpath=[file://HERE/mine]"]])
def test_so_does_a_file_of_ones_own(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "local").mkdir(parents=True)
    (tmp_path / "mine" / "local" / "default.yaml").write_text("# @package _global_\nhydra:\n  mode: MULTIRUN\n")
    configs = composed(*(word.replace("HERE", str(tmp_path)) for word in words), *SMALL, "k=1,2")
    assert [config["k"] for config in configs] == [1, 2]


# --- how a single run ends


def test_a_single_run_is_not_told_of_as_a_job_of_a_sweep(launch, capsys):
    assert train(*SMALL) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunFailed("module 2 died"), 1),
        (Interrupted("stopped", 75), 75),
    ],
)
def test_a_run_that_ends_badly_says_why_once_and_gives_its_code(error, code, launch, capsys):
    launch.train = fails(error)
    assert train(*SMALL) == code
    captured = capsys.readouterr()
    assert captured.err == f"fr-bench: {error}\n" and "Traceback" not in captured.out


def test_a_mistake_found_late_leaves_no_run_directory(launch, tmp_path, capsys):
    launch.train = fails(ConfigError("dataset=cifar10: not here"))
    assert train(*SMALL) == 2
    captured = capsys.readouterr()
    assert captured.err == "fr-bench: dataset=cifar10: not here\n" and "Traceback" not in captured.out
    assert not list(tmp_path.iterdir())


def test_a_bug_shows_its_traceback(launch, capsys):
    launch.train = fails(ZeroDivisionError("a bug"))
    assert train(*SMALL) == 1
    message = capsys.readouterr().err
    assert message.count("ZeroDivisionError: a bug") == 1 and "in fail" in message


def test_ctrl_c_gives_130(launch):
    launch.train = fails(KeyboardInterrupt())  # type: ignore[arg-type]
    assert train(*SMALL) == 130


def test_so_does_ctrl_c_in_any_command(monkeypatch, tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fr_bench.cli._dispatch", stop)
    assert main(["report", str(tmp_path)]) == 130


def test_the_process_exits_with_the_code(tmp_path):
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "fr_bench", "train", "k=0"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fr-bench: k=0: must be an integer of at least 1.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--experimental-rerun=job.pickle"], "--experimental-rerun: runs keep config.yaml"),
        (["--resolve"], "--resolve goes with"),
        (["-m", "--info"], "--multirun and --info exclude each other"),
        (["--cfg", "job", "--info"], "--cfg and --info exclude each other"),
        (["-m", "--cfg", "job"], "--multirun and --cfg exclude each other"),
        (["--run", "-m"], "--run and --multirun exclude each other"),
    ],
)
def test_flags_that_go_nowhere_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        parse(words)


def test_a_job_that_its_launcher_stops_before_it_began_is_resumable(launch):
    launch.train = fails(SystemExit(-1))  # as submitit's handler does once the job is back in the queue
    assert train(*SMALL) == 75


def test_the_jobs_of_a_sweep_are_listed_by_their_numbers_as_they_last_ended(tmp_path):
    log = OutcomeLog(tmp_path, 12)
    for number, state in ((10, "interrupted"), (9, "finished"), (2, "finished"), (10, "finished")):
        outcome = Outcome(number, [f"k={number}"], str(tmp_path / str(number)))
        outcome.finish(0.25) if state == "finished" else outcome.fail("stopped", 75)
        log.add(outcome)
        assert outcome in log.news()
    assert [(each.number, each.state) for each in log.read()] == [(n, "finished") for n in (2, 9, 10)]
    lines = log.table().splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["2", "9", "10"]
    assert lines[4:] == ["9 of 12 jobs did not run."] and log.line(outcome).startswith("[3/12 done] job 10 finished")


def test_the_exit_code_of_a_command_is_that_of_its_jobs():
    def codes(*numbers):
        return [Outcome(n, [], "", exit_code=code) for n, code in enumerate(numbers)]

    assert exit_code(codes(0, 75, 1), 3, 0) == 75 and exit_code(codes(1, 130), 4, 1) == 130
    assert exit_code(codes(2), 1, 0) == 2 and exit_code(codes(0), 1, 1) == 0
    assert exit_code(codes(0, 2), 2, 0) == 1 and exit_code(codes(0), 2, 0) == 1
    assert exit_code([], 2, 130) == 130 and exit_code(codes(0), 2, 130) == 130
    assert exit_code(codes(0, 0), None, 0) == 0 and exit_code([], None, 1) == 1
