"""Under torchrun every process is a module: on several machines, through restarts, and when processes do not fit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import ListConnection, assert_same_run, call, read_records, tiny_config
from programs import Forked
from test_faults import living_processes, wait_until
from test_hanging import GREEDY

from fr_bench.errors import ConfigError, FrBenchError, RunFailed, ToldElsewhere
from fr_bench.launching import meeting as meeting_module
from fr_bench.launching.meeting import Meeting
from fr_bench.launching.members import Members
from fr_bench.measuring import clocks
from fr_bench.measuring.stopwatch import Span
from fr_bench.planning.plan import make_plan
from fr_bench.processes.board import Board
from fr_bench.processes.reporter import Reporter
from fr_bench.processes.torchrun import Torchrun
from fr_bench.records.run_directory import await_directory
from fr_bench.transport.relay import PAUSE, STOP, Relay

SETTINGS = ["train", "model=mlp", "dataset=digits", "epochs=8", "log_every=1", "threads=1", "console=off"]
SETTINGS += ["wandb.mode=disabled", "checkpoint.every=10"]
# Of a job whose processes share two cores with the rest of the tests.
PATIENCE_S = 120


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}


def torchrun(*flags: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "fr_bench", *SETTINGS]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def children(pid: int) -> list[int]:
    return sorted(each.pid for each in living_processes() if each.parent == pid)


def num_records(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def last_step(run_dir: Path) -> int:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


# Two machines


@dataclass
class Node:
    """A machine, or what stands for one: what to put before its commands, and what its network is called."""

    prefix: list[str] = field(default_factory=list)
    interface: str = "lo"
    address: str = "127.0.0.1"


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two network namespaces with a cable between them; where they cannot be had, this machine twice."""
    names = [f"frbench{os.getpid()}n{index}" for index in range(2)]
    found = [
        Node(["ip", "netns", "exec", name], f"veth{index}", f"10.77.0.{index + 1}") for index, name in enumerate(names)
    ]
    commands = [["ip", "netns", "add", name] for name in names]
    commands.append(
        ["ip", "link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth1", "netns", names[1]]
    )
    for name, node in zip(names, found, strict=True):
        inside = ["ip", "-n", name]
        commands.append([*inside, "addr", "add", f"{node.address}/24", "dev", node.interface])
        commands += [[*inside, "link", "set", device, "up"] for device in (node.interface, "lo")]
    try:
        done = [subprocess.run(command, capture_output=True).returncode for command in commands]
        yield found if not any(done) else [Node(), Node()]
    except FileNotFoundError:  # there is no `ip` here
        yield [Node(), Node()]
    finally:
        for name in names:
            subprocess.run(f"ip netns delete {name}", shell=True, capture_output=True)


