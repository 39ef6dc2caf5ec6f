"""One run, from the parent's side: plan, run directory, processes, records, sinks, outcome."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from fr_bench.errors import FrBenchError, Interrupted, RunFailed, TakenOver
from fr_bench.launching.checkpoint_book import CheckpointBook
from fr_bench.launching.earlier_records import bring_records
from fr_bench.launching.meeting import Meeting
from fr_bench.launching.members import Members, follow
from fr_bench.launching.origin import settle_origin
from fr_bench.launching.resume import Start, check_end, check_resume, decide, is_done, plan_with_cuts
from fr_bench.launching.signal_watch import SignalWatch, watch_signals
from fr_bench.launching.supervisor import Supervisor
from fr_bench.planning.environment import describe_environment
from fr_bench.planning.plan import Plan, check_components, has_declared_sizes, make_plan
from fr_bench.processes.board import Board
from fr_bench.processes.heap import keep_freed_memory
from fr_bench.records.collector import Collector
from fr_bench.records.console import RunTitle, choose_console, print_summary
from fr_bench.records.run_directory import RunDirectory, await_directory
from fr_bench.records.run_files import cannot_write
from fr_bench.records.sinks import JsonLinesSink, Sink, SinkGroup
from fr_bench.records.summary import SummaryBuilder
from fr_bench.records.trace import write_trace
from fr_bench.records.wandb_server import why_unreachable
from fr_bench.records.wandb_sink import WandbSink, check_wandb, resolve_mode
from fr_bench.settings.comparison import with_absolute_paths
from fr_bench.unread import heard_or_not, say
from fr_bench.workers.resumption import Resumption

WITHOUT_A_SAY_IN_A_PLAN = ("run_dir", "seed", "wandb")


def check_plan(config: dict[str, Any], planned: set[str] | None = None, *, runs_here: bool = True) -> None:
    """Finds every mistake in ``config`` (resolved, plain) that can be found without starting or downloading anything.

    Args:
        planned: what other configs of the sweep were planned as, which this one is added to. Of those that differ in
            the seed alone one is planned: it takes half a second, and a sweep has many.
        runs_here: see :func:`make_plan`.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    check_components(config)
    check_resume(config)
    check_wandb(resolve_mode(config["wandb"]["mode"]))
    if is_done(config):  # it needs no plan, for which a data set would be read, or blocks be timed
        return
    likeness = repr(sorted((key, value) for key, value in config.items() if key not in WITHOUT_A_SAY_IN_A_PLAN))
    if planned is None or likeness not in planned:
        check_end(config, make_plan(config, runs_here=runs_here, fetches=False).num_steps)
    if planned is not None:
        planned.add(likeness)


def check_data(config: dict[str, Any], as_planned: dict[str, bool], *, runs_here: bool = True) -> None:
    """What :func:`check_plan` leaves: the data set, which is downloaded if it may be.

    Args:
        as_planned: of data sets that other configs of the sweep have, whether their sizes are those that they declare;
            this one's is added.
        runs_here: see :func:`make_plan`.

    Raises:
        ConfigError: it cannot be had, or the config does not fit what it turns out to be.
    """
    if is_done(config):
        return
    data = repr(config["dataset"])
    if data not in as_planned:
        as_planned[data] = has_declared_sizes(config)
    if not as_planned[data]:
        check_end(config, make_plan(config, runs_here=runs_here).num_steps)


def run_training(config: dict[str, Any], run_directory: Path, meeting: Meeting | None = None) -> dict[str, Any]:
    """Runs the training that ``config`` (resolved, plain) describes, in ``run_directory``, or goes on with it there
    or from elsewhere, as ``config["resume"]`` says.

    Args:
        meeting: with the other processes, where torchrun started this one.

    Returns:
        The summary, as in summary.json; empty in a process that does not lead. A directory that holds a finished run is
        left alone and its summary returned.

    Raises:
        ConfigError: a mistake in the config.
        RunFailed: with the first cause; what was logged until then stands.
        Interrupted: a signal ended the run, or its time was up.
        ToldElsewhere: one of these, where another process tells the user.
    """
    if meeting is not None:
        with meeting.refusing():
            meeting.compare(config)
        if not meeting.leads:
            return follow_run(config, run_directory, meeting)
    config = with_absolute_paths(config)
    directory = RunDirectory(run_directory)
    if config["resume"] != "never" and os.path.realpath(config["resume"]) == os.path.realpath(run_directory):
        config = {**config, "resume": "auto"}  # nothing is taken over from another run
    with contextlib.nullcontext() if meeting is None else meeting.refusing():
        start = decide(config, directory, say)
        finished = start.finished
        if start.found is not None:
            directory.take_over(start.found)
        elif finished is None:
            finished = directory.create()
            if finished is not None and config["resume"] == "never":
                directory.refuse_any()
    if meeting is not None:
        meeting.say("start", {"is_finished": finished is not None, **start.description()})
    if finished is not None:
        say(f"{run_directory} holds this run, finished; nothing to do")
        for note in start.notes if start.finished is not None else ():
            say(note)
        return finished
    assert start.plan is not None
    with watch_signals(max_time_s(config)) as signals:
        try:
            return _prepare(start.plan, directory, start, meeting).train(signals)
        except Interrupted as interruption:
            raise signals.hand_on(interruption) from None


