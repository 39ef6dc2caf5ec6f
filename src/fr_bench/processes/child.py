"""A child process's first and last moments. Imports nothing heavy, so that the first of them come early."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import time
import traceback
from collections.abc import MutableSequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fr_bench.errors import ConfigError, FrBenchError, RunFailed, place_of
from fr_bench.processes.signals import THAT_STOP

if TYPE_CHECKING:
    from fr_bench.processes.reporter import Reporter

PR_SET_PDEATHSIG = 1
# Ctrl-C reaches the whole process group, a cluster's signals every process of a job; the parent decides what they mean,
# and ends us with SIGKILL.
IGNORED = (signal.SIGINT, *THAT_STOP)
CANNOT_FORK = 71  # exit code of the server where the system gives it no process; of sysexits.h
NO_MORE_PROCESSES = (
    "the system gives no more processes or threads: `ulimit -u` says how many a user may have, and a container or a "
    "job may have a limit of its own"
)
# How Python and gloo say so.
_WORDS_OF_IT = ("can't start new thread", os.strerror(errno.EAGAIN))


class ProcessTask(Protocol):
    """What one process does; pickled, so plain data, pipes and semaphores only."""

    @property
    def modules(self) -> list[int]:
        """The modules (from 1) of the process, the first of which is its name in messages."""

    def run(self, reporter: Reporter) -> None:
        """Runs in the process and returns when its work is done."""


@dataclass(frozen=True)
class Surroundings:
    """What a process would have from its parent, were it not forked from a server that may be older than they are."""

    folder: str
    variables: dict[str, str]

    @classmethod
    def here(cls) -> Surroundings:
        """Those of this process."""
        return cls(os.getcwd(), dict(os.environ))

    def adopt(self) -> None:
        """Makes them this process's own."""
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.variables)


def begin(surroundings: Surroundings) -> None:
    """Makes a process that the server forked one of its own: with its parent's folder and variables, deaf to signals
    that are its parent's to answer, and with Python's collector, which the server does without."""
    gc.enable()
    sys.excepthook = sys.__excepthook__  # the server has its own
    die_with_parent()
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    surroundings.adopt()


def main(
    surroundings: Surroundings,
    log_path: str,
    task: ProcessTask,
    connection: Connection,
    progress: MutableSequence[int],
) -> None:
    """Entry point of a process: runs ``task`` and ends the process without returning."""
    begin(surroundings)

    from fr_bench.processes.heartbeat import start_pulse
    from fr_bench.processes.reporter import Reporter

    reporter = Reporter(connection, progress)
    exit_code = 0
    has_log = False
    try:
        redirect_output(log_path)
        has_log = True
        start_pulse(reporter)
        task.run(reporter)
        reporter.send("done", modules=task.modules)
    except BaseException as error:  # sys.exit in a model of the user's own, too: its module is not done
        exit_code = 1
        if has_log:
            with contextlib.suppress(OSError):  # its disk may be full
                traceback.print_exc()
        report_error(reporter, task, error, progress)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    tidy_up()
    # Not sys.exit: a process group with a receive still posted would wait for a message that never comes.
    os._exit(exit_code)


def tidy_up() -> None:
    """Removes what an orderly exit of Python's would, and ``os._exit`` does not: semaphores that the model or a library
    (tqdm's, in torch's compiler) made here, of which a user would be warned at the end, and torch's counters."""
    with contextlib.suppress(Exception):  # somebody else's; the work is done
        multiprocessing.util._run_finalizers(0)  # type: ignore[attr-defined]
    _remove_shared_counters()


def _remove_shared_counters() -> None:
    """Removes the files in which torch counts who uses a GPU's memory that this process shares: it does so itself in an
    orderly exit only. Also one of shared memory for which there was no room, which torch leaves open. They are known by
    being mapped or open here, since another container may have processes of our number."""
    with contextlib.suppress(OSError):
        names = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_bytes().splitlines()]
        for link in os.listdir(b"/proc/self/fd"):
            with contextlib.suppress(OSError):  # that of the list itself
                names.append(os.readlink(b"/proc/self/fd/" + link))
        for name in map(os.fsdecode, names):  # some library's may be no text
            if name.startswith("/dev/shm/torch_") and not name.endswith("(deleted)"):
                Path(name).unlink(missing_ok=True)


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the one that started or forked it dies, however that dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it died before we asked
        os._exit(1)


def redirect_output(log_path: str) -> None:
    """Sends everything this process and its libraries print to ``log_path``, behind what earlier ones of the run did.

    Raises:
        RunFailed: it cannot be written to.
    """
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise RunFailed(f"{log_path}, for what a process prints: {error.strerror}; remove or rename it") from error
    if os.fstat(log).st_size:
        with contextlib.suppress(OSError):  # its disk may be full
            os.write(log, time.strftime("\n--- %Y-%m-%d %H:%M:%S: the run goes on ---\n").encode())
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def report_error(reporter: Reporter, task: ProcessTask, error: BaseException, progress: MutableSequence[int]) -> None:
    """Tells the parent what happened, so that it can tell the first cause from what followed from it."""
    from fr_bench.transport.spec import is_lost_peer

    module = getattr(error, "module", None) or task.modules[0]
    expected = isinstance(error, FrBenchError)
    message = str(error)
    if not expected:
        place = place_of(error)
        is_full = any(words in message for words in _WORDS_OF_IT)
        message = f"{type(error).__name__}: {' '.join(message.split())}" + (f" ({place})" if place else "")
        message += f"; {NO_MORE_PROCESSES}" if is_full else ""
    with contextlib.suppress(OSError):  # the parent may be gone; so are we, in a moment
        reporter.send(
            "error",
            module=module,
            step=progress[module - 1],
            message=message,
            peer_lost=is_lost_peer(error),
            is_config=isinstance(error, ConfigError),
            is_expected=expected,
            diverged_order=getattr(error, "order", None),
        )
