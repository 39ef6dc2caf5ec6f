"""A run's processes are forked from a server, and are none the worse for it."""

from __future__ import annotations

import contextlib
import gc
import mmap
import multiprocessing
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from programs import Forked

from fr_bench.errors import RunFailed
from fr_bench.launching.signal_watch import watch_signals
from fr_bench.launching.supervisor import Supervisor
from fr_bench.processes.child import IGNORED, tidy_up
from fr_bench.processes.reporter import Reporter
from fr_bench.processes.signals import how_it_ended


@dataclass
class Look:
    """A process that tells what it finds."""

    modules: list[int]

    def run(self, reporter: Reporter) -> None:
        reporter.send(
            "found",
            module=self.modules[0],
            folder=os.getcwd(),
            variable=os.environ.get("FR_BENCH_TEST"),
            has_torch="torch._dynamo" in sys.modules,
            ignored=all(signal.getsignal(number) == signal.SIG_IGN for number in IGNORED),
            collects=gc.isenabled(),
            server=os.getppid(),
        )


@dataclass
class Lock:
    """A process in which a library makes a lock for processes, and keeps it."""

    modules: list[int]

    def run(self, reporter: Reporter) -> None:
        sys.lock = lock = multiprocessing.get_context("spawn").RLock()  # type: ignore[attr-defined]
        name = lock._semlock.name  # type: ignore[attr-defined]
        path = Path(f"/dev/shm/sem.{name.removeprefix('/')}")
        reporter.send("found", module=self.modules[0], path=path, exists=path.exists())


def look(folder: Path, num_processes: int, task: type[Look | Lock] = Look) -> list[dict[str, Any]]:
    def make(_: Any, __: int | None) -> list[Look | Lock]:
        return [task([number]) for number in range(1, num_processes + 1)]

    with watch_signals() as signals, Supervisor(make, num_processes, folder, needs_store=False) as supervisor:
        found = [event for event in supervisor.events(signals) if event and event["event"] == "found"]
    return sorted(found, key=lambda event: event["module"])


def test_each_process_has_the_folder_and_the_variables_of_this_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = set()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("FR_BENCH_TEST", name)
        for event in look(tmp_path, 2):
            assert (event["folder"], event["variable"]) == (str(tmp_path / name), name)
            assert event["has_torch"] and event["ignored"] and event["collects"]
            servers.add(event["server"])
    monkeypatch.delenv("FR_BENCH_TEST")
    assert look(tmp_path, 1)[0]["variable"] is None
    assert len(servers) == 1 and os.getpid() not in servers


@dataclass
class End:
    """A process that ends: well, in the middle of its work, or not by itself."""

    modules: list[int]
    how: str = "well"
    cannot_be_sent: Any = None

    def run(self, _: Reporter) -> None:
        if self.how == "in the middle":
            os._exit(3)
        if self.how == "never":
            time.sleep(600)


def test_a_process_that_has_ended_well_is_silent_and_does_not_hang(tmp_path: Path) -> None:
    """While others have still something to do."""
    with (
        watch_signals() as signals,
        Supervisor(lambda *_: [End([1])], 1, tmp_path, needs_store=False, hang_timeout_s=60) as supervisor,
    ):
        assert [event for event in supervisor.events(signals) if event]
        supervisor._silence._silent_s = [1000.0]
        assert supervisor._silence.hangs(0)
        supervisor._refuse_hanging()


def test_a_process_that_has_ended_well_is_not_blamed_for_another(tmp_path: Path) -> None:
    tasks = [End([1]), End([2], "in the middle")]
    told = f"module 2 ended with exit code 3 before the first step; see {tmp_path / 'rank_2.log'}"
    with watch_signals() as signals, Supervisor(lambda *_: tasks, 2, tmp_path, needs_store=False) as supervisor:
        supervisor._started[0].process.join()
        with pytest.raises(RunFailed, match=f"^{re.escape(told)}$"):
            list(supervisor.events(signals))