def follow_run(config: dict[str, Any], run_directory: Path, meeting: Meeting) -> dict[str, Any]:
    """The part of a process that torchrun started and that does not lead.

    Raises:
        ConfigError: this machine does not see ``run_directory``.
        ToldElsewhere: see :func:`fr_bench.launching.members.follow`.
    """
    start = meeting.hear("start")
    if start["is_finished"]:
        return {}
    with meeting.refusing():
        await_directory(run_directory)
        plan = plan_with_cuts(config, start["cuts"])
    keep_freed_memory()
    with watch_signals() as signals:
        return follow(plan, run_directory, Resumption.from_description(start["resumption"]), meeting, signals)


def max_time_s(config: dict[str, Any]) -> float:
    """Seconds after which the run saves and stops."""
    return float("inf") if config["max_time"] is None else 60 * config["max_time"]


def _prepare(plan: Plan, directory: RunDirectory, start: Start, meeting: Meeting | None) -> Run:
    try:
        return Run(plan, directory, start, meeting)
    except BaseException as cause:  # a full disk, say
        with contextlib.suppress(RunFailed):
            _set_status(directory, cause)
        if meeting is not None:
            meeting.end(_exit_code(cause))
        raise


def as_told(error: OSError, run_directory: Path) -> RunFailed:
    """What the system refused: mostly a file."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return RunFailed(f"{error.strerror}: `ulimit -n` says how many a process may have, `ulimit -n 4096` sets it")
    if error.errno in (errno.EAGAIN, errno.ENOMEM):
        return RunFailed(f"the system gives no more processes, threads or memory ({error.strerror})")
    return cannot_write(Path(error.filename or run_directory), error)


def _state(cause: BaseException | None) -> str:
    if cause is None:
        return "finished"
    return "interrupted" if isinstance(cause, Interrupted) else "failed"


def _exit_code(cause: BaseException | None) -> int:
    if cause is None:
        return 0
    return cause.exit_code if isinstance(cause, FrBenchError) else 1


def _set_status(directory: RunDirectory, cause: BaseException | None) -> None:
    """How it ended; ``cause`` is None if it went well."""
    error = None if cause is None else str(cause) or type(cause).__name__
    module = getattr(cause, "module", None)
    directory.set_status(_state(cause), error=error, module=module, exit_code=_exit_code(cause))


class Run:
    """A run whose directory is ours."""

    def __init__(self, plan: Plan, directory: RunDirectory, start: Start, meeting: Meeting | None = None) -> None:
        """``meeting``: with the other processes, where they are not ours."""
        self.meeting = meeting
        self.plan = plan
        self.start = start
        self.directory = directory
        self.quiet = plan.config["console"] == "off"
        in_parallel = len(plan.numbers_by_process) == plan.size
        batch_size = plan.config["batch_size"]
        self.collector = Collector(plan.num_modules, plan.steps_per_epoch, batch_size, in_parallel, plan.num_replicas)
        described = {**plan.config, "plan": plan.description()}
        directory.write_config(described)
        environment = describe_environment(sys.argv, {**plan.config, "threads": plan.threads})
        directory.write_environment(environment | ({"code_before": start.code_before} if start.code_before else {}))
        self.code = [*start.code_before, environment["code"]]
        origin = settle_origin(start, plan, directory.path)
        self.summary = SummaryBuilder(plan.config, plan.cuts, len(plan.block_names), origin)
        self.records = bring_records(start, directory)
        if start.resumption is not None:
            self.collector.go_on(start.resumption.checkpoint.manifest["train_time"], self.records.kept)
        for record in self.records.kept:
            self.summary.add(record)

    def train(self, signals: SignalWatch) -> dict[str, Any]:
        """Trains, and leaves the directory with its final status whatever happens."""
        for note in (*self.start.notes, *self.records.lost, *self.plan.warnings):
            say(note)
        sinks = SinkGroup([])
        cause: BaseException | None = None
        try:
            with self.directory.beating():  # W&B may take its time
                sinks = SinkGroup(self._sinks())
            self._supervise(sinks, signals)
        except OSError as failure:
            cause = as_told(failure, self.directory.path)
            cause.__cause__ = failure
            # What had been opened on the way is closed: without a free descriptor Python could not remove its folder.
            traceback.clear_frames(failure.__traceback__)
        except BaseException as failure:
            cause = failure
        summary = self.summary.build(_state(cause))
        if not isinstance(cause, TakenOver):
            cause = self._write_end(summary, cause)
        if self.meeting is not None:
            self.meeting.end(_exit_code(cause))
        sinks.finish(None if isinstance(cause, TakenOver) else summary, _exit_code(cause))
        if cause is not None:
            raise cause
        if not self.quiet:
            with heard_or_not():
                print_summary(summary, self.directory.path, self.plan.expected_share)
        return summary

    def _write_end(self, summary: dict[str, Any], cause: BaseException | None) -> BaseException | None:
        """Writes how it ended; returns why it did, ``cause`` if there is one."""
        try:
            self.directory.refuse_if_gone()  # first: what is another run's by now is not to be written
            self.directory.heartbeat()
            self.directory.write_summary(summary)
        except TakenOver as failure:
            return cause or failure
        except RunFailed as failure:
            cause = cause or failure
        try:
            _set_status(self.directory, cause)
        except RunFailed as failure:
            cause = cause or failure
        return cause

    def _supervise(self, sinks: Sink, signals: SignalWatch) -> None:
        # Under torchrun the only module that has the board is a thread of this process.
        board = Board.shared() if self.meeting is None else Board()
        path, resumption = self.directory.path, self.start.resumption
        own_step = resumption.step if resumption is not None and self.start.source == path else None
        book = CheckpointBook(
            self.plan,
            self.directory.checkpoints,
            self.directory.metrics,
            board,
            self.collector.clock,
            self._say_unless_gone,
            own_step,
            self.code,
        )
        try:
            with self._processes(board) as processes:
                for event in processes.events(signals):
                    self.directory.heartbeat()
                    if not event:
                        continue
                    for record in self.collector.add(event):
                        self.summary.add(record)
                        sinks.write(record)
                    book.add(event)
                    if event["event"] == "trace" and len(self.collector.spans) == self.plan.size:
                        self._write_trace()
        except Interrupted as interruption:
            step = book.last_step
            then = "nothing was saved yet" if step is None else f"run_dir={path} goes on after step {step}"
            raise Interrupted(f"{interruption}; {then}", interruption.exit_code) from interruption

    def _say_unless_gone(self, line: str) -> None:
        """Of a file that training goes on without, except where the whole run directory is gone, which ends it."""
        self.directory.refuse_if_gone()
        say(line)

    def _write_trace(self) -> None:
        try:
            write_trace(self.directory.trace, self.collector.spans)
        except RunFailed as failure:  # training is worth more than its trace
            self._say_unless_gone(
                f"{self.directory.trace.name} cannot be written ({failure.__cause__}); training goes on without it."
            )

    def _processes(self, board: Board) -> Supervisor | Members:
        path, resumption = self.directory.path, self.start.resumption
        if self.meeting is None:
            return Supervisor.of_plan(self.plan, path, board, resumption)
        keep_freed_memory()
        return Members(self.plan, path, board, resumption, self.meeting)

    def _sinks(self) -> list[Sink]:
        """metrics.jsonl first: it must not miss anything."""
        plan, config = self.plan, self.plan.config
        names = {group: config[group]["name"] for group in ("method", "model", "dataset")}
        if not self.quiet:
            with heard_or_not():
                print(*plan.headlines(), sep="\n", flush=True)
        sinks: list[Sink] = [JsonLinesSink(self.directory.metrics)]
        shape = {"k": plan.k, "replicas": config["replicas"]}
        title = RunTitle(
            **names,
            **shape,
            total_steps=plan.num_steps,
            steps_per_epoch=plan.steps_per_epoch,
            best=self.summary.best,
        )
        mode = resolve_mode(config["wandb"]["mode"])
        if mode == "online" and (reason := why_unreachable()):
            # Decided before the first contact: a client that once began to reach its server does not let go of it.
            mode = "offline"
            say(
                f"W&B: {reason}; the run goes on, its data for W&B are kept in {self.directory.wandb} and "
                "`wandb sync` uploads them later."
            )
        if mode != "disabled":
            wandb_config = {**config, "plan": plan.description()}
            settings = {key: value for key, value in config["wandb"].items() if key != "mode"}
            wandb = WandbSink(self.directory.path, wandb_config, mode=mode, **settings)
            if wandb.is_new:  # the steps before are another run's, or were made with wandb.mode=disabled
                for record in self.records.kept:
                    wandb.write(record)
            sinks.append(wandb)
        sinks.append(choose_console(config["console"], title))  # last: a live display is to be ended whatever happens
        return sinks
