"""The command in a process of its own that need not import torch, which takes a fresh interpreter seconds."""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from fr_bench.cli import console
from fr_bench.processes import child, nursery


class Forked:
    """``fr-bench WORDS``, forked from the server that runs' processes come from. Ends as subprocess.Popen's do."""

    def __init__(
        self,
        words: list[str],
        folder: Path,
        variables: Mapping[str, str] = os.environ,
        *,
        leads_session: bool = False,
        ignored: Collection[int] = (),
        output: socket.socket | None = None,
    ) -> None:
        """
        Args:
            ignored: signals, of those that a terminal or a cluster sends.
            output: what it prints goes there; by default its errors are kept for :meth:`communicate`.
        """
        number, self._stderr = tempfile.mkstemp(dir=folder.parent)
        os.close(number)
        surroundings = child.Surroundings(str(folder), dict(variables))
        arguments = (surroundings, words, output or self._stderr, leads_session, ignored)
        self._process = nursery.context().Process(target=_run, args=arguments)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        self._process.join(timeout)
        if timeout is not None and self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fr-bench", timeout)
        return None, Path(self._stderr).read_text()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> None:
        self._process.join(timeout)
        Path(self._stderr).unlink(missing_ok=True)


def _run(
    surroundings: child.Surroundings,
    words: list[str],
    output: socket.socket | str,
    leads_session: bool,
    ignored: Collection[int],
) -> None:
    child.begin(surroundings)
    for number in child.IGNORED:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else default)
    if leads_session:
        os.setsid()
    if isinstance(output, str):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(output, os.O_WRONLY), 2)
    else:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        output.close()
    # The server's know what theirs could do; these are as the interpreter's.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    faulthandler.enable()
    sys.argv = ["fr-bench", *words]
    try:
        sys.exit(console())
    finally:
        atexit._run_exitfuncs()  # which multiprocessing's processes leave out
