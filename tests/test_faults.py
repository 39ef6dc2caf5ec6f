"""Bad days, with the real thing done to the real program: what it says, how it exits, and that nothing stays alive."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import call, read_records, tiny_config, train_here
from programs import Forked

from fr_bench.checkpoints.files import whole_folders
from fr_bench.errors import Diverged
from fr_bench.launching import supervisor
from fr_bench.launching.launch import as_told
from fr_bench.processes.events import InOrder, first_of_own

# A run that would go on for hours: three modules, each in its own process.
ENDLESS = ["train", "model=mlp", "dataset=synthetic", "k=3", "batch_size=64", "epochs=1000000"]
ENDLESS += ["dataset.height=8", "dataset.width=8", "wandb.mode=disabled", "partition=equal"]
ENDLESS_BENCH = ["bench", "model=mlp", "bench.k=[1]", "bench.methods=[bp]", "bench.rounds=1000000"]
ENDLESS_BENCH += ["dataset.height=8", "dataset.width=8"]
AT_MOST_S = 5.0  # for the processes of a program that has ended
ENDS_WITHIN_S = 30.0  # a checkpoint is synced, on a disk that others may keep busy


class RunDirectory:
    """What a run leaves, and the processes of its modules."""

    def __init__(self, path: Path) -> None:
        self.run_dir = path

    def num_records(self) -> int:
        path = self.run_dir / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def status(self) -> dict:
        return json.loads((self.run_dir / "status.json").read_text())

    def records(self) -> list[dict]:
        whole = (self.run_dir / "metrics.jsonl").read_text().rpartition("\n")[0]  # the next one may be on its way
        return [json.loads(line) for line in whole.splitlines()]

    def modules(self) -> dict[int, int]:
        """The processes that are alive by the module they train: each writes its rank_<k>.log."""
        found = {}
        for pid, *_ in living_processes():
            with contextlib.suppress(OSError):  # it has just ended
                log = Path(f"/proc/{pid}/fd/1").resolve()
                if log.parent == self.run_dir.resolve() and log.name.startswith("rank_"):
                    found[int(log.stem.removeprefix("rank_"))] = pid
        return found

    def module(self, k: int) -> int:
        return self.modules()[k]


class Run(RunDirectory):
    """The program in a process group of its own, past its first logged step."""

    process: subprocess.Popen[str] | Forked

    def __init__(self, folder: Path, *words: str, nohup: bool = False, forked: bool = True) -> None:
        """``forked``: or started as users start it."""
        super().__init__(folder / "run")
        words = (*ENDLESS, f"run_dir={self.run_dir}", "log_every=1", *words)
        # What a shell does for `nohup ... &` in a script: both signals ignored, and inherited. These tests themselves
        # may have been started so.
        both = (signal.SIGINT, signal.SIGHUP)
        ignored = both if nohup else ()
        if forked:
            self.process = Forked(list(words), folder, leads_session=True, ignored=ignored)
        else:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fr_bench", *words], cwd=folder, start_new_session=True, text=True,
                stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONFAULTHANDLER": "1"},
                preexec_fn=lambda: [signal.signal(n, signal.SIG_IGN if n in ignored else signal.SIG_DFL) for n in both],
            )  # fmt: skip
        wait_until(lambda: self.process.poll() is not None or self.num_records() > 3, 60)

    def group(self) -> list[int]:
        """Every process of the program that is alive."""
        return [each.pid for each in living_processes() if each.session == self.process.pid]

    def end(self) -> tuple[int, str]:
        """Exit code and stderr; fails if the program does not end, or leaves a process behind."""
        try:
            _, stderr = self.process.communicate(timeout=ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            raise AssertionError(f"it does not end:\n{self.process.communicate()[1]}") from None
        assert wait_until(lambda: not self.group(), AT_MOST_S), "processes are left alive"
        return self.process.returncode, stderr


def run_here(folder: Path, *words: str, meanwhile: Callable[[RunDirectory], object] | None = None) -> RunHere:
    """The program in this process, which has paid for the imports and the server of processes: its modules are
    processes as ever. For what befalls those; what befalls the program itself needs :class:`Run`.

    Args:
        meanwhile: called in another thread, past the first logged step.
    """
    run = RunHere(folder / "run")

    def befall() -> None:
        wait_until(lambda: run.has_ended or run.num_records() > 3, 60)
        if meanwhile is not None and not run.has_ended:
            meanwhile(run)

    thread = threading.Thread(target=befall)
    thread.start()
    done = call(folder, *ENDLESS, "console=off", f"run_dir={run.run_dir}", "log_every=1", *words)
    run.code, run.stderr, run.has_ended = done.returncode, done.stderr, True
    run.leaves_processes = not wait_until(lambda: not run.modules(), AT_MOST_S)
    thread.join()
    return run


class RunHere(RunDirectory):
    """What :func:`run_here` ran."""

    code: int
    stderr: str
    leaves_processes: bool
    has_ended = False

    def end(self) -> tuple[int, str]:
        assert not self.leaves_processes, "processes are left alive"
        return self.code, self.stderr


class Process(NamedTuple):
    pid: int
    parent: int
    session: int


def living_processes() -> Iterator[Process]:
    """Every process of the machine that is alive."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":  # its state
                yield Process(int(entry.name), int(fields[1]), int(fields[3]))


