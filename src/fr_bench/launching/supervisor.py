"""The parent's view of its processes: starts them, relays their events, finds the first cause, ends them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fr_bench.errors import FrBenchError, RunFailed
from fr_bench.launching.signal_watch import SignalWatch
from fr_bench.planning.plan import Plan
from fr_bench.processes import child, nursery, rendezvous
from fr_bench.processes.board import Board
from fr_bench.processes.child import ProcessTask
from fr_bench.processes.events import Event, InOrder, as_exception, first_of_own
from fr_bench.processes.heartbeat import PULSE, Silence, Standstill, state_in_words
from fr_bench.processes.reporter import BEFORE_TRAINING, when
from fr_bench.processes.signals import how_it_ended
from fr_bench.records.run_directory import rank_log
from fr_bench.transport.open import ModulePorts, make_ports
from fr_bench.unread import say
from fr_bench.workers.resumption import Resumption
from fr_bench.workers.worker import WorkerTask

POLL_S = 0.2
# How long after the first sign of failure other modules may still tell what they saw.
GRACE_S = 0.5
# How long a process may take to end once it is killed. The system does not end one that waits for a device or a disk.
ENDS_WITHIN_S = 5.0
UNKNOWN_EXIT_CODE = 255  # multiprocessing's


@dataclass(frozen=True)
class _Started:
    """A process that runs, or did.

    Attributes:
        module: the first of its modules, by which messages name it.
        process: as multiprocessing has it.
        connection: the end of its pipe from which its events are read.
    """

    module: int
    process: Any
    connection: Connection

    @property
    def exit_code(self) -> int | None:
        """None while it runs, negative where a signal ended it."""
        code: int | None = self.process.exitcode
        return code


class Supervisor:
    """The processes of one run. Use as a context manager: leaving it ends every process that is still alive.

    Args:
        make_tasks: (multiprocessing context, port of the rendezvous store or None) -> a task for each process. What
            the tasks refer to lives as long as the supervisor: a semaphore is gone with its last reference here.
        num_modules: of all processes together.
        run_directory: where the processes' logs go.
        needs_store: whether the processes meet at a store, which the parent holds, on a port of the system's choice.
        board: where the processes can be asked to finish a step; without one a signal ends them at once.
        hang_timeout_s: seconds of silence after which a process hangs, and of waiting after which all processes wait
            for each other; None to wait for ever.
    """

    def __init__(
        self,
        make_tasks: Callable[[Any, int | None], Sequence[ProcessTask]],
        num_modules: int,
        run_directory: Path,
        needs_store: bool = True,
        board: Board | None = None,
        hang_timeout_s: float | None = None,
    ) -> None:
        self._board = board
        context = nursery.context()
        self._store: dist.TCPStore | None = rendezvous.open_store() if needs_store else None
        self._progress = context.RawArray("q", [BEFORE_TRAINING] * num_modules)
        self._tasks = make_tasks(context, self._store.port if self._store else None)
        self._in_order = InOrder()
        self._started: list[_Started] = []
        self._done: set[int] = set()  # the modules of those that have told so
        self._run_directory = run_directory
        self._silence = Silence(hang_timeout_s, len(self._tasks))
        self._standstill = Standstill(hang_timeout_s, [task.modules[0] for task in self._tasks])
        try:
            for task in self._tasks:
                self._start(context, task)
        except BaseException:
            self.stop()  # nobody else would: they ignore what multiprocessing sends at exit
            raise

    def _start(self, context: Any, task: ProcessTask) -> None:
        receiving, sending = context.Pipe(duplex=False)
        log_path = str(rank_log(self._run_directory, task.modules[0]))
        arguments = (child.Surroundings.here(), log_path, task, sending, self._progress)
        process = context.Process(target=child.main, args=arguments, daemon=True)
        nursery.start(process)
        sending.close()  # so that the pipe ends when the child does
        self._started.append(_Started(task.modules[0], process, receiving))

    @classmethod
    def of_plan(
        cls, plan: Plan, run_directory: Path, board: Board | None = None, resumption: Resumption | None = None
    ) -> Supervisor:
        """The processes of a training run."""

        def make_tasks(context: Any, store_port: int | None) -> list[WorkerTask]:
            ports = [ModulePorts()] * plan.size
            if plan.transport == "ipc":
                ports = [port for _ in range(plan.num_replicas) for port in make_ports(context, plan.num_modules)]
            return [
                WorkerTask(plan, numbers, [ports[n - 1] for n in numbers], store_port, run_directory, board, resumption)
                for numbers in plan.numbers_by_process
            ]

        return cls(
            make_tasks,
            plan.size,
            run_directory,
            needs_store=plan.transport != "serial",
            board=board,
            hang_timeout_s=plan.config["hang_timeout"],
        )

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def events(self, signals: SignalWatch) -> Iterator[Event]:
        """Yields the events of all modules until every process has ended well; {} now and then when none come.

        Raises:
            Interrupted: a signal came, or the time is up. With a board all modules have finished a common step and
                written its checkpoint, unless that took too long or a second signal came.
            RunFailed: a process raised, died or hangs; the message names the first cause, its module and its step.
            ConfigError: a module found a mistake in the config.
        """
        errors: list[Event] = []
        deadline = float("inf")
        while True:
            finished = all(each.exit_code == 0 and each.module in self._done for each in self._started)
            received = self._receive(0 if finished else POLL_S)
            errors += [event for event in received if event["event"] == "error"]
            yield from (event for event in received if event["event"] != "error")
            if finished and not received and not self._in_order:
                if self._board is not None and self._board.stop_step is not None:
                    raise signals.interruption(self._board.stop_step)
                return
            if signals.is_asked_to_stop:
                self._ask_to_stop(signals)
            else:
                self._refuse_hanging()
            is_dead = any(each.exit_code not in (None, 0) for each in self._started)
            if errors or is_dead or any(map(self._left_early, self._started)):
                deadline = min(deadline, time.monotonic() + GRACE_S)
            if time.monotonic() >= deadline:
                raise self._first_cause(errors)
            if not received:
                yield {}

    def _ask_to_stop(self, signals: SignalWatch) -> None:
        """Raises Interrupted where there is nobody to ask, no time left, or a process that the same signal ended."""
        number = signals.received
        died = number is not None and any(each.exit_code == -number for each in self._started)
        if self._board is None or signals.is_impatient or died:
            raise signals.interruption()
        self._board.request_stop()

    def _receive(self, timeout_s: float) -> list[Event]:
        """Drains the pipes; returns the events in the order in which they happened."""
        open_connections = [each.connection for each in self._started if not each.connection.closed]
        if not open_connections:
            time.sleep(0 if self._in_order else min(timeout_s, 0.01))
        wait(open_connections, 0 if self._in_order else timeout_s)
        began_ns = time.monotonic_ns()
        heard = set()
        for index, each in enumerate(self._started):
            if each.connection.closed:
                continue
            try:
                while each.connection.poll():
                    event = each.connection.recv()
                    heard.add(index)
                    if event["event"] == PULSE:
                        self._standstill.hear(index, event["wait"])
                        continue
                    if event["event"] == "done":
                        self._done.add(each.module)
                    self._in_order.add(event)
            except (EOFError, OSError):
                each.connection.close()
                self._standstill.hear(index, None)  # it waits for nothing any more
        self._silence.take_turn(heard)
        return self._in_order.take(began_ns)

    def _refuse_hanging(self) -> None:
        """Raises RunFailed where a process is alive and silent. Its neighbours, which wait for it, are not. Or where
        all of them wait."""
        for index, each in enumerate(self._started):
            if self._silence.hangs(index) and each.exit_code is None:
                module, pid = each.module, each.process.pid
                raise RunFailed(
                    f"module {module} (process {pid}) gave no sign of life for {self._silence.timeout_s:g} s "
                    f"{self._when(module)}: {state_in_words(pid)}; see {rank_log(self._run_directory, module)} and "
                    "dmesg. The same command goes on from the last checkpoint; a larger hang_timeout waits longer, "
                    "null for ever",
                    module,
                )
        self._standstill.refuse()

    def _left_early(self, each: _Started) -> bool:
        """Whether it has ended as if all were well, and never told that it was done."""
        has_told_all = each.connection.closed
        return each.exit_code == 0 and has_told_all and each.module not in self._done

    def _first_cause(self, errors: list[Event]) -> FrBenchError:
        """An exception that is not a lost neighbour, else a death, else the first lost neighbour."""
        own = first_of_own(errors)
        if own is not None:
            return self._as_exception(own)
        # Where the server is gone, which would tell how they ended, nobody knows.
        if any(each.exit_code == UNKNOWN_EXIT_CODE for each in self._started) and (loss := nursery.loss()):
            return RunFailed(loss)
        for each in self._started:
            if each.exit_code is not None and each.exit_code < 0:
                return RunFailed(self._how_it_ended(each), each.module)
        if errors:
            return self._as_exception(min(errors, key=lambda event: event["time_ns"]))
        ended = next(each for each in self._started if each.exit_code not in (None, 0) or self._left_early(each))
        log = rank_log(self._run_directory, ended.module)
        return RunFailed(f"{self._how_it_ended(ended)}; see {log}", ended.module)

    def _how_it_ended(self, each: _Started) -> str:
        return f"module {each.module} {how_it_ended(each.exit_code)} {self._when(each.module)}"

    def _as_exception(self, event: Event) -> FrBenchError:
        log = rank_log(self._run_directory, event["module"])
        return as_exception(event, log, self._when(event["module"]))

    def _when(self, module: int) -> str:
        return when(self._progress[module - 1])

    def stop(self) -> None:
        """Ends what is still alive. They have nothing to tidy up, and no other signal reaches all of them."""
        for each in self._started:
            if each.process.is_alive():
                each.process.kill()
        deadline = time.monotonic() + ENDS_WITHIN_S
        for each in self._started:
            each.process.join(max(0.0, deadline - time.monotonic()))
            if each.exit_code is None:  # how the run ended is told all the same
                pid, module = each.process.pid, each.module
                say(f"process {pid} of module {module} does not end: {state_in_words(pid)}")
