"""The processes of a torchrun job: each is a module, and the first one also does a parent's work.

    main thread of rank 0     events of all modules -> records, sinks, status; signals -> the board
    main thread of the others signals -> rank 0
    second thread of each     its module, from birth to death (fr_bench.workers.worker)

The module has the second thread because Python handles signals in the first, which must not wait inside of torch.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fr_bench.errors import FrBenchError, RunFailed, ToldElsewhere
from fr_bench.launching.meeting import Meeting
from fr_bench.launching.signal_watch import SignalWatch
from fr_bench.launching.supervisor import POLL_S
from fr_bench.planning.plan import Plan
from fr_bench.processes.board import Board
from fr_bench.processes.child import report_error
from fr_bench.processes.events import Event, InOrder, as_exception, first_of_own
from fr_bench.processes.heartbeat import PULSE, Silence, Standstill, start_pulse
from fr_bench.processes.reporter import BEFORE_TRAINING, EventSink, Reporter, when
from fr_bench.records.run_directory import rank_log
from fr_bench.transport.open import ModulePorts
from fr_bench.waits import current_wait
from fr_bench.workers.resumption import Resumption
from fr_bench.workers.worker import WorkerTask

# How long after the first sign of failure others may still tell what they saw: over a network, not a pipe.
GRACE_S = 2.0
# How long rank 0 may take to tell how the run ended: it writes the summary first.
END_WITHIN_S = 10.0


class ModuleThread(threading.Thread):
    """Runs the module of this process and tells how it ends.

    Args:
        plan, run_directory, board, resumption: of the run; the board is rank 0's alone.
        meeting: with the others.
        sink: where events go.
    """

    def __init__(
        self,
        plan: Plan,
        run_directory: Path,
        board: Board | None,
        resumption: Resumption | None,
        meeting: Meeting,
        sink: EventSink,
    ) -> None:
        # A daemon: where a neighbour is gone it may wait for ever, and the process ends without it.
        super().__init__(name=f"module {meeting.launch.rank + 1}", daemon=True)
        self._meeting = meeting
        self._progress = [BEFORE_TRAINING] * plan.size
        self._reporter = Reporter(sink, self._progress)
        number = meeting.launch.rank + 1
        self._log = rank_log(run_directory, number)
        self._task = WorkerTask(
            plan, [number], [ModulePorts()], None, run_directory, board, resumption, launch=meeting.launch
        )
        self.has_failed = False

    def run(self) -> None:
        """Never raises."""
        if not self._meeting.leads:
            start_pulse(self._reporter)
        try:
            self._task.run_here(self._reporter, self._meeting.group_store())
            self._reporter.send("done", modules=self._task.modules)
        except BaseException as error:  # sys.exit in a model of the user's own, too: its module is not done
            self.has_failed = True
            # The disk of the log may be full.
            with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            with contextlib.suppress(OSError):
                _tell_torchrun(error)
            report_error(self._reporter, self._task, error, self._progress)  # last: it ends the job


def _tell_torchrun(error: BaseException) -> None:
    """Leaves the error where torchrun looks for the cause of a failure."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