def test_where_one_process_cannot_be_started_those_before_it_end(tmp_path: Path) -> None:
    tasks = [End([1], "never"), End([2], cannot_be_sent=lambda: None)]
    with pytest.raises((pickle.PicklingError, AttributeError)):
        Supervisor(lambda *_: tasks, 2, tmp_path, needs_store=False)
    assert multiprocessing.active_children() == []


def test_signals_in_its_first_moment_do_not_end_the_server() -> None:
    """As a cluster sends them, to every process of a job. It takes seconds to get where it can ignore them."""
    program = """
import os
from multiprocessing import forkserver, resource_tracker
from fr_bench.processes import nursery
from fr_bench.processes.child import IGNORED
context = nursery.context()
for number in IGNORED:
    os.kill(forkserver._forkserver._forkserver_pid, number)
    os.kill(resource_tracker._resource_tracker._pid, number)
process = context.Process(target=print, args=("alive",))
process.start()
process.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_a_server_that_is_still_importing_ends_with_the_process_that_started_it() -> None:
    """As where a run is refused, or a sweep found to be finished, while the server starts."""
    program = "from fr_bench.processes import nursery; nursery.context()"
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    assert process.wait(timeout=200) == 0
    time.sleep(0.5)  # a process that was killed takes a moment to go, one that imports torch takes seconds
    assert not members_of(process.pid)


@pytest.mark.parametrize(
    ("deed", "result"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", (75, "stopped by SIGTERM while no run was under way")),
        (
            "shutil.rmtree(util.get_temp_dir()); nursery.start(context.Process(target=print))",
            (1, "as by what tidies up"),
        ),
        ("shutil.rmtree(util.get_temp_dir())", (0, "")),  # as at the end of a long run
    ],
)
def test_its_folder_goes_with_the_command_and_is_missed(deed: str, result: tuple[int, str], tmp_path: Path) -> None:
    program = f"""
import os, shutil, signal
from multiprocessing import util
from fr_bench.processes import nursery, signals
signals.catch_early()
context = nursery.context()
assert [name for name in os.listdir({str(tmp_path)!r}) if name.startswith('pymp-')]
{deed}
"""
    command = [sys.executable, "-c", program]
    variables = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=variables)
    assert done.returncode == result[0] and (result[1] in done.stderr if result[1] else not done.stderr), done.stderr
    assert not list(tmp_path.glob("pymp-*"))  # torch's compiler may have made a folder of its own meanwhile


def test_a_folder_with_too_long_a_name_for_its_socket_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    words = ["train", "model=mlp", "dataset=digits", "k=2", "wandb.mode=disabled", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-m", "fr_bench", *words], capture_output=True, text=True, timeout=200,
        env=os.environ | {"TMPDIR": str(folder)},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"TMPDIR={folder} must be a folder" in done.stderr and "and may have 75" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("partition", ["equal", "measured"])
def test_a_server_that_dies_while_it_imports_fails_the_run_in_one_line(partition: str, tmp_path: Path) -> None:
    """Before it imports anything of ours; a measured partition has said that it measures."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'multiprocessing.forkserver' in ' '.join(sys.orig_argv):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    words = ["train", "debug=fast", "k=2", f"partition={partition}", "console=off", "run_dir=run"]
    program = Forked(words, tmp_path, {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path)})
    _, told = program.communicate(timeout=200)
    assert program.returncode == 1 and told.count("\n") == (1 if partition == "equal" else 2), told
    assert "fr-bench: the server that a run's processes are forked from was killed by SIGKILL (by hand" in told


def test_a_server_that_gets_no_more_processes_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def fork():\n"
        "    raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "if 'multiprocessing.forkserver' in ' '.join(sys.orig_argv):\n"
        "    os.fork = fork\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    words = ["train", "debug=fast", "k=2", "console=off", "run_dir=run"]
    program = Forked(words, tmp_path, {**os.environ, "PYTHONPATH": path})
    _, told = program.communicate(timeout=200)
    assert program.returncode == 1 and told.count("\n") == 1, told
    assert told.startswith("fr-bench: the system gives no more processes or threads: `ulimit -u` says")


