"""Sweeps on a real Slurm (scripts/local_slurm.sh start), and what is refused before anything reaches one."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import assert_same_run
from test_faults import wait_until

from fr_bench.cli import main
from fr_bench.commands.train import check_jobs, parse
from fr_bench.errors import ConfigError
from fr_bench.settings.cluster import before_the_wall, check_cluster, check_launcher
from fr_bench.settings.compose import compose
from fr_bench.sweeps import slurm_launcher
from fr_bench.sweeps.outcomes import Outcome, OutcomeLog
from fr_bench.sweeps.slurm_queue import ENDED, job_states

SCRIPTS = Path(__file__).parents[1] / "scripts"
RUN = ["model=mlp", "dataset=digits", "k=2", "batch_size=64", "device=cpu", "threads=1", "partition=equal"]
RUN += ["epochs=1000", "eval_every=100", "log_every=1", "wandb.mode=disabled", "console=plain"]
SLURM = ["cluster=slurm", "cluster.cpus=1", "cluster.memory_gb=1", "cluster.time=20"]
LONG, SHORT = "max_steps: 3000\n", "max_steps: 20\n"
JOBS = {
    "requeued": LONG,
    "cancelled": LONG,
    "diverging": f"{SHORT}optimizer:\n  lr: 1e30\n",
    "left_alone": LONG,
    "plain_1": SHORT,
    "plain_2": SHORT,
}


@pytest.fixture
def slurm() -> None:
    """Skips where it does not run. Another than that script's may not see our folders, and has better things to do."""
    try:
        done = subprocess.run(["sinfo", "--noheader", "--format=%R"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        pytest.skip("Slurm is not installed, or does not answer; as root: make test-slurm")
    if done.stdout.split() != ["local"]:
        pytest.skip("the Slurm of scripts/local_slurm.sh is not running; as root: make test-slurm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With an experiment a job in it, in ``mine``."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    for name, settings in JOBS.items():
        (tmp_path / "mine" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{settings}")
    return tmp_path


def start(folder: Path, *command: str, **environment: str) -> subprocess.Popen[str]:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def train(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    return start(folder, "-m", "fr_bench", "train", "--config-dir", "mine", *RUN, *words, **environment)


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=500)
    return process.returncode, output, errors


def fake_sbatch(folder: Path) -> str:
    """A folder for PATH whose ``sbatch`` prints what it is given."""
    sbatch = folder / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f"#!{sys.executable}\nimport sys\nprint(*sys.argv[1:], sep='\\n')\n")
    sbatch.chmod(0o755)
    return str(sbatch.parent)


def run_dir(folder: Path, name: str) -> Path:
    """The folder of a job in the sweep."""
    found = [path for path in (folder / "sweep").glob("*/") if (path / "status.json").exists()]
    return next(path for path in found if f"experiment={name}" in path.name)


def has_begun(folder: Path, name: str) -> bool:
    """Whether a job has logged some steps."""
    try:
        return (run_dir(folder, name) / "metrics.jsonl").read_text().count("\n") > 3
    except (StopIteration, FileNotFoundError):
        return False


def signal_job(name: str, *flags: str) -> None:
    """Tries once: `scancel` goes on where the job was quicker to leave, and would hit it again when it is back."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", *flags, name], timeout=2, check=True)


def states(output: str) -> list[str]:
    """Of the jobs in the table at the end."""
    table = output.partition("\njob  state")[2].splitlines()[1 : len(JOBS) + 1]
    return [line.split()[1] for line in table]


@pytest.mark.timeout(900)
def test_a_sweep_survives_what_happens_to_its_jobs_and_goes_on_where_it_ended(folder: Path, slurm: None) -> None:
    words = ["-m", *SLURM, "sweep_dir=sweep", f"experiment={','.join(JOBS)}"]
    sweep = train(folder, *words)
    assert wait_until(lambda: sweep.poll() is not None or list(folder.glob("sweep/.submitit/*_0")), 200)
    array = next(folder.glob("sweep/.submitit/*_0")).name.partition("_")[0]
    try:
        for name, flags in {"cancelled": [], "requeued": ["--signal=USR2"]}.items():
            assert wait_until(lambda name=name: has_begun(folder, name), 200)
            signal_job(f"{array}_{list(JOBS).index(name)}", *flags)
        code, output, errors = end(sweep)
    finally:
        signal_job(array, "--quiet")
    assert code == 75, output + errors
    assert states(output) == ["finished", "interrupted", "failed", "finished", "finished", "finished"], output
    as_it_went, _, _ = output.partition("\njob  state")
    lines = as_it_went.splitlines()
    back = next(n for n, line in enumerate(lines) if "job 0 interrupted: stopped by SIGUSR2 after step " in line)
    assert "its job is back in the queue" in lines[back]
    assert any("job 0 finished: best test error" in line for line in lines[back + 1 :])
    assert any("job 1 interrupted: stopped by SIGTERM after step " in line for line in lines)
    assert any("job 2 failed: diverged at step" in line for line in lines)
    assert (folder / "sweep" / ".submitit" / f"{array}_0" / f"{array}_0_0_log.out").read_text().count("Goes on") == 1
    assert_same_run(run_dir(folder, "left_alone"), run_dir(folder, "requeued"))

    before = {name: (run_dir(folder, name) / "status.json").read_bytes() for name in JOBS}
    code, output, errors = end(train(folder, *words))
    assert code == 1, output + errors
    assert states(output) == ["finished", "finished", "failed", "finished", "finished", "finished"], output
    assert "In Slurm's queue: 2 of 6 jobs" in output
    unchanged = {name for name in JOBS if (run_dir(folder, name) / "status.json").read_bytes() == before[name]}
    assert unchanged == {"requeued", "left_alone", "plain_1", "plain_2"}
    logs = [path.read_text() for path in folder.glob("sweep/.submitit/*/*_log.out")]
    assert sum("Goes on after step" in text for text in logs) == 2 and not any("Traceback" in text for text in logs)
    assert_same_run(run_dir(folder, "left_alone"), run_dir(folder, "cancelled"))


@pytest.mark.timeout(900)
def test_the_array_is_submitted_at_once_and_its_tasks_go_on_too(folder: Path, slurm: None) -> None:
    script = str(SCRIPTS / "sbatch_sweep.py")
    words = ["--time=20", "--cpus-per-task=1", "--", "--config-dir", "mine", *RUN, "sweep_dir=sweep"]
    words += ["experiment=requeued,diverging"]
    code, output, errors = end(start(folder, script, *words))
    assert code == 0 and "2 of 2 runs" in output, output + errors
    array = output.split("Submitted batch job ")[1].split()[0]
    try:
        assert wait_until(lambda: has_begun(folder, "requeued"), 200)
        signal_job(f"{array}_0", "--batch", "--signal=USR2")
        log = folder / "sweep" / f"slurm-{array}_0.out"
        assert wait_until(lambda: "Goes on after step" in log.read_text(), 200), log.read_text()
        assert wait_until(lambda: all((job_states() or {}).get(f"{array}_{n}", "") in ENDED for n in (0, 1)), 200)
    finally:
        signal_job(array, "--quiet")
    assert '"state": "finished"' in (run_dir(folder, "requeued") / "status.json").read_text()
    code, output, errors = end(start(folder, script, *words[:-1], "experiment=requeued"))
    assert (code, output) == (0, "All runs are finished.\n"), errors


def test_the_tasks_of_an_array_are_the_sweeps_runs_that_are_not_finished_whatever_its_folder_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Slurm is given; what it makes of it is the test before."""
    folder = tmp_path / "k=1,lr=0.1 (50%a)"
    monkeypatch.setenv("PATH", os.pathsep.join([fake_sbatch(tmp_path), os.environ["PATH"]]))
    sweep = [word for word in RUN if word != "device=cpu"]  # by default that of the node
    sweep += ["transport=serial", "max_steps=2", f"sweep_dir={folder}"]
    assert main(["train", "-m", *sweep, "seed=0"]) == 0
    words = ["--time=20", "--", *sweep, "seed=0,1,2"]
    code, output, errors = end(start(tmp_path, str(SCRIPTS / "sbatch_sweep.py"), *words))
    assert code == 0 and "2 of 3 runs" in output, output + errors
    assert "--array=0-1\n" in output and "\n--time=20\n" in output, output
    assert f"--output={tmp_path}/k=1,lr=0.1 (50%%a)/slurm-%A_%a.out" in output
    assert output.splitlines()[-2:-1] == [str(folder / "tasks.txt")]
    tasks = [shlex.split(line) for line in (folder / "tasks.txt").read_text().splitlines()]
    assert [task[:4] for task in tasks] == [[sys.executable, "-m", "fr_bench", "train"]] * 2
    configs = [compose(parse(task[4:])).jobs[0].config for task in tasks]
    assert [config["seed"] for config in configs] == [1, 2]
    assert {Path(config["run_dir"]).parent for config in configs} == {folder}


ON_GPUS = [
    ["cuda_graphs=true", "precision=tf32"],
    ["device=cuda", "devices=[0,1]"],
    ["compile=true"],
    ["partition=measured"],
    ["transport=nccl"],
]


@pytest.mark.parametrize("words", ON_GPUS, ids=" ".join)
def test_what_a_job_can_have_is_for_its_node_to_say(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")  # nor is there a compiler
    job = [word for word in RUN if not word.startswith(("device=", "partition="))]
    check_jobs(compose(parse(["-m", *job, *words, "seed=0,1"])), run_elsewhere=True)
    assert capfd.readouterr().err == ""  # nothing was timed


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["cuda_graphs=true", "device=cpu"], "cuda_graphs=true"),
        (["cuda_graphs=true", "replicas=2"], "cuda_graphs=true"),
        (["cuda_graphs=true", "model.dropout=0.5"], "cuda_graphs=true"),
        (["precision=tf32", "device=cpu"], "precision=tf32"),
        (["compile=true", "method=gpipe"], "compile=true"),
        (["transport=ipc", "method=gpipe"], "transport=ipc"),
        (["transport=serial", "replicas=2"], "transport=serial"),
    ],
)
def test_what_no_node_can_have_is_refused_before(words: list[str], named: str) -> None:
    job = [word for word in RUN if word != "device=cpu"]
    with pytest.raises(ConfigError, match=named):
        check_jobs(compose(parse(["-m", *job, *words])), run_elsewhere=True)


def test_what_slurm_would_refuse_is_found_before_anything_is_submitted(
    folder: Path, slurm: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for word, named in {
        "cluster.partition=nowhere": "partition=nowhere",
        "cluster.cpus=9999": "cpus_per_task=9999",
    }.items():
        assert main(["train", "-m", *RUN, *SLURM, "sweep_dir=sweep", word]) == 2
        message = capfd.readouterr().err
        assert "Slurm does not take these jobs" in message and named in message and message.count("\n") == 1
    assert not (folder / "sweep").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["cluster=slurm"], ["cluster=slurm", "without -m"]),
        (["hydra/launcher=submitit_slurm"], ["hydra/launcher=submitit_slurm", "without -m"]),
        (["-m", "cluster=slurm,local"], ["cannot be swept"]),
        (["-m", "cluster=slrm"], ["cluster=slrm", "'slurm'", "torchrun"]),
        (["-m", "cluster=slurm", "cluster.time=soon"], ["cluster.time=soon", "minutes"]),
        (["-m", "cluster=slurm", "cluster.gpus=-1"], ["cluster.gpus=-1", "at least 0"]),
        (["-m", "cluster=slurm", "cluster.tim=5"], ["cluster.tim", "'cluster.time'"]),
        (["-m", "cluster=slurm", "resume=never"], ["resume=never", "cluster.requeue=0"]),
        (["-m", "cluster=slurm", "batch_size=100000"], ["batch_size=100000"]),
        (["-m", "cluster=slurm", "seed=1,2"], ["sbatch", "PATH"]),
    ],
)
def test_a_mistake_is_found_where_there_is_no_slurm(
    words: list[str],
    named: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["train", *RUN, *words]) == 2
    message = capsys.readouterr().err
    assert all(part in message for part in named) and message.count("\n") == 1, message
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_message_says_how_to_install_it(folder: Path) -> None:
    (folder / "hydra_plugins").mkdir()  # hides what is installed
    (folder / "hydra_plugins" / "__init__.py").touch()
    hiding = os.pathsep.join([str(folder), *filter(None, sys.path)])
    code, _, errors = end(train(folder, "-m", "cluster=slurm", PYTHONPATH=hiding))
    assert code == 2 and "pip install '.[slurm]'" in errors and errors.count("\n") == 1, errors


