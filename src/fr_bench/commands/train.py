"""``fr-bench train``: checks every job of the command line, lets Hydra run them, and tells how they ended.

    parse flags -> compose and check all jobs (a mistake ends it here: exit 2, nothing made)
                -> dry_run: a report on every job, and that is all
                -> hydra.main -> TrainTask, job by job -> outcomes -> table (sweep) and exit code

A job that fails does not exit, which would end a sweep: it records its outcome and returns its objective.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import io
import logging
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fr_bench.commands.train_help import help_text
from fr_bench.errors import ConfigError, FrBenchError, Interrupted, ToldElsewhere
from fr_bench.processes.heap import share_one_heap
from fr_bench.processes.signals import held_back
from fr_bench.processes.torchrun import Torchrun
from fr_bench.records.run_files import read_json
from fr_bench.settings.cluster import SLURM_LAUNCHER, check_launcher
from fr_bench.settings.compose import (
    CONFIG_NAME,
    CONFIG_PATH,
    VERSION_BASE,
    Composition,
    Job,
    compose,
    in_combination,
    plain_config,
    register,
    take_apart,
)
from fr_bench.settings.config import check
from fr_bench.settings.paths import quoted, with_quoted_paths
from fr_bench.sweeps.outcomes import Outcome, OutcomeLog, exit_code
from fr_bench.unread import heard_or_not, say, tell

if TYPE_CHECKING:
    from fr_bench.launching.meeting import Meeting


MOST_COLUMNS = 120  # of the help


def main(argv: list[str]) -> int:
    """Runs ``fr-bench train`` with Hydra's flags and overrides; returns the exit code.

    Raises:
        ConfigError: for a mistake in the command or the config, before anything is made or started.
    """
    typed, argv = argv, with_quoted_paths(argv)
    arguments = parse(argv)
    launch = Torchrun.from_environment()
    if launch is not None:  # its module trains in a second thread
        share_one_heap()
    # Hydra's parser wants all overrides side by side; ours takes them in any order.
    argv = [word for word in argv if word not in arguments.overrides]
    if argv[-1:] in (["-i"], ["--info"]):  # it would take the first override for what to tell
        argv.append("all")
    argv += arguments.overrides
    if arguments.shell_completion:
        return _show(argv)
    if launch is not None and not (arguments.help or arguments.hydra_help or arguments.info or arguments.cfg):
        return _train_with_others(argv, arguments, launch, typed)
    composition = compose(arguments)
    if arguments.help:
        return _help(arguments, composition.jobs[0])
    if arguments.hydra_help:  # of Hydra alone, which would look for our groups among its own
        return _show([word for word in argv if word not in arguments.overrides])
    if arguments.info:
        return _show(argv)
    if arguments.cfg:
        _check_all(composition.jobs, lambda job: check(job.config))
        return _show(argv)
    check_jobs(composition, run_elsewhere=composition.launcher == SLURM_LAUNCHER)
    if _is_dry_run(composition.jobs):
        return _report_all(composition)
    if composition.sweep_dir is None:
        outcomes = OutcomeLog(None)
        code = _run_hydra(argv, TrainTask(outcomes, typed))
        return exit_code(outcomes.read(), 1, code)
    if composition.launcher == SLURM_LAUNCHER:
        from fr_bench.sweeps import slurm_launcher  # needs the extra, without which that launcher cannot be chosen

        slurm_launcher.check_submission([job.launcher for job in composition.jobs], Path(composition.sweep_dir))
        slurm_launcher.install()
    # The folder's name has a time stamp in it: name it once, so that we know where to look afterwards.
    outcomes = OutcomeLog(Path(composition.sweep_dir), composition.num_jobs, _shared(composition))
    code = _run_hydra([*argv, f"hydra.sweep.dir={quoted(composition.sweep_dir)}"], TrainTask(outcomes, typed))
    table = outcomes.table()
    with heard_or_not():
        print(table, flush=True)
    return exit_code(outcomes.read(), composition.num_jobs, code)


def _train_with_others(argv: list[str], arguments: argparse.Namespace, launch: Torchrun, typed: list[str]) -> NoReturn:
    """One of the processes that torchrun started. Rank 0 looks for mistakes first, so that only one tells of them."""
    from fr_bench.launching.meeting import Meeting

    meeting = None
    try:
        meeting = Meeting(launch)
        with meeting.refusing():
            run_dir = None if launch.leads else meeting.hear("run_dir")
            composition = compose(arguments)
            _check_all(composition.jobs, lambda job: check(job.config))
            if composition.sweep_dir is not None:
                raise ConfigError("-m: torchrun starts the processes of one run; start it once for each combination.")
            config = composition.jobs[0].config
            if config["dry_run"]:
                raise ConfigError("dry_run=true: trains nothing, so it needs no torchrun; start it without.")
            if launch.leads:
                check_jobs(composition, run_elsewhere=False, starts_processes=False)
                run_dir = meeting.choose_run_dir(os.path.abspath(config["run_dir"]))
        outcomes = OutcomeLog(None)
        code = _run_hydra([*argv, f"run_dir={quoted(str(run_dir))}"], TrainTask(outcomes, typed, meeting))
        code = exit_code(outcomes.read(), 1, code)
    except FrBenchError as error:
        if not isinstance(error, ToldElsewhere):
            say(str(error))
        code = error.exit_code
    if meeting is not None:
        meeting.leave()
    atexit._run_exitfuncs()  # W&B's service finishes its file
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a module's thread may wait for a neighbour that is gone, and torch with it.
    os._exit(code)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses Hydra's flags.

    Raises:
        ConfigError: for a flag that Hydra does not have, or two that exclude each other.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        arguments, unknown = parser.parse_known_intermixed_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}.") from error
    if unknown:
        word = unknown[0].lstrip("-").replace("-", "_")
        example = word if "=" in word else f"{word}=VALUE"
        raise ConfigError(f"unknown flag '{unknown[0]}': settings are written without dashes, as {example}.")
    given = [f"--{flag}" for flag in ("run", "multirun", "cfg", "info") if getattr(arguments, flag)]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other.")
    if arguments.experimental_rerun:
        raise ConfigError("--experimental-rerun: runs keep config.yaml, not the pickle that this flag needs.")
    if arguments.resolve and not (arguments.cfg or arguments.help):
        raise ConfigError("--resolve goes with --cfg or --help.")
    return arguments


def check_jobs(composition: Composition, *, run_elsewhere: bool, starts_processes: bool = True) -> None:
    """Finds what is wrong with any job, and what of it this machine cannot serve.

    Args:
        run_elsewhere: whether the jobs run on machines that may have other devices.
        starts_processes: whether the jobs' processes are ours to start.

    Raises:
        ConfigError: naming the combination.
    """
    jobs = composition.jobs
    _check_all(jobs, lambda job: check(job.config))
    folder = composition.sweep_dir or jobs[0].config["run_dir"]
    status = read_json(Path(folder) / "status.json", complain=lambda _: None)  # whoever looks into the run complains
    is_finished = composition.sweep_dir is None and status.get("state") == "finished"
    if not is_finished:  # else it may be where nothing is written
        _check_folder(folder, is_made=not jobs[0].config["dry_run"])
    _check_all(jobs, lambda job: check_launcher(job.config, job.launcher, composition.launcher))
    if starts_processes and not run_elsewhere and not is_finished and not _is_dry_run(jobs):
        from fr_bench.processes import nursery

        nursery.context()  # before the last checks: it imports torch while we do
    with held_back([signal.SIGINT]):  # in the middle of an import it comes out as whatever that makes of it
        from fr_bench.launching.launch import check_data, check_plan  # imports torch, which --help and --cfg must not

    planned: set[str] = set()
    _check_all(jobs, lambda job: check_plan(job.config, planned, runs_here=not run_elsewhere))
    if not _is_dry_run(jobs):  # now that nothing else is wrong with any of them
        as_planned: dict[str, bool] = {}
        _check_all(jobs, lambda job: check_data(job.config, as_planned, runs_here=not run_elsewhere))


class TrainTask:
    """What Hydra calls for every job. Importable and picklable, so that a launcher may run it elsewhere."""

    def __init__(self, outcomes: OutcomeLog, typed: list[str], meeting: Meeting | None = None) -> None:
        """``typed``: the words behind ``fr-bench train``; ``meeting``: of a process that torchrun started."""
        self.outcomes = outcomes
        self.typed = typed
        self.meeting = meeting

    def __call__(self, config: DictConfig) -> float | None:
        """Runs one job; returns its best test error, None if it failed."""
        register()  # this may be another process than the one that composed
        job = HydraConfig.get()
        run_dir = Path(job.runtime.output_dir)
        number = job.job.num if job.mode == RunMode.MULTIRUN else None
        outcome = Outcome(number, list(job.overrides.task), str(run_dir))
        try:
            from fr_bench.launching.launch import run_training

            with _arguments(["train", *self.typed]):  # of which env.json tells
                summary = run_training(plain_config(config, str(run_dir)), run_dir, self.meeting)
            outcome.finish(summary.get("best_test_error"))
        except FrBenchError as error:
            if not isinstance(error, ToldElsewhere):
                say(str(error))
            outcome.fail(str(error), error.exit_code)
            if isinstance(error, ConfigError):
                _remove_if_empty(run_dir)
            if isinstance(error, Interrupted):
                # Ends a sweep, as nothing else does; on a cluster the job alone, which may yet be run again.
                raise SystemExit(error.exit_code) from error
        except KeyboardInterrupt:
            outcome.fail("interrupted", 130)
            raise
        except SystemExit:  # a cluster's signal before the run watched for it: submitit has requeued the job
            outcome.fail("stopped before it began; its job is back in the queue", 75)
            raise
        except Exception as error:  # a bug of ours: show all of it, and let the other jobs run
            tell(traceback.format_exc().rstrip())
            outcome.fail(repr(error), 1)
        finally:
            self.outcomes.add(outcome)
            if number is not None:
                line = self.outcomes.line(outcome)
                with heard_or_not():
                    print(line, flush=True)
        return outcome.best_test_error


def _shared(composition: Composition) -> list[str]:
    """The overrides that all jobs of a sweep have; none where a sweeper of the user's own decides on more jobs."""
    first, *others = composition.jobs
    if composition.num_jobs is None or not others:
        return []
    return [word for word in first.overrides if all(word in job.overrides for job in others)]


