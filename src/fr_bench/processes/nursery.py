"""Where a run's processes come from: a server process imports torch once, and every process is forked from it.

A fresh interpreter for each of K modules would import torch, and what its optimizers import, K times: about five
seconds of a core each. The server starts no thread and touches no GPU, so what is forked from it is as good as new. It
lives as long as the process that uses it.

Those seconds pass on another core while this process makes ready what else a run needs, if the server is started early:
:func:`context` does not wait for it.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import multiprocessing.util
import os
import signal
import tempfile
import time
from multiprocessing import forkserver, heap, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess

from fr_bench.errors import ConfigError, RunFailed
from fr_bench.processes.child import CANNOT_FORK, IGNORED, NO_MORE_PROCESSES
from fr_bench.processes.signals import held_back, how_it_ended

ENDS_WITHIN_S = 1.0  # after it has closed its connections
LONGEST_TMPDIR = 75  # letters; of a socket's address the system allows 107
THE_SERVER = "the server that a run's processes are forked from"
NUM_DESCRIPTORS = 8  # that starting a process takes, at most


def context() -> ForkServerContext:
    """The context whose processes have torch and the worker imported; starts the server, unless it is there.

    Raises:
        ConfigError: there is no place for its socket.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["fr_bench.workers.preload"])
    if not os.access("/dev/shm", os.W_OK):  # multiprocessing takes for granted that it is there
        heap.Arena._dir_candidates = []  # type: ignore[attr-defined]  # what processes share then lies in TMPDIR
    # A cluster sends its signals to every process of a job, at any time. The server can ignore them no sooner than
    # its first line of ours, seconds after its start, and multiprocessing's tracker ignores some of them only.
    with held_back(IGNORED):
        resource_tracker.ensure_running()
    with held_back(IGNORED):  # again: starting the tracker lets go of two of them
        try:
            forkserver.ensure_running()
        except OSError as error:
            folder = tempfile.gettempdir()
            raise ConfigError(
                f"processes cannot be started ({error}): TMPDIR={folder} must be a folder that files can be made in; "
                f"its name has {len(folder)} letters, and may have {LONGEST_TMPDIR}."
            ) from error
    atexit.unregister(_end)
    atexit.register(_end, os.getpid())  # once
    return found


def start(process: ForkServerProcess) -> None:
    """Starts ``process``, which is of :func:`context`.

    Raises:
        RunFailed: the server has died, as it may while it imports; or its address is gone.
        OSError: this process may not have so many open files.
    """
    with contextlib.ExitStack() as probe:  # the server would print a traceback, were it asked and then left alone
        for _ in range(NUM_DESCRIPTORS):
            probe.callback(os.close, os.open(os.devnull, os.O_RDONLY))
    try:
        process.start()
    except FileNotFoundError as error:
        raise RunFailed(
            f"the socket of the server that a run's processes are forked from is gone from {tempfile.gettempdir()}, as "
            "by what tidies up there; the same command tries again"
        ) from error
    except (EOFError, ConnectionError) as error:
        code = _exit_code_of_the_server(ENDS_WITHIN_S)
        if code == CANNOT_FORK:
            raise RunFailed(NO_MORE_PROCESSES) from error
        how = "does not answer" if code is None else how_it_ended(code)
        raise RunFailed(f"{THE_SERVER} {how}; the same command tries again") from error


def loss() -> str | None:
    """How the server ended, in a sentence, and with it all processes that were forked from it; None if it lives."""
    code = _exit_code_of_the_server(within_s=0)
    if code is None:
        return None
    how = how_it_ended(code)
    return f"{THE_SERVER} {how}, and they ended with it; the same command goes on from the last checkpoint"


def _exit_code_of_the_server(within_s: float) -> int | None:
    """None if it lives. Looks only: it is multiprocessing that waits for it."""
    pid, deadline = _server(), time.monotonic() + within_s
    with contextlib.suppress(ChildProcessError):
        while pid is not None:
            if found := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            if time.monotonic() >= deadline:
                break
            time.sleep(0.01)
    return None


def _server() -> int | None:
    pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


def _end(owner: int) -> None:
    """Ends the server with the process ``owner``. By itself it notices as soon as it is idle, which it is not while it
    imports: where a run was found to be finished, seconds after the command has ended.

    The folder of its socket is there afterwards, although in a long run something may have tidied up: multiprocessing,
    which removes it next, would say at length that it is gone.
    """
    server = _server()
    if server is not None and os.getpid() == owner:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.makedirs(multiprocessing.util.get_temp_dir(), exist_ok=True)