def test_modules_on_two_machines_are_the_run_on_one(nodes: list[Node], tmp_path: Path) -> None:
    """FR, two modules in each of two replicas: features, gradients and sums all cross the cable."""
    words = ["k=2", "replicas=2", "method=fr", "epochs=2", "trace=3"]
    one = call(tmp_path, *SETTINGS, *words, "transport=gloo", f"run_dir={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    flags = ["--nnodes=2", "--nproc-per-node=2", f"--master-addr={nodes[0].address}", f"--master-port={free_port()}"]
    agents = []
    for rank, node in enumerate(nodes):
        command = [*node.prefix, *torchrun(*flags, f"--node-rank={rank}"), *words, f"run_dir={tmp_path / 'two'}"]
        agents.append(
            subprocess.Popen(
                command, env=environment(GLOO_SOCKET_IFNAME=node.interface), stderr=subprocess.PIPE, text=True
            )
        )
    told = [agent.communicate(timeout=PATIENCE_S)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], told
    assert_same_run(tmp_path / "one", tmp_path / "two")
    kinds = {(record["kind"], record.get("module")) for record in read_records(tmp_path / "two")}
    assert {("time", 4), ("memory", 4), ("train", None), ("eval", None)} <= kinds
    rows = json.loads((tmp_path / "two" / "trace.json").read_text())["traceEvents"]
    assert {row["tid"] for row in rows} == {1, 2, 3, 4}
    status = json.loads((tmp_path / "two" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("finished", 0)


def test_what_torchrun_starts_again_goes_on_and_so_does_what_was_asked_to_stop(tmp_path: Path) -> None:
    """Without run_dir: the second life must find the first one's."""
    # Long enough that the signal comes before the end.
    words = ["k=2", "method=ddg", "epochs=40", "eval_every=20", "transport=gloo"]
    alone = call(tmp_path, *SETTINGS, *words, f"run_dir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    flags = ["--nproc-per-node=2", "--master-addr=127.0.0.1", "--max-restarts=1"]
    agent = subprocess.Popen(
        [*torchrun(*flags, f"--master-port={free_port()}"), *words],
        cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert wait_until(lambda: (tmp_path / "outputs").exists() and run_dir_in(tmp_path), PATIENCE_S)
    run_dir = run_dir_in(tmp_path)
    assert run_dir is not None
    assert wait_until(lambda: num_records(run_dir) > 60 or agent.poll() is not None, PATIENCE_S)
    first_life = json.loads((run_dir / "status.json").read_text())["started"]
    os.kill(children(agent.pid)[-1], signal.SIGKILL)

    def lives_again() -> bool:
        return bool(json.loads((run_dir / "status.json").read_text())["started"] != first_life)

    assert wait_until(lambda: lives_again() or agent.poll() is not None, PATIENCE_S)
    before = last_step(run_dir)  # of the first life, which wrote on for a moment
    assert wait_until(lambda: last_step(run_dir) > before + 20 or agent.poll() is not None, PATIENCE_S)
    agent.send_signal(signal.SIGTERM)
    _, told = agent.communicate(timeout=PATIENCE_S)
    assert "lost its neighbour in step" in told and "Goes on after step" in told, told
    assert "stopped by SIGTERM after step" in told, told
    assert run_dir_in(tmp_path) == run_dir
    status = json.loads((run_dir / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", 75)
    # Its end needs no torchrun, as a run of one machine needs none.
    last = call(tmp_path, *SETTINGS, *words, f"run_dir={run_dir}")
    assert last.returncode == 0 and "Goes on after step" in last.stderr, last.stderr
    assert_same_run(tmp_path / "alone", run_dir)


def run_dir_in(folder: Path) -> Path | None:
    found = [path.parent for path in folder.glob("outputs/*/*/status.json")]
    assert len(found) <= 1, found
    return found[0] if found else None


class TellingMeeting:
    """What rank 0 hears of one other."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.launch = Torchrun(0, 2, 0, 1, "a", 1)
        self._events = list(events)

    def receive(self) -> list[tuple[int, dict[str, Any]]]:
        events, self._events = self._events, []
        return [(1, event) for event in events]


def test_an_error_of_a_machine_that_has_been_up_for_longer_is_not_of_the_future(tmp_path: Path) -> None:
    """Before the machines have compared their clocks."""
    error = {"event": "error", "time_ns": time.monotonic_ns() + 10**15, "module": 2}
    plan = make_plan(tiny_config("fr", 2, "gloo"))
    members = Members(plan, tmp_path, Board(), None, TellingMeeting(error))  # type: ignore[arg-type]
    received = [*members._receive(), *members._receive()]
    assert received == [error]


def test_of_several_that_lost_a_neighbour_the_first_is_named(tmp_path: Path) -> None:
    """Those beside it lose it in turn."""
    lost = {"peer_lost": True, "diverged_order": None, "message": "PeerLost: module 2 is gone: Connection closed"}
    later, first = ({**lost, "time_ns": 10 * step, "module": 5 - step, "step": step} for step in (4, 2))
    members = Members(make_plan(tiny_config("fr", 3, "gloo")), tmp_path, Board(), None, TellingMeeting())  # type: ignore[arg-type]
    for errors in ([later, first], [first, later]):
        told = "module 3 lost its neighbour in step 3 (module 2 is gone); torchrun tells how that process ended"
        assert str(members._first_cause(errors)) == told


# Processes that do not fit


class Job:
    """Processes started by hand, as by a torchrun without a store of its own."""

    def __init__(self, folder: Path, size: int, port: int | None = None) -> None:
        self._folder = folder
        self._size = size
        self._port = port or free_port()
        self.processes: list[subprocess.Popen[str] | Forked] = []

    def start(self, rank: int, *words: str, program: list[str] | None = None) -> None:
        place = {"RANK": rank, "WORLD_SIZE": self._size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": self._size}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._port}
        variables = environment(**{key: str(value) for key, value in place.items()})
        words = (*SETTINGS, f"run_dir={self._folder / 'run'}", *words)
        if program is None:
            self.processes.append(Forked(list(words), self._folder, variables))
        else:
            self.processes.append(
                subprocess.Popen(
                    [*program, *words], cwd=self._folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                    env=variables,
                )
            )  # fmt: skip

    def end(self) -> list[tuple[int, str]]:
        """Exit code and stderr of each, in the order in which they were started."""
        told = [process.communicate(timeout=PATIENCE_S)[1] for process in self.processes]
        return [(process.returncode, text) for process, text in zip(self.processes, told, strict=True)]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    started = Job(tmp_path, 2)
    yield started
    for process in started.processes:
        process.kill()
        process.wait()


def test_a_process_that_hangs_is_found_and_named(job: Job, tmp_path: Path) -> None:
    """By rank 0, which is all that ends: a torchrun would end the other."""
    for rank in (1, 0):
        job.start(rank, "k=2", "epochs=1000000", "hang_timeout=3")
    hanging, leading = job.processes
    assert wait_until(lambda: num_records(tmp_path / "run") > 10 or leading.poll() is not None, PATIENCE_S)
    assert [children(hanging.pid), children(leading.pid)] == [[], []]  # no server of processes, nor anything else
    os.kill(hanging.pid, signal.SIGSTOP)
    _, told = leading.communicate(PATIENCE_S)
    assert leading.returncode == 1 and "fr-bench: module 2 (rank 1) gave no sign of life for 3 s" in told, told
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["module"]) == ("failed", 2)


def test_a_signal_that_reaches_another_process_than_the_first_stops_all(job: Job, tmp_path: Path) -> None:
    """As on a machine that is to be shut down."""
    for rank in (1, 0):
        job.start(rank, "k=2", "epochs=1000000")
    other, leading = job.processes
    assert wait_until(lambda: num_records(tmp_path / "run") > 10 or leading.poll() is not None, PATIENCE_S)
    os.kill(other.pid, signal.SIGHUP)
    (other_code, other_told), (code, told) = job.end()
    assert (code, other_code, other_told) == (75, 75, ""), (told, other_told)
    assert told.startswith("fr-bench: stopped by SIGHUP after step ") and told.count("\n") == 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", 75)


def test_processes_that_wait_for_each_other_for_ever_are_told_so(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 waits too, and sends itself no pulse."""
    (tmp_path / "greedy.py").write_text(GREEDY)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "greedy.yaml").write_text("_target_: greedy.Greedy\nname: greedy\n")
    for rank in (1, 0):
        job.start(rank, "--config-dir", str(tmp_path / "mine"), "method=greedy", "k=2", "hang_timeout=3")
    (other_code, other_told), (code, told) = job.end()
    assert (code, other_code, other_told) == (1, 1, ""), (told, other_told)
    assert told.startswith("fr-bench: all modules have waited for each other for 3 s: module 1 for gradients from "), (
        told
    )
    assert "; module 2 for a word from module 1. " in told and told.count("\n") == 1


def test_a_module_that_calls_exit_and_has_no_log_to_write_to_is_named(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    model = "_target_: tiny_models.bad_day\nname: bad_day\nwhat: exit\nat: 20\n"
    (tmp_path / "mine" / "model" / "bad_day.yaml").write_text(model)
    for number in (1, 2):
        (tmp_path / "run" / f"rank_{number}.log").mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))  # where torchrun looks for the cause
    for rank in (1, 0):
        job.start(
            rank, "--config-dir", str(tmp_path / "mine"), "k=2", "partition=[1]", "model=bad_day", "hang_timeout=60"
        )
    (other_code, other_told), (code, told) = job.end()
    assert (code, other_code, other_told) == (1, 1, ""), (told, other_told)
    assert told.startswith("fr-bench: module 2 failed in step ") and ": SystemExit: " in told
    assert "message" in (tmp_path / "error.json").read_text()


def test_memory_that_an_iteration_frees_is_kept_for_the_next_one(tmp_path: Path) -> None:
    """Also here, where it is not the process's first thread that trains."""
    (tmp_path / "mine" / "model").mkdir(parents=True)
    model = f"_target_: tiny_models.roomy\nname: roomy\npath: {tmp_path / 'pages'}\n"
    (tmp_path / "mine" / "model" / "roomy.yaml").write_text(model)
    job = Job(tmp_path, 1)
    words = ["--config-dir", str(tmp_path / "mine"), "model=roomy", "k=1", "method=bp", "max_steps=20"]
    job.start(0, *words, program=[sys.executable, "-m", "fr_bench"])  # before anything has started a thread
    ((code, told),) = job.end()
    assert code == 0, told
    pages = [int(line) for line in (tmp_path / "pages").read_text().split()]
    assert len(pages) > 20 and sorted(pages)[len(pages) // 2] < 1000, pages  # of 32,768; some make the heap grow


OF_ANOTHER_VERSION = """
import sys, fr_bench
fr_bench.__version__ = "0.0.9"
from fr_bench.cli import main
sys.exit(main())
"""


def test_a_peer_of_another_version_and_with_another_config_is_refused(job: Job, tmp_path: Path) -> None:
    job.start(1, "k=2", "optimizer.lr=0.2", program=[sys.executable, "-c", OF_ANOTHER_VERSION])
    job.start(0, "k=2", "optimizer.lr=0.1")
    (other_code, other_told), (code, told) = job.end()
    assert (code, other_code, other_told) == (2, 2, ""), (told, other_told)
    assert told.startswith("fr-bench: rank 1 on ") and told.endswith("; optimizer.lr is 0.2 there and 0.1 here\n")
    assert ": fr-bench is 0.0.9 there and " in told and told.count("\n") == 1
    assert not (tmp_path / "run" / "status.json").exists()


def test_a_mistake_is_told_once_and_ends_all(job: Job, tmp_path: Path) -> None:
    job.start(1, "k=3")
    job.start(0, "k=3")
    (other_code, other_told), (code, told) = job.end()
    assert (code, other_code, other_told) == (2, 2, "")
    what = "torchrun started 2 processes, and there are 3 modules; use k=2, or start 3 processes"
    assert told == f"fr-bench: k=3, replicas=1: {what}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_store_listens_where_the_others_come_from(job: Job) -> None:
    job.start(0, "k=2")
    process = job.processes[0]
    assert wait_until(lambda: listening(process.pid) or process.poll() is not None, PATIENCE_S)
    assert listening(process.pid) == {f"127.0.0.1:{job._port}"}


def listening(pid: int) -> set[str]:
    """The addresses at which a process listens."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # just closed
            target = os.readlink(entry)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                numbers = bytes.fromhex(address)[::-1] if name == "tcp" else bytes.fromhex(address)
                found.add(f"{'.'.join(map(str, numbers))}:{int(port, 16)}")
    return found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["k=2", "transport=ipc"],
            "transport=ipc: cannot join processes that torchrun started; use gloo, nccl or auto",
        ),
        (["k=2", "dry_run=true"], "dry_run=true: trains nothing, so it needs no torchrun; start it without."),
    ],
)
def test_what_torchrun_cannot_start_is_refused(words: list[str], message: str, job: Job) -> None:
    """Rank 0 does not wait for the others to say so."""
    job.start(0, *words)
    assert job.end() == [(2, f"fr-bench: {message}\n")]


def test_a_sweep_under_torchrun_is_refused(job: Job) -> None:
    job.start(0, "-m", "k=2", "run_dir=null")
    ((code, told),) = job.end()
    assert code == 2 and "Traceback" not in told


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        job = Job(tmp_path, 2, port)
        job.start(0, "k=2")
        ((code, told),) = job.end()
    assert code == 2
    assert told == (
        f"fr-bench: MASTER_ADDR=127.0.0.1, MASTER_PORT={port}: cannot listen there: Address already in use; "
        "choose another port\n"
    )


def test_a_directory_that_another_machine_does_not_see_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be on a file system that all machines share"):
        await_directory(tmp_path / "run", patience_s=0.2)
    (tmp_path / "run").mkdir()
    threading.Timer(0.3, (tmp_path / "run" / "status.json").touch).start()
    await_directory(tmp_path / "run", patience_s=30)


@pytest.mark.parametrize("command", ["bench", "eval", "report"])
def test_the_work_of_one_process_is_not_done_by_several(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    done = call(tmp_path, command)
    message = f"fr-bench: fr-bench {command}: is the work of one process; start it without torchrun.\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but not MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "must be numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK must be below WORLD_SIZE"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Torchrun.from_environment(variables)


@pytest.mark.parametrize(("rank", "failure"), [(0, RunFailed), (1, ToldElsewhere)])
def test_a_store_that_is_gone_ends_the_run_and_is_named(rank: int, failure: type[FrBenchError]) -> None:
    """As when torchrun, which serves it, is killed."""
    served = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = Meeting(Torchrun(rank, 2, rank, 2, "127.0.0.1", served.port, agent_serves=True))
    del served
    for do in (
        lambda: meeting.choose_run_dir("run"),
        lambda: meeting.hear("run_dir"),
        lambda: meeting.say("start", {}),
        meeting.wished_stop,
        meeting.receive,
    ):
        with pytest.raises(failure, match=r"^MASTER_ADDR=127.0.0.1, MASTER_PORT=\d+: the store .* is gone \("):
            do()
    assert meeting.has_ended()
    with pytest.raises(OSError, match="rank 0 cannot be told"):
        meeting.send({})
    if meeting.leads:
        meeting.end(1)
    meeting.leave()


def test_a_process_whose_torchrun_was_killed_does_not_look_for_its_store_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where rank 0 is to serve it, it may yet come."""
    assert meeting_module.AGENT_PATIENCE_S <= 30 < meeting_module.PATIENCE_S
    monkeypatch.setattr(meeting_module, "AGENT_PATIENCE_S", 0.5)
    with pytest.raises(ConfigError, match=r"^MASTER_ADDR=127.0.0.1, MASTER_PORT=\d+: nobody of this job answers there"):
        Meeting(Torchrun(1, 2, 1, 2, "127.0.0.1", free_port(), agent_serves=True))
    served = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting = Meeting(Torchrun(1, 2, 1, 2, "127.0.0.1", served.port, agent_serves=True))
    assert meeting.group_store().timeout == meeting_module.TIMEOUT
    meeting.leave()


def test_what_torchrun_says_is_understood() -> None:
    assert Torchrun.from_environment({"RANK": "0"}) is None
    found = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"}
    found |= {"MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
    launch = Torchrun.from_environment(found)
    assert launch == Torchrun(5, 8, 1, 4, "a", 29500, agent_serves=True, attempt=2)
    named = Torchrun.from_environment(found | {"TORCHELASTIC_RUN_ID": "mine"})
    assert named is not None and named.job == "mine"  # of several jobs at one store
    assert not launch.leads and launch.num_machines == 2
    for num_here in ("0", "3"):
        with pytest.raises(ConfigError, match=f"LOCAL_WORLD_SIZE={num_here}: .* every machine must have as many"):
            Torchrun.from_environment(found | {"LOCAL_WORLD_SIZE": num_here})


# What they tell each other


def meetings(size: int) -> list[Meeting]:
    """Those of the processes of a job, all of them here; the first one's serves the store."""
    port = free_port()
    return [Meeting(Torchrun(rank, size, rank, size, "127.0.0.1", port)) for rank in range(size)]


def test_every_process_is_compared_and_those_that_do_not_lead_may_write_and_speak_otherwise() -> None:
    first, second, third = meetings(3)
    config = {"seed": 1, "run_dir": "here", "console": "auto", "wandb": {"mode": "online"}}
    otherwise = {"run_dir": "there", "console": "off", "wandb": {"mode": "disabled"}}
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(second.compare, config | otherwise), pool.submit(third.compare, config | {"seed": 2})]
        with pytest.raises(ConfigError, match=r"^rank 2 on .*: seed is 2 there and 1 here$"), first.refusing():
            first.compare(config)
        for other in others:
            with pytest.raises(ToldElsewhere, match=r"^rank 2 on .*") as caught:
                other.result()
            assert caught.value.exit_code == 2


def test_events_come_all_at_once_in_the_order_of_each_process_and_do_not_stay() -> None:
    first, *others = meetings(3)
    num_before = first._store.num_keys()
    for number in range(3):
        for rank, other in enumerate(others, start=1):
            other.send({"number": 10 * rank + number})
    for other in others:
        other._store.num_keys()  # is answered when all is there that it sent, for which the store says nothing
    assert first.receive() == [(number // 10, {"number": number}) for number in (10, 11, 12, 20, 21, 22)]
    assert first._store.num_keys() == num_before
    others[1].send({"number": 23})
    others[1]._store.num_keys()
    assert first.receive() == [(2, {"number": 23})] and first.receive() == []


def test_what_is_not_of_this_program_is_said_to_be_on_the_port() -> None:
    first, second = meetings(2)
    second._store.set("hello/1", "GET / HTTP/1.1")
    with pytest.raises(ConfigError, match=r"^MASTER_PORT=\d+: another program has written there$"):
        first.hear("hello/1")


def test_who_serves_the_store_leaves_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fr_bench.launching.meeting.LINGER_S", PATIENCE_S)  # however slow this machine is
    first, second = meetings(2)
    left = []

    def leave() -> None:
        left.append(second)
        second.leave()

    later = threading.Timer(0.3, leave)
    later.start()
    first.leave()
    assert left
    later.join()


# Their clocks, and the word that travels


def in_processes(size: int, folder: Path, work: Any) -> list[Any]:
    """Calls ``work(rank)`` in processes that are connected by gloo; returns what each gives. They meet at a file: a
    store's server would be a thread of this process, and a process that is forked beside it may inherit its locks."""
    context = torch.multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()

    def enter(rank: int) -> None:
        dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), size), rank=rank, world_size=size)
        results.put((rank, work(rank)))
        dist.barrier()

    processes = [context.Process(target=enter, args=(rank,), daemon=True) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    found = dict(results.get() for _ in range(size))
    return [found[rank] for rank in range(size)]


def test_clocks_that_began_at_other_moments_are_made_one(tmp_path: Path) -> None:
    began_ns = [0, 7_000_000_000, -123_456_789_000]
    offsets = in_processes(
        3, tmp_path, lambda rank: clocks.offset_ns(rank, 3, lambda: time.monotonic_ns() + began_ns[rank])
    )
    for offset, began in zip(offsets, began_ns, strict=True):
        assert abs(offset + began) < 5_000_000  # ns; a round trip on a busy machine


def test_the_answer_of_the_shortest_round_trip_was_given_in_its_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns, ahead_ns = [0], 10**12
    trips_ns = iter([(500, 9500)] * 7 + [(10, 10)] + [(9500, 500)] * 8)  # there and back
    back_ns = [0]

    def send(word: torch.Tensor, to: int) -> None:
        there_ns, back_ns[0] = next(trips_ns)
        now_ns[0] += there_ns

    def receive(word: torch.Tensor, source: int) -> None:
        word[0] = now_ns[0] + ahead_ns
        now_ns[0] += back_ns[0]

    monkeypatch.setattr(dist, "send", send)
    monkeypatch.setattr(dist, "recv", receive)
    assert clocks.offset_ns(1, 2, lambda: now_ns[0]) == ahead_ns


def test_what_another_machine_tells_is_on_the_clock_of_the_first() -> None:
    connection, ahead_ns = ListConnection(), 10**15
    reporter = Reporter(connection, [-1])
    reporter.offset_ns = ahead_ns
    reporter.send_trace(1, [Span("play", 1, 3, 7)])
    (event,) = connection.events
    assert event["spans"] == [("play", ahead_ns + 1, ahead_ns + 3, 7)]
    assert abs(event["time_ns"] - ahead_ns - time.monotonic_ns()) < 60 * 10**9


def test_the_word_reaches_every_module_in_every_iteration(tmp_path: Path) -> None:
    """Two replicas of three modules; numbers 1 to 6."""
    words = [0, PAUSE, 0, STOP]

    kept = []  # a message on its way is lost with its sender

    def listen(rank: int) -> list[int]:
        relay = Relay(rank + 1, 3, 2, None)
        kept.append(relay)
        heard = []
        for word in words:
            heard.append(word if rank == 0 else relay.receive())
            relay.pass_on(heard[-1])
        return heard

    assert in_processes(6, tmp_path, listen) == [words] * 6


def test_without_local_numbers_all_processes_are_on_one_machine() -> None:
    found = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    launch = Torchrun.from_environment(found)
    assert launch == Torchrun(1, 2, 0, 2, "a", 1) and launch.num_machines == 1
    with pytest.raises(ConfigError, match="but not MASTER_ADDR;"):
        Torchrun.from_environment(found | {"MASTER_ADDR": ""})


@pytest.mark.parametrize(
    ("k", "replicas", "advice"), [(3, 2, "use k=2, or start 6"), (1, 3, "use another k or replicas, or start 3")]
)
def test_a_job_of_another_size_is_told_which_k_fits(k: int, replicas: int, advice: str) -> None:
    launch = Torchrun(0, 4, 0, 4, "a", 1)
    launch.check_size(2, 2)
    with pytest.raises(ConfigError, match=f"torchrun started 4 processes.*{advice}"):
        launch.check_size(k, replicas)