def _help(arguments: argparse.Namespace, job: Job) -> int:
    anatomy = take_apart(arguments, job)
    if arguments.resolve:
        anatomy = dataclasses.replace(anatomy, config=job.config)
    print(help_text(anatomy, min(MOST_COLUMNS, shutil.get_terminal_size((MOST_COLUMNS, 24)).columns)))
    return 0


def _show(argv: list[str]) -> int:
    """Lets Hydra print what was asked for. It runs nothing, so what fails is the command."""
    register()
    shown = io.StringIO()  # Hydra would print a traceback of what `| head` leaves unread
    try:
        with contextlib.redirect_stdout(shown):
            return 2 if _run_hydra(argv, TrainTask(OutcomeLog(None), argv)) else 0
    finally:
        sys.stdout.write(shown.getvalue())


def _check_all(jobs: list[Job], check_one: Callable[[Job], None]) -> None:
    for job in jobs:
        try:
            check_one(job)
        except ConfigError as error:
            if len(jobs) == 1:
                raise
            raise in_combination(job.overrides, error) from error


def _is_dry_run(jobs: list[Job]) -> bool:
    dry = {job.config["dry_run"] for job in jobs}
    if len(dry) > 1:
        raise ConfigError("dry_run=true,false: cannot be swept; a sweep trains all its combinations or none.")
    return dry == {True}