def test_a_job_asks_for_what_its_own_k_needs() -> None:
    jobs = compose(parse(["-m", "cluster=slurm", "k=1,4", "device=auto,cpu"])).jobs
    asked = [[job.launcher[key] for key in ("gpus_per_node", "cpus_per_task", "mem_gb")] for job in jobs]
    assert asked == [[1, 2, 8], [None, 2, 8], [4, 8, 32], [None, 8, 32]]
    (job,) = compose(parse(["-m", "cluster=slurm", "k=4", "devices=[0,1]", "cluster.time=90"])).jobs
    assert (job.launcher["gpus_per_node"], job.launcher["tasks_per_node"]) == (2, 1)
    assert (job.launcher["timeout_min"], job.config["max_time"]) == (90, 89)


def test_where_a_job_runs_is_not_in_the_name_of_its_folder() -> None:
    words = ["-m", "method=fr", "sweep_dir=sweep"]
    here = compose(parse(words)).jobs[0].config["run_dir"]
    assert compose(parse([*words, "cluster=slurm", "cluster.time=5"])).jobs[0].config["run_dir"] == here
    assert here.endswith("sweep/method=fr")


@pytest.mark.parametrize(
    ("state", "code"),
    [
        *[(state, 75) for state in ("CANCELLED", "NODE_FAIL", "PREEMPTED", "TIMEOUT")],
        *[(state, 1) for state in ("BOOT_FAIL", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", None)],
    ],
)
def test_a_job_without_a_last_word_ended_as_slurm_says(
    state: str | None, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = [None, {"12_0": "RUNNING"}, {"12_0": state} if state else {}]
    monkeypatch.setattr(slurm_launcher, "job_states", lambda: answers.pop(0) if len(answers) > 1 else answers[0])
    for name in ("POLL_S", "ASK_SLURM_S", "LAST_WORD_S"):
        monkeypatch.setattr(slurm_launcher, name, 0.001)
    log = OutcomeLog(None, 1)
    job = slurm_launcher.Submitted(Outcome(0, [], str(tmp_path)), "12_0", tmp_path / "log")
    slurm_launcher.follow([job], log)
    (outcome,) = log.read()
    assert outcome.exit_code == code and outcome.state == ("interrupted" if code == 75 else "failed")
    assert f"ended by Slurm ({state or 'gone'})" in outcome.message


def test_a_job_that_goes_back_into_the_queue_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It says that it was interrupted, waits, runs again, and Slurm has it no more before its last word is there."""
    log = OutcomeLog(tmp_path, 1)
    job = slurm_launcher.Submitted(Outcome(0, [], str(tmp_path)), "12_0", tmp_path / "log")

    def said(state: str) -> None:
        own = Outcome(0, [], str(tmp_path))
        own.finish(0.25) if state == "finished" else own.fail("stopped by SIGUSR2", 75)
        OutcomeLog(tmp_path).add(own)

    story = iter(["RUNNING", "interrupted", "RUNNING", "PENDING", "RUNNING", "COMPLETED", "finished"])

    def job_states() -> dict[str, str]:
        step = next(story)
        if step in ("interrupted", "finished"):
            said(step)
            step = next(story, "COMPLETED")
        return {"12_0": step}

    monkeypatch.setattr(slurm_launcher, "job_states", job_states)
    for name in ("POLL_S", "ASK_SLURM_S"):
        monkeypatch.setattr(slurm_launcher, name, 0.001)
    slurm_launcher.follow([job], log)
    (outcome,) = log.read()
    assert (outcome.state, outcome.best_test_error) == ("finished", 0.25) and not list(story)


def test_an_interrupted_job_that_slurm_does_not_run_again_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = OutcomeLog(None, 1)
    outcome = Outcome(0, [], str(tmp_path))
    outcome.fail("stopped by SIGTERM", 75)
    log.add(outcome)
    monkeypatch.setattr(slurm_launcher, "job_states", lambda: {"12_0": "CANCELLED"})
    for name in ("POLL_S", "ASK_SLURM_S"):
        monkeypatch.setattr(slurm_launcher, name, 0.001)
    slurm_launcher.follow([slurm_launcher.Submitted(Outcome(0, [], str(tmp_path)), "12_0", tmp_path / "log")], log)
    assert [each.message for each in log.read()] == ["stopped by SIGTERM"]


def fake_slurm(folder: Path, **answers: str) -> str:
    """A folder for PATH with Slurm's commands, each of which does what its script says."""
    (folder / "bin").mkdir()
    for name in ("sbatch", "srun", "scontrol", "squeue"):
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{answers.get(name, '')}\n")
        (folder / "bin" / name).chmod(0o755)
    return str(folder / "bin")


def test_what_slurm_says_of_jobs_is_read_by_their_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = "case \"$*\" in *--array*--states=all*) echo '12_0 RUNNING'; echo '12_1 OUT_OF_MEMORY'; echo;; esac"
    monkeypatch.setenv("PATH", fake_slurm(tmp_path, squeue=squeue))
    assert job_states() == {"12_0": "RUNNING", "12_1": "OUT_OF_MEMORY"}
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert job_states() is None


@pytest.mark.parametrize(
    ("answers", "named"),
    [
        ({"squeue": "echo 7_0 COMPLETED; echo 7_1 PENDING; echo 8_0 RUNNING"}, "queue (7_1);"),
        ({"sbatch": "echo 'allocation failure: too many CPUs' >&2; exit 1"}, "these jobs: too many CPUs. Asked for: "),
        ({"sbatch": "echo 'sbatch: error: no such partition' >&2; exit 1"}, "these jobs: no such partition. Asked"),
        ({"sbatch": "exit 1"}, "these jobs: no reason given. Asked for: cpus_per_task=1, mem_gb=1, timeout_min=20."),
        ({"squeue": "echo 7_0 COMPLETED; echo 8_0 RUNNING"}, None),
    ],
)
def test_slurm_is_asked_before_anything_is_submitted(
    answers: dict[str, str], named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", fake_slurm(tmp_path, **answers))
    for name in ("7_0", "7_1"):
        (tmp_path / "sweep" / ".submitit" / name).mkdir(parents=True)
    (job,) = compose(parse(["-m", *RUN, *SLURM, f"sweep_dir={tmp_path / 'sweep'}"])).jobs
    with contextlib.nullcontext() if named is None else pytest.raises(ConfigError, match=re.escape(named)):
        slurm_launcher.check_submission([job.launcher], tmp_path / "sweep")


def test_what_is_not_finished_is_submitted_as_an_array_for_each_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """To a Slurm that takes jobs and then knows nothing of them."""
    for name in ("POLL_S", "ASK_SLURM_S", "LAST_WORD_S"):
        monkeypatch.setattr(slurm_launcher, name, 0.001)
    submitted = tmp_path / "submitted"
    sbatch = f"[ $1 = --test-only ] || {{ echo . >> {submitted}; echo Submitted batch job $(wc -l < {submitted}); }}"
    monkeypatch.setenv("PATH", os.pathsep.join([fake_slurm(tmp_path, sbatch=sbatch), os.environ["PATH"]]))
    sweep = [word for word in RUN if word != "k=2"]
    sweep += ["transport=serial", "max_steps=2", f"sweep_dir={tmp_path / 'sweep'}"]
    assert main(["train", "-m", *sweep, "k=2", "seed=0"]) == 0
    assert main(["train", "-m", *sweep, "cluster=slurm", "k=2,1", "seed=0,1"]) == 1
    output = capfd.readouterr().out
    assert "In Slurm's queue: 3 of 4 jobs, as 1, 2." in output
    table = output.rpartition("\njob  state")[2].splitlines()[1:5]
    assert [line.split()[1] for line in table] == ["finished", "failed", "failed", "failed"]
    assert output.count("ended by Slurm (gone); see ") == 6  # each as it happened and below the table
    never = ["resume=never", "cluster.requeue=0"]
    assert main(["train", "-m", *sweep, "cluster=slurm", *never, "k=2", "seed=0"]) == 2
    assert "resume=never starts in a new directory alone" in capfd.readouterr().err
    (status,) = (tmp_path / "sweep").glob("*/status.json")
    status.write_text(status.read_text().replace('"finished"', '"interrupted"'))
    assert main(["train", "-m", *sweep, "cluster=slurm", "k=2", "seed=0"]) == 1
    assert "In Slurm's queue: 1 of 1 jobs, as 3." in capfd.readouterr().out


@pytest.mark.parametrize(
    ("cluster", "refused"),
    [
        (None, None),
        ({"name": "mine"}, None),
        ({"name": "slurm", "time": 1, "gpus": 0, "cpus": 1, "memory_gb": 1, "requeue": 0}, None),
        ({"name": "slurm", "time": 5, "gpus": None, "cpus": None, "memory_gb": None, "requeue": 3}, None),
        ({"name": "slurm", "time": 60.0}, None),
        ({"name": "slurm", "time": float("inf")}, "cluster.time=inf: must be an integer of at least 1 (minutes)."),
        ({"name": "slurm", "time": 1.5}, "cluster.time=1.5: must be an integer of at least 1 (minutes)."),
        ({"name": "slurm", "time": None}, "cluster.time=None: must be an integer of at least 1 (minutes)."),
        ({"name": "slurm", "requeue": None}, "cluster.requeue=None: must be an integer of at least 0."),
        ({"name": "slurm", "memory_gb": 0}, "cluster.memory_gb=0: must be an integer of at least 1, or null."),
        ({"time": 5}, "choose a preset with cluster=NAME"),
        ("mine", "cluster=mine: choose a preset with cluster=NAME"),
    ],
)
def test_what_may_be_asked_of_a_cluster(cluster: Any, refused: str | None) -> None:
    with contextlib.nullcontext() if refused is None else pytest.raises(ConfigError, match=re.escape(refused)):
        check_cluster(cluster)


def test_a_run_that_never_goes_on_may_be_sent_where_it_is_not_requeued() -> None:
    (job,) = compose(parse(["-m", *RUN, *SLURM, "resume=never", "cluster.requeue=0"])).jobs
    check_launcher(job.config, job.launcher, job.launcher["_target_"])


@pytest.mark.parametrize(("minutes", "saves_after"), [(90, 89), (2, 1), (1, 0.5), ("soon", None)])
def test_a_run_saves_itself_a_minute_before_the_wall_and_never_at_once(
    minutes: int | str, saves_after: float | None
) -> None:
    assert before_the_wall(minutes) == saves_after