@dataclass
class Thread:
    """A process in which a library wants a thread too many."""

    modules: list[int]

    def run(self, _: Reporter) -> None:
        raise RuntimeError("can't start new thread")


def test_a_process_that_gets_no_more_threads_says_so(tmp_path: Path) -> None:
    told = r"can't start new thread \(.*\); the system gives no more .*`ulimit -u`"
    with (
        watch_signals() as signals,
        Supervisor(lambda *_: [Thread([1])], 1, tmp_path, needs_store=False) as supervisor,
        pytest.raises(RunFailed, match=told),
    ):
        list(supervisor.events(signals))


def test_a_server_that_is_killed_later_is_named_instead_of_a_module(tmp_path: Path) -> None:
    """Its modules end with it, and nobody is told how."""
    words = ["train", "debug=fast", "k=2", "transport=ipc", "epochs=1000000", "max_steps=null", "console=off"]
    run = Forked([*words, "run_dir=run"], tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(server_of(run.pid), signal.SIGKILL)
    _, told = run.communicate(timeout=100)
    assert run.returncode == 1 and told.count("\n") == 1, told
    assert "fr-bench: the server that a run's processes are forked from was killed by SIGKILL (by hand" in told


def server_of(pid: int) -> int:
    """The process number of the server that process ``pid`` has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(each) for each in children if b"forkserver" in Path(f"/proc/{each}/cmdline").read_bytes())


def test_too_few_open_files_are_told_in_one_line_and_nothing_is_left(tmp_path: Path) -> None:
    """24: for the pipes between the modules; 40: for those of the third process. Both at once: it is mostly waiting."""
    words = ["model=mlp", "dataset=digits", "k=4", "transport=ipc", "console=off", "epochs=1", "wandb.mode=disabled"]

    def start(most: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "fr_bench", "train", *words, f"run_dir={tmp_path / str(most)}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)),
        )  # fmt: skip

    for process in [start(24), start(40)]:
        _, said = process.communicate(timeout=200)
        assert process.returncode == 1 and said.count("\n") == 1, said
        assert "Too many open files: `ulimit -n` says" in said
    assert not list(tmp_path.glob("pymp-*"))


def members_of(session: int) -> list[str]:
    """Command lines of processes that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = folder.joinpath("stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state not in "ZX":
                found.append(folder.joinpath("cmdline").read_text())
    return found


def test_locks_that_a_library_makes_in_a_process_end_with_it(tmp_path: Path) -> None:
    """Else Python's resource tracker warns of them when the program ends."""
    found = look(tmp_path, 2, Lock)
    assert [event["exists"] for event in found] == [True, True]
    assert [event["path"].exists() for event in found] == [False, False]


def test_a_library_whose_name_is_no_text_keeps_no_process_from_ending(tmp_path: Path) -> None:
    library, counter = tmp_path / os.fsdecode(b"lib\xff"), Path(f"/dev/shm/torch_{os.getpid()}_fr_bench_3")
    try:
        with contextlib.ExitStack() as stack:
            for path in (library, counter):
                path.write_bytes(bytes(4096))
                file = stack.enter_context(path.open("r+b"))
                stack.enter_context(mmap.mmap(file.fileno(), 4096))
            tidy_up()
        assert library.exists() and not counter.exists()
    finally:
        counter.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("code", "words"),
    [(3, "ended with exit code 3"), (-11, "was killed by SIGSEGV"), (-40, "was killed by signal 40")],
)
def test_how_a_process_ended_is_said_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words


def test_shared_counters_of_this_process_are_removed_and_those_of_others_are_not() -> None:
    """As torch leaves them in /dev/shm on a GPU."""
    paths = [Path(f"/dev/shm/torch_{os.getpid()}_fr_bench_{index}") for index in (1, 2)]
    try:
        for path in paths:
            path.write_bytes(bytes(4096))
        with paths[0].open("r+b") as file, mmap.mmap(file.fileno(), 4096):
            tidy_up()
        assert [path.exists() for path in paths] == [False, True]
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