def wait_until(condition: Callable[[], object], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start_one(*words: str, **how: bool) -> Run:
        runs.append(Run(tmp_path, *words, **how))
        return runs[-1]

    yield start_one
    for run in runs:
        for pid in run.group():
            os.kill(pid, signal.SIGKILL)
        run.process.wait()


def bad_day(folder: Path, what: str) -> list[str]:
    """The words for a run whose module 2 has a bad day in its 20th forward or soon after; see tiny_models.BadDay."""
    (folder / "mine" / "model").mkdir(parents=True)
    model = f"_target_: tiny_models.bad_day\nname: bad_day\nwhat: {what}\nat: 20\n"
    (folder / "mine" / "model" / "bad_day.yaml").write_text(model)
    return ["--config-dir", "mine", "model=bad_day", "partition=[1,2]"]


@pytest.mark.parametrize(
    ("k", "transport", "when"),
    [(1, "ipc", None), (2, "ipc", "play"), (2, "gloo", "learn"), (2, "ipc", "evaluation")],
)
def test_a_module_that_is_killed_ends_the_run_and_is_named(
    tmp_path: Path, k: int, transport: str, when: str | None
) -> None:
    if when is None:
        run = run_here(tmp_path, f"transport={transport}", meanwhile=lambda run: os.kill(run.module(k), signal.SIGKILL))
    else:  # it does it itself, a few steps on
        run = run_here(tmp_path, f"transport={transport}", *bad_day(tmp_path, f"killed in {when}"))
    code, stderr = run.end()
    assert code == 1
    assert stderr.startswith(f"fr-bench: module {k} was killed by SIGKILL") and "in step" in stderr
    assert "Traceback" not in stderr and stderr.count("\n") == 1
    status = run.status()
    assert (status["state"], status["module"], status["exit_code"]) == ("failed", k, 1)
    assert len(run.records()) > 3 and json.loads((run.run_dir / "summary.json").read_text())["state"] == "failed"


def twice(pid: int, number: int) -> None:
    """As `timeout` does: to its child, and then to the group of both. That is one signal, not haste."""
    os.kill(pid, number)
    os.kill(pid, number)


@pytest.mark.parametrize(
    ("kill", "number", "code"),
    [
        (os.killpg, signal.SIGINT, 130),  # Ctrl-C reaches the whole group
        (os.killpg, signal.SIGTERM, 75),  # and so does what a cluster sends
        (twice, signal.SIGTERM, 75),
        (os.kill, signal.SIGHUP, 75),
    ],
)
def test_a_signal_ends_the_run_cleanly(start: Callable[..., Run], kill: Callable, number: int, code: int) -> None:
    to_all = kill is os.killpg
    run = start("transport=gloo" if to_all else "transport=ipc", forked=not to_all)
    kill(run.process.pid, number)
    exit_code, stderr = run.end()
    assert exit_code == code and "Traceback" not in stderr
    stopped = f"fr-bench: stopped by {signal.Signals(number).name} after step "
    assert stderr.startswith(stopped) and f"; run_dir={run.run_dir} goes on after step " in stderr
    assert stderr.count("\n") == 1
    assert (run.status()["state"], run.status()["exit_code"]) == ("interrupted", code)
    assert len(run.records()) > 3 and whole_folders(run.run_dir / "checkpoints")


def begun(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The program in a session of its own; what it says on stderr is kept."""
    return subprocess.Popen(
        [sys.executable, "-m", "fr_bench", *words], cwd=folder, text=True, start_new_session=True,
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("number", "command"),
    [(signal.SIGTERM, ENDLESS), (signal.SIGUSR2, ENDLESS), (signal.SIGTERM, ENDLESS_BENCH)],
)
def test_a_signal_before_the_run_has_begun_is_answered_too(number: int, command: list[str], tmp_path: Path) -> None:
    """While it imports and plans, which takes seconds."""
    program = begun(tmp_path, *command, f"run_dir={tmp_path / 'run'}")

    def is_ready() -> bool:
        """Whether it has a handler for the signal, as the kernel says."""
        status = Path(f"/proc/{program.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught >> (number - 1) & 1) or program.poll() is not None

    assert wait_until(is_ready, 60)
    program.send_signal(number)
    _, stderr = program.communicate(timeout=ENDS_WITHIN_S)
    name = signal.Signals(number).name
    assert (program.returncode, stderr) == (75, f"fr-bench: stopped by {name} while no run was under way\n")
    assert list(tmp_path.iterdir()) == []
    assert wait_until(lambda: program.pid not in {each.session for each in living_processes()}, AT_MOST_S)


def test_a_signal_after_the_end_changes_no_exit_code() -> None:
    """While the interpreter ends, which takes some tenths of a second."""
    late = "atexit.register(lambda: [os.kill(os.getpid(), number) for number in THAT_STOP])"
    program = (
        "import atexit, os, sys\nfrom fr_bench.cli import console\nfrom fr_bench.processes.signals import THAT_STOP\n"
        f"{late}\nsys.argv = ['fr-bench', '--version']\nsys.exit(console())"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_bench_that_is_stopped_says_where_its_numbers_are(tmp_path: Path) -> None:
    program = begun(tmp_path, *ENDLESS_BENCH, f"run_dir={tmp_path / 'b'}")
    path = tmp_path / "b" / "bench.json"
    assert wait_until(lambda: path.exists() or program.poll() is not None, 60)
    program.send_signal(signal.SIGTERM)
    _, stderr = program.communicate(timeout=ENDS_WITHIN_S)
    assert (program.returncode, stderr) == (75, f"fr-bench: stopped by SIGTERM; what was measured is in {path}\n")
    assert [row["words"] for row in json.loads(path.read_text())["rows"]] == ["bp"]


def test_nohup_survives_the_end_of_the_terminal_and_can_be_stopped_too(start: Callable[..., Run]) -> None:
    """Both signals were ignored when it started."""
    run = start(nohup=True)
    before = len(run.records())
    os.kill(run.process.pid, signal.SIGHUP)
    assert wait_until(lambda: len(run.records()) > before + 20, 20) and run.process.poll() is None
    os.kill(run.process.pid, signal.SIGINT)
    assert run.end()[0] == 130


def test_no_module_outlives_a_parent_that_is_killed(start: Callable[..., Run]) -> None:
    """Not even where the signals are ignored with which a library would end it."""
    run = start(nohup=True)
    assert len(run.group()) >= 4
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(AT_MOST_S)
    assert wait_until(lambda: not run.group(), AT_MOST_S)
    assert len(run.records()) > 3  # every line is whole


def test_an_exception_in_a_module_is_the_first_cause_not_its_neighbours_broken_pipes(tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    model = "_target_: tiny_models.faulty\nname: faulty\nat: 20\n"
    (tmp_path / "mine" / "model" / "faulty.yaml").write_text(model)
    run = run_here(tmp_path, "--config-dir", "mine", "model=faulty", "transport=gloo", "method=bp")
    code, stderr = run.end()
    assert code == 1
    assert stderr.startswith("fr-bench: module 2 failed in step 18: ArithmeticError: the bug in block 'faulty' (")
    assert re.search(r"\(\S*tiny_models.py:\d+\); see \S*rank_2.log$", stderr)
    assert stderr.count("\n") == 1
    assert "Traceback" in (run.run_dir / "rank_2.log").read_text()  # where whoever wants more finds it


@pytest.mark.parametrize("transport", ["ipc", "serial"])
@pytest.mark.parametrize(
    ("what", "how"), [("exit", "failed in step 10: SystemExit"), ("leave", "ended with exit code 0")]
)
def test_a_module_that_leaves_as_if_all_were_well_has_not_done_its_part(
    what: str, how: str, transport: str, tmp_path: Path
) -> None:
    run = run_here(tmp_path, "hang_timeout=60", f"transport={transport}", *bad_day(tmp_path, what))
    code, stderr = run.end()
    module = 1 if transport == "serial" else 2  # one process, which has the name of its first
    assert code == 1 and stderr.count("\n") == 1, stderr
    assert stderr.startswith(f"fr-bench: module {module} {how}")
    assert run.status()["state"] == "failed"


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EMFILE, "Too many open files: `ulimit -n` says how many"),
        (errno.EAGAIN, "the system gives no more processes, threads or memory"),
        (errno.ENOSPC, "{folder}: cannot be written (No space left on device)"),
    ],
)
def test_what_the_system_refuses_is_not_always_a_full_disk(number: int, told: str, tmp_path: Path) -> None:
    assert str(as_told(OSError(number, os.strerror(number)), tmp_path)).startswith(told.format(folder=tmp_path))


@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_run_directory_that_is_moved_away_ends_the_run_and_is_not_made_again(
    is_made_again: bool, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"

    def move(run: RunDirectory) -> None:
        run.run_dir.rename(moved)
        if is_made_again:
            run.run_dir.mkdir()

    run = run_here(tmp_path, "checkpoint.minutes=0.02", meanwhile=move)
    code, stderr = run.end()
    gone = run.run_dir / "status.json" if is_made_again else run.run_dir
    assert code == 1 and stderr.count("\n") == 1, stderr
    assert stderr.startswith(f"fr-bench: {gone}: was removed or moved away while the run was going on")
    assert run.run_dir.exists() == is_made_again and not list(run.run_dir.glob("*.*"))
    assert len(RunDirectory(moved).records()) > 3  # all of them whole


def test_a_run_that_is_over_before_it_looks_finds_its_directory_gone_too(tmp_path: Path) -> None:
    """Nothing of it, final weights and summary included, is written elsewhere."""
    run = run_here(
        tmp_path, "epochs=30", "checkpoint.minutes=null", meanwhile=lambda run: run.run_dir.rename(tmp_path / "moved")
    )
    code, stderr = run.end()
    assert code == 1 and stderr.count("\n") == 1, stderr
    assert stderr.startswith(f"fr-bench: {run.run_dir}: was removed or moved away while the run was going on")
    assert not run.run_dir.exists()


def test_a_sweep_that_nobody_hears_ends_with_a_signal_all_the_same(tmp_path: Path) -> None:
    """As when the connection to it is gone; and a socket, as a service's output is, says so otherwise than a pipe."""
    ours, theirs = socket.socketpair()
    words = [*ENDLESS, "-m", "seed=0,1", "log_every=1", "console=plain", f"sweep_dir={tmp_path}"]
    with theirs:
        process = Forked(words, tmp_path, output=theirs)
    with ours:
        shown = b""
        while b"step 3 " not in shown:
            received = ours.recv(65536)
            assert received, shown.decode()
            shown += received
    (metrics,) = tmp_path.glob("*/metrics.jsonl")
    size = metrics.stat().st_size
    goes_on = wait_until(lambda: metrics.stat().st_size > size + 5000, ENDS_WITHIN_S)
    process.send_signal(signal.SIGTERM)
    process.wait(ENDS_WITHIN_S)
    assert process.returncode == 75 and goes_on
    jobs = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    assert [(job["number"], job["state"], job["exit_code"]) for job in jobs] == [(0, "interrupted", 75)]


def test_a_log_tells_where_the_next_attempt_begins(tmp_path: Path) -> None:
    log, words = tmp_path / "run" / "rank_2.log", bad_day(tmp_path, "exit")
    for attempt in (1, 2):
        run_here(tmp_path, *words)
        assert log.read_text().count("SystemExit") == attempt
        assert len(re.findall(r"^--- \S+ \S+: the run goes on ---$", log.read_text(), re.MULTILINE)) == attempt - 1


def test_a_log_that_cannot_be_opened_ends_the_run_in_one_line(tmp_path: Path) -> None:
    log = tmp_path / "run" / "rank_2.log"
    log.mkdir(parents=True)
    code, stderr = run_here(tmp_path).end()
    assert code == 1 and stderr == (
        f"fr-bench: {log}, for what a process prints: Is a directory; remove or rename it\n"
    )


def test_a_process_that_does_not_even_end_when_killed_is_named_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that waits for a device; what stands in its place here is a process that nobody kills."""
    monkeypatch.setattr(supervisor, "ENDS_WITHIN_S", 0.2)
    processes = supervisor.Supervisor(lambda *_: [], 1, tmp_path, needs_store=False)
    stuck = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)
    stuck.start()
    kill = stuck.kill
    monkeypatch.setattr(stuck, "kill", lambda: None)
    processes._started.append(supervisor._Started(2, stuck, multiprocessing.Pipe()[0]))
    processes.stop()
    assert f"fr-bench: process {stuck.pid} of module 2 does not end: " in capsys.readouterr().err
    kill()
    stuck.join()


def test_a_run_that_diverges_says_where_and_keeps_what_was_logged(tmp_path: Path) -> None:
    run = run_here(tmp_path, "optimizer.lr=1e30", "method=fr", "log_every=2", "max_steps=1000")
    code, stderr = run.end()
    assert code == 1
    assert stderr.startswith("fr-bench: diverged at step ") and " in module " in stderr and stderr.count("\n") == 1
    status = run.status()
    assert status["state"] == "failed" and status["error"].startswith("diverged at step")
    assert f"in module {status['module']}" in status["error"]


def test_a_gradient_that_is_not_a_number_is_found_where_and_when_it_came_up(tmp_path: Path) -> None:
    """Not in the modules below, to which it spreads, and not when it was looked for."""
    run = run_here(tmp_path, "log_every=7", *bad_day(tmp_path, "gradient"))
    code, stderr = run.end()
    assert code == 1 and stderr.count("\n") == 1
    # Two forwards of the rehearsal, one of step 1, two of each that follows.
    assert stderr.startswith("fr-bench: diverged at step 10 in module 2: its loss or gradient is not finite")
    assert run.status()["module"] == 2
    assert [record["step"] for record in run.records()] == [7]


def test_a_module_without_memory_is_told_with_the_table_and_what_lowers_it(tmp_path: Path) -> None:
    run = run_here(tmp_path, "method=ddg", *bad_day(tmp_path, "torch"))
    code, stderr = run.end()
    first, title, header, *rows, last = stderr.splitlines()
    assert code == 1 and "Traceback" not in stderr
    assert first.startswith("fr-bench: module 2 ran out of memory in step 18, on cpu: ")
    assert "DefaultCPUAllocator: can't allocate memory" in first
    assert title == "predicted with a full pipe, MiB:" and header.split()[:3] == ["module", "device", "parameters"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "all"]
    for remedy in ("a batch_size below 64", "more modules than k=3", "method=fr", "memory_limit_gb"):
        assert remedy in last
    status = run.status()
    assert (status["state"], status["module"]) == ("failed", 2) and status["error"] in stderr
    assert "Traceback" in (run.run_dir / "rank_2.log").read_text()


def test_in_one_process_too_the_first_module_that_diverged_is_named_not_those_below_it(tmp_path: Path) -> None:
    model = {"_target_": "tiny_models.bad_day", "name": "bad_day", "what": "gradient", "at": 8}
    with pytest.raises(Diverged) as caught:
        train_here(tiny_config("fr", 3, model=model, log_every=7), tmp_path / "run")
    assert (caught.value.step, caught.value.module) == (4, 2)
    assert read_records(tmp_path / "run") == []  # nothing was evaluated after step 5


def test_events_of_several_pipes_come_in_the_order_in_which_they_happened() -> None:
    def happened(until: int) -> list[int]:
        return [event["time_ns"] for event in waiting.take(until)]

    waiting = InOrder()
    for time_ns in (5, 2, 9, 3):
        waiting.add({"event": "train", "time_ns": time_ns})
    assert happened(until=5) == [2, 3, 5] and waiting
    waiting.add({"event": "train", "time_ns": 7})
    assert happened(until=10) == [7, 9] and not waiting


def test_what_diverges_after_another_error_is_not_its_cause() -> None:
    def error(time_ns, order=None, lost=False):
        return {"time_ns": time_ns, "peer_lost": lost, "diverged_order": order}

    assert first_of_own([error(3, (1, 0)), error(2), error(1, lost=True)]) == error(2)
    assert first_of_own([error(2, (5, 0)), error(3, (1, 0)), error(4)]) == error(3, (1, 0))


def test_where_nobody_tells_more_the_first_that_lost_a_neighbour_is_named(tmp_path: Path) -> None:
    lost = {
        "peer_lost": True,
        "diverged_order": None,
        "is_config": False,
        "is_expected": False,
        "message": "it is gone",
    }
    errors = [{**lost, "time_ns": time_ns, "module": module} for time_ns, module in ((5, 1), (3, 2), (4, 3))]
    processes = supervisor.Supervisor(lambda *_: [], 3, tmp_path, needs_store=False)
    told = f"module 2 failed before the first step: it is gone; see {tmp_path / 'rank_2.log'}"
    assert str(processes._first_cause(errors)) == told


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("EMFILE", "`ulimit -n`"), ("ENFILE", "`ulimit -n`"),
        ("EAGAIN", "gives no more processes, threads or memory"),
        ("ENOMEM", "gives no more processes, threads or memory"),
        ("ENOSPC", "cannot be written"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_told_by_its_number(number: str, words: str, tmp_path: Path) -> None:
    code = getattr(errno, number)
    assert words in str(as_told(OSError(code, os.strerror(code)), tmp_path))