class LocalEvents:
    """The events of rank 0's own module."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def send(self, event: Event, /) -> None:
        """See :class:`EventSink`."""
        self._queue.put(event)

    def receive(self, timeout_s: float) -> list[Event]:
        """Waits for the first; returns all that are there."""
        received = []
        try:
            received.append(self._queue.get(timeout=timeout_s))
            while True:
                received.append(self._queue.get_nowait())
        except queue.Empty:
            return received


class Members:
    """All processes of the job, from rank 0's side. Used like a Supervisor, of which there is none here."""

    def __init__(
        self, plan: Plan, run_directory: Path, board: Board, resumption: Resumption | None, meeting: Meeting
    ) -> None:
        self._plan = plan
        self._run_directory = run_directory
        self._board = board
        self._meeting = meeting
        self._local = LocalEvents()
        self._in_order = InOrder()
        self._thread = ModuleThread(plan, run_directory, board, resumption, meeting, self._local)
        self._silence = Silence(plan.config["hang_timeout"], plan.size)
        self._standstill = Standstill(plan.config["hang_timeout"], range(1, plan.size + 1))
        self._done: set[int] = set()  # modules

    def __enter__(self) -> Members:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The others hear of the end from the run, the module's thread from its neighbours."""

    def events(self, signals: SignalWatch) -> Iterator[Event]:
        """See :meth:`fr_bench.launching.supervisor.Supervisor.events`."""
        errors: list[Event] = []
        deadline = float("inf")
        while True:
            for event in self._receive():
                if event["event"] == "error":
                    errors.append(event)
                    deadline = min(deadline, time.monotonic() + GRACE_S)
                    continue
                if event["event"] == "done":
                    self._done |= set(event["modules"])
                yield event
            yield {}
            if len(self._done) == self._plan.size:
                if self._board.stop_step is not None:
                    raise signals.interruption(self._board.stop_step)
                return
            self._heed(signals)
            if time.monotonic() >= deadline:
                raise self._first_cause(errors)
            if not errors:
                self._refuse_hanging()

    def _receive(self) -> list[Event]:
        local = self._local.receive(POLL_S)
        began_ns = time.monotonic_ns()
        heard = {0}
        self._standstill.hear(0, current_wait())
        for event in [*local, *self._local.receive(0)]:
            self._in_order.add(event)
        for rank, event in self._meeting.receive():
            heard.add(rank)
            if event["event"] == PULSE:
                self._standstill.hear(rank, event["wait"])
            else:
                # On another machine's clock until that process has learned ours: what has come has happened.
                event["time_ns"] = min(event["time_ns"], time.monotonic_ns())
                self._in_order.add(event)
        self._silence.take_turn(heard)
        return self._in_order.take(began_ns)

    def _refuse_hanging(self) -> None:
        """Raises RunFailed where a process is silent and has not yet done its part, or where all of them wait."""
        for rank in range(self._plan.size):
            if self._silence.hangs(rank) and rank + 1 not in self._done:
                raise RunFailed(
                    f"module {rank + 1} (rank {rank}) gave no sign of life for {self._silence.timeout_s:g} s: it, its "
                    "machine or the network hangs. The same command goes on from the last checkpoint; a larger "
                    "hang_timeout waits longer, null for ever",
                    rank + 1,
                )
        self._standstill.refuse()

    def _heed(self, signals: SignalWatch) -> None:
        """Has all modules stop if this process, or another one, is asked to."""
        wished = self._meeting.wished_stop() if signals.received is None else None
        if wished is not None:
            signals.handle(wished, None)
        if signals.is_impatient:
            raise signals.interruption()
        if signals.is_asked_to_stop:
            self._board.request_stop()

    def _first_cause(self, errors: list[Event]) -> FrBenchError:
        event = first_of_own(errors)
        if event is not None:
            log = rank_log(self._run_directory, event["module"])
            return as_exception(event, log, when(event["step"]))
        noticed = min(errors, key=lambda each: each["time_ns"])
        what = noticed["message"].removeprefix("PeerLost: ").partition(" is gone")[0]  # behind it is torch's prose
        return RunFailed(
            f"module {noticed['module']} lost its neighbour {when(noticed['step'])} ({what} is gone); "
            "torchrun tells how that process ended"
        )


def follow(
    plan: Plan, run_directory: Path, resumption: Resumption | None, meeting: Meeting, signals: SignalWatch
) -> dict[str, Any]:
    """What a process does that does not lead: runs its module, and ends as rank 0 says.

    Raises:
        ToldElsewhere: the run did not come to its end; rank 0 tells why.
    """
    thread = ModuleThread(plan, run_directory, None, resumption, meeting, meeting)
    thread.start()
    has_wished = False
    while thread.is_alive() and not signals.is_impatient and not meeting.has_ended():
        thread.join(POLL_S)
        if signals.received is not None and not has_wished:
            meeting.wish_stop(signals.received)
            has_wished = True
    try:
        code = int(meeting.hear("end", END_WITHIN_S))
    except (FrBenchError, RuntimeError, ValueError):  # rank 0 is gone, and the store perhaps with it
        code = signals.exit_code if signals.received is not None and not thread.has_failed else 1
    if code != 0:
        raise ToldElsewhere(f"module {meeting.launch.rank + 1} ends with the others", code)
    return {}
