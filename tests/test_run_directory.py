"""The run directory: one owner, whole files, strict JSON."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fr_bench.errors import ConfigError, RunFailed, TakenOver
from fr_bench.records import run_directory
from fr_bench.records.run_directory import RunDirectory, rank_log


def claimed(path: Path) -> RunDirectory:
    run = RunDirectory(path)
    assert run.create() is None
    return run


def status_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "status.json").read_text())


def claim_at(path: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    try:
        results.put("won" if RunDirectory(path).create() is None else "finished")
    except ConfigError as error:
        results.put(str(error))


def test_of_processes_that_claim_one_folder_at_once_exactly_one_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    path = tmp_path / "run"
    processes = [context.Process(target=claim_at, args=(path, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert outcomes.count("won") == 1
    assert sum("a run is going on there" in outcome for outcome in outcomes) == 3
    assert status_of(path)["pid"] in [process.pid for process in processes]


def test_a_new_run_is_running_and_says_where(tmp_path: Path) -> None:
    before = time.time()
    claimed(tmp_path / "deep" / "run")
    status = status_of(tmp_path / "deep" / "run")
    assert status["state"] == "running" and status["pid"] == os.getpid() and status["host"]
    assert before <= status["started"] == status["heartbeat"] <= time.time()
    assert status["error"] is status["module"] is status["exit_code"] is None


def test_an_empty_folder_that_hydra_made_is_taken(tmp_path: Path) -> None:
    claimed(tmp_path)
    assert status_of(tmp_path)["pid"] == os.getpid()


def test_a_finished_run_is_reported_with_its_summary_and_left_alone(tmp_path: Path) -> None:
    run = claimed(tmp_path)
    run.write_summary({"best_test_error": 0.01})
    run.set_status("finished", exit_code=0)
    before = (tmp_path / "status.json").read_bytes()
    assert RunDirectory(tmp_path).create() == {"best_test_error": 0.01}
    assert (tmp_path / "status.json").read_bytes() == before


@pytest.mark.parametrize(
    ("state", "told"), [("running", "a run is going on"), ("failed", "failed"), ("interrupted", "was interrupted")]
)
def test_a_folder_with_an_unfinished_run_is_refused_with_what_to_do(tmp_path: Path, state: str, told: str) -> None:
    claimed(tmp_path).set_status(state)
    before = (tmp_path / "status.json").read_bytes()
    with pytest.raises(ConfigError, match=f"{told}.*choose another run_dir"):
        RunDirectory(tmp_path).create()
    assert (tmp_path / "status.json").read_bytes() == before


def test_a_run_that_was_killed_is_recognised_by_its_silence(tmp_path: Path) -> None:
    claimed(tmp_path)
    status = status_of(tmp_path) | {"heartbeat": time.time() - 3600}
    (tmp_path / "status.json").write_text(json.dumps(status))
    with pytest.raises(ConfigError, match=r"cut off \(3600 s without a sign of life\)"):
        RunDirectory(tmp_path).create()


def test_a_status_that_is_not_yet_written_belongs_to_a_run_that_is_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "status.json").touch()
    with pytest.raises(ConfigError, match="a run is going on there"):
        RunDirectory(tmp_path).create()
    found = RunDirectory(tmp_path).find()
    assert found is not None and found.state == "running"
    with pytest.raises(ConfigError, match="a run is going on there that has not yet said whose"):
        RunDirectory(tmp_path).refuse_if_alive(found)
    a_minute_ago = time.time() - 60
    os.utime(tmp_path / "status.json", (a_minute_ago, a_minute_ago))  # its process was killed before it wrote it
    monkeypatch.setattr(run_directory.time, "sleep", lambda _: pytest.fail("there is no sign of life to wait for"))
    RunDirectory(tmp_path).refuse_if_alive(found)


@pytest.mark.parametrize(
    ("content", "message"), [('{"state": "weird"}', "state is 'weird'"), (None, "a link that leads nowhere")]
)
def test_a_status_that_is_not_one_of_ours_is_left_alone(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    if content is None:
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"status.json: .*{message}.*choose another run_dir"):
        RunDirectory(tmp_path).find()
    assert content is None or path.read_text() == content


@pytest.mark.parametrize("name", ["status.json", "summary.json"])
def test_a_file_that_is_there_and_cannot_be_read_is_not_taken_for_none(name: str, tmp_path: Path) -> None:
    """A folder is read by nobody, the administrator included."""
    run = claimed(tmp_path)
    run.write_summary({"best_test_error": 0.01})
    run.set_status("finished", exit_code=0)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    for look in (RunDirectory(tmp_path).find, RunDirectory(tmp_path).create):
        with pytest.raises(ConfigError, match=f"{tmp_path / name}: cannot be read: Is a directory"):
            look()
    if name == "status.json":
        with pytest.raises(RunFailed, match=f"{tmp_path / name}: cannot be read: Is a directory"):
            run.set_status("failed")


def test_files_of_somebody_else_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: true\n")
    with pytest.raises(ConfigError, match=r"holds config\.yaml, which this run would overwrite"):
        RunDirectory(tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        RunDirectory(tmp_path / "file").create()
    with pytest.raises(ConfigError, match="cannot be made: Not a directory"):
        RunDirectory(tmp_path / "file" / "below").create()


def test_a_failure_is_recorded_with_its_module(tmp_path: Path) -> None:
    claimed(tmp_path).set_status("failed", error="module 2 was killed", module=2, exit_code=1)
    status = status_of(tmp_path)
    assert (status["state"], status["error"], status["module"], status["exit_code"]) == (
        "failed",
        "module 2 was killed",
        2,
        1,
    )


def test_the_heartbeat_moves_but_does_not_write_at_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = claimed(tmp_path)
    first = status_of(tmp_path)["heartbeat"]
    run.heartbeat()
    assert status_of(tmp_path)["heartbeat"] == first
    monkeypatch.setattr(run_directory.time, "time", lambda: first + 60)
    run.heartbeat()
    assert status_of(tmp_path)["heartbeat"] == first + 60
    monkeypatch.setattr(run_directory.time, "time", lambda: first - 3600)  # somebody has put the clock right
    run.heartbeat()
    assert status_of(tmp_path)["heartbeat"] == first - 3600
    assert status_of(tmp_path)["started"] == first


def test_a_process_of_this_machine_that_is_alive_keeps_its_run_however_long_it_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be stopped, or slow to start."""
    claimed(tmp_path)
    now = time.time()
    monkeypatch.setattr(run_directory.time, "time", lambda: now + 60)
    found = RunDirectory(tmp_path).find()
    assert found is not None
    with pytest.raises(ConfigError, match=f"a run is going on there .process {os.getpid()} on"):
        RunDirectory(tmp_path).refuse_if_alive(found)
    with pytest.raises(ConfigError, match=f"a run is going on there .process {os.getpid()} on"):
        RunDirectory(tmp_path).create()