def _report_all(composition: Composition) -> int:
    """Prints the reports; Hydra, which would make the folders, is not called."""
    from fr_bench.commands.dry_run import report

    for number, job in enumerate(composition.jobs):
        if composition.sweep_dir is not None:
            separator = "\n" if number else ""
            print(f"{separator}job {number}: {' '.join(job.overrides)}")
        print(report(job.config), flush=True)
    return 0


def _check_folder(folder: str, *, is_made: bool) -> None:
    """Checks that ``folder`` can be made, which Hydra does before it calls us.

    Args:
        is_made: whether it will be; then a folder beside it is made to see, and removed again.
    """
    for path in (Path(folder), *Path(folder).parents):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise ConfigError(f"cannot make the folder {folder}: {path} is a link that leads nowhere.") from None
            continue
        except OSError as error:  # a name that is too long, or a folder that we may not look into
            raise ConfigError(f"cannot make the folder {folder}: {error.strerror}.") from None
        if not path.is_dir():
            raise ConfigError(f"cannot make the folder {folder}: {path} is a file.")
        if not os.access(path, os.W_OK):
            raise ConfigError(f"cannot make the folder {folder}: {path} is not writable.")
        if is_made:
            _try_to_make_one_in(path, folder)
        return


def _try_to_make_one_in(path: Path, folder: str) -> None:
    """As /proc, a place may be writable by its permissions and take nothing all the same."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".fr-bench-", dir=path))
    except OSError as error:
        raise ConfigError(
            f"cannot make the folder {folder}: {path} does not take a new folder ({error.strerror})."
        ) from None


def _run_hydra(argv: list[str], task: TrainTask) -> int:
    """Returns Hydra's own exit code: 0, or 1 if it failed outside our task (it has then said why)."""
    run = hydra.main(config_path=CONFIG_PATH, config_name=CONFIG_NAME, version_base=VERSION_BASE)(task)
    with _arguments(argv), _without_complaints():
        try:
            run()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except KeyboardInterrupt:  # before a run watches for signals, or between two
            say("interrupted")
            return 130
    return 0


@contextlib.contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv. The original stays in sys.orig_argv."""
    before = sys.argv
    sys.argv = ["fr-bench", *argv]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _without_complaints() -> Iterator[None]:
    """Hydra logs to stdout what jobs a sweep has: logging prints a traceback of every line that nobody reads."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


def _remove_if_empty(run_dir: Path) -> None:
    """Hydra makes the folder before it calls us; a mistake found late leaves none behind either."""
    inside = [folder for folder in run_dir.parents if Path.cwd() in folder.parents]
    with contextlib.suppress(OSError):  # the first folder that is not empty ends it
        for folder in (run_dir, *inside):
            folder.rmdir()