def test_processes_of_another_container_with_the_same_host_name_are_known_by_their_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their numbers are others', or nobody's, here."""
    claimed(tmp_path)
    elsewhere = status_of(tmp_path) | {"pid": 2**22 + 1, "pid_namespace": "pid:[1]"}
    (tmp_path / "status.json").write_text(json.dumps(elsewhere))
    found = RunDirectory(tmp_path).find()
    assert found is not None

    def beat(_: float) -> None:
        later = {"heartbeat": elsewhere["heartbeat"] + 5}
        (tmp_path / "status.json").write_text(json.dumps(elsewhere | later))

    monkeypatch.setattr(run_directory.time, "sleep", beat)
    with pytest.raises(ConfigError, match=f"a run is going on there .process {2**22 + 1} on"):
        RunDirectory(tmp_path).refuse_if_alive(found)
    here = {key: value for key, value in elsewhere.items() if key != "pid_namespace"}  # as of an older version
    (tmp_path / "status.json").write_text(json.dumps(here))
    found = RunDirectory(tmp_path).find()
    assert found is not None
    RunDirectory(tmp_path).refuse_if_alive(found)  # of this one, and dead


def test_what_another_process_has_taken_over_is_no_longer_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = claimed(tmp_path)
    (tmp_path / "status.json").write_text(json.dumps(status_of(tmp_path) | {"pid": 7, "host": "another-machine"}))
    before = (tmp_path / "status.json").read_bytes()
    now = time.time()
    monkeypatch.setattr(run_directory.time, "time", lambda: now + 60)
    with pytest.raises(TakenOver, match="process 7 on another-machine has taken over the run"):
        run.heartbeat()
    with pytest.raises(TakenOver):
        run.set_status("failed")
    assert (tmp_path / "status.json").read_bytes() == before


def test_a_slow_start_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = claimed(tmp_path)
    first = status_of(tmp_path)["heartbeat"]
    monkeypatch.setattr(run_directory, "HEARTBEAT_S", 0.0)
    with run.beating():
        deadline = time.monotonic() + 30
        while status_of(tmp_path)["heartbeat"] == first and time.monotonic() < deadline:
            time.sleep(0.05)
    assert status_of(tmp_path)["heartbeat"] > first


def test_a_reader_never_sees_half_a_status(tmp_path: Path) -> None:
    run = claimed(tmp_path)
    done = threading.Event()

    def rewrite() -> None:
        for index in range(200):
            run.set_status("running", error="x" * (index * 50))
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    num_read = 0
    while not done.is_set():
        assert status_of(tmp_path)["state"] == "running"
        num_read += 1
    writer.join()
    assert num_read > 10
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]  # no temporary file stays


def test_the_config_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = {
        "k": 4,
        "optimizer": {"lr": 1e-5, "weight_decay": 5e-4, "foreach": None},
        "partition": [8, 18, 32],
        "dataset": {"name": "1e-5", "label": "yes", "path": "~/data: mine"},
        "freeze": [],
    }
    claimed(tmp_path).write_config(config)
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"), resolve=True) == config


def test_json_is_strict_and_its_floats_are_exact(tmp_path: Path) -> None:
    run = claimed(tmp_path)
    run.write_summary({"a": 0.1 + 0.2, "b": float("nan"), "list": [float("inf"), 1], "nested": {"c": -float("inf")}})
    text = (tmp_path / "summary.json").read_text()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    assert json.loads(text, parse_constant=refuse) == {
        "a": 0.30000000000000004,
        "b": None,
        "list": [None, 1],
        "nested": {"c": None},
    }


def test_every_file_has_its_place(tmp_path: Path) -> None:
    run = claimed(tmp_path)
    run.write_environment({"hostname": "here"})
    assert json.loads((tmp_path / "env.json").read_text()) == {"hostname": "here"}
    assert run.metrics == tmp_path / "metrics.jsonl"
    assert rank_log(tmp_path, 3) == tmp_path / "rank_3.log"
    assert run.checkpoints == tmp_path / "checkpoints"
    assert run.wandb == tmp_path / "wandb"


def test_a_process_that_has_ended_and_is_not_yet_waited_for_is_gone(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).create() is None
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    path = tmp_path / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": child.pid}))
    found = RunDirectory(tmp_path).find()
    assert found is not None
    RunDirectory(tmp_path).refuse_if_alive(found)
    child.wait()


def test_another_process_that_got_its_number_is_not_taken_for_it_whatever_it_is_called(tmp_path: Path) -> None:
    claimed(tmp_path)
    program = tmp_path / "a) b c"
    shutil.copy("/bin/sh", program)
    with subprocess.Popen([program, "-c", "read line"], stdin=subprocess.PIPE) as child:
        for age_s in (3600, 0):
            status = status_of(tmp_path) | {"pid": child.pid, "heartbeat": time.time() - age_s}
            (tmp_path / "status.json").write_text(json.dumps(status))
            found = RunDirectory(tmp_path).find()
            assert found is not None
            with pytest.raises(ConfigError, match="going on") if age_s == 0 else contextlib.nullcontext():
                RunDirectory(tmp_path).refuse_if_alive(found)


def test_of_a_status_without_a_heartbeat_nobody_is_alive(tmp_path: Path) -> None:
    claimed(tmp_path)
    status = {key: value for key, value in status_of(tmp_path).items() if key != "heartbeat"}
    (tmp_path / "status.json").write_text(json.dumps(status))  # as somebody's editor may have left it
    found = RunDirectory(tmp_path).find()
    assert found is not None
    RunDirectory(tmp_path).refuse_if_alive(found)


def test_a_status_for_which_there_is_no_second_file_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, _: str) -> None:
        raise RunFailed(f"{path}: cannot be written (No space left on device)")

    run = claimed(tmp_path)
    run.set_status("failed", error="x" * 500)
    monkeypatch.setattr(run_directory, "write_text", fail)
    run.set_status("failed", error="short")
    assert status_of(tmp_path)["error"] == "short"


@pytest.mark.parametrize("name", ["config.yaml", "env.json", "metrics.jsonl", "origin.json", "summary.json"])
def test_no_file_of_a_run_is_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine\n")
    with pytest.raises(ConfigError, match=f"holds {name}, which this run would overwrite"):
        RunDirectory(tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("key", ["pid", "host", "started"])
def test_a_run_is_taken_over_by_a_process_that_differs_in_anything(key: str, tmp_path: Path) -> None:
    """In a restarted container process numbers are the same."""
    run = RunDirectory(tmp_path)
    run.create()
    path = tmp_path / "status.json"
    status = json.loads(path.read_text())
    path.write_text(json.dumps(status | {key: "elsewhere" if key == "host" else status[key] + 1}))
    with pytest.raises(TakenOver):
        run.set_status("failed")
