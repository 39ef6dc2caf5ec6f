"""Fetching the files of a data set: once, however many jobs start together, and whole or not at all."""

from __future__ import annotations

import fcntl
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from fr_bench.errors import ConfigError
from fr_bench.unread import tell

# Of a connection that neither fails nor answers, as behind a firewall on a cluster.
TIMEOUT_S = 30.0
WITHOUT_DOWNLOAD = "dataset=digits works without a download."


class NotThere(ConfigError):
    """Files of the data set ``title`` are missing or damaged, and cannot be had; ``fault`` says which or why."""

    def __init__(self, message: str, title: str, fault: str) -> None:
        super().__init__(message)
        self.title = title
        self.fault = fault


def obtain(title: str, folder: Path, fill: Callable[[], None], remedy: str) -> None:
    """Calls ``fill`` while no other process fills ``folder``. It looks first whether there is anything left to do.

    Args:
        title: of the data set, for the message.
        remedy: a sentence on what to put where by hand.

    Raises:
        NotThere: the folder cannot be written, or the files cannot be had.
    """
    try:
        with _lock(folder):
            fill()
    except (OSError, RuntimeError, HTTPException, tarfile.TarError, EOFError) as error:
        raise NotThere(
            f"dataset.root={folder}: no complete {title} there, and fetching it failed ({error}). "
            f"{remedy}; {WITHOUT_DOWNLOAD}",
            title,
            f"no complete one in {folder} ({error})",
        ) from error


def refuse(title: str, fault: str, remedy: str) -> NotThere:
    """The error for files that are not there, or damaged, and must not be downloaded."""
    return NotThere(
        f"dataset.download=false: {title} is not complete: {fault}. {remedy}, or set dataset.download=true; "
        f"{WITHOUT_DOWNLOAD}",
        title,
        fault,
    )


def fetch(url: str, path: Path, md5: str) -> None:
    """Downloads ``url`` with a progress bar on stderr. ``path`` appears when it is complete and its MD5 is right.

    Raises:
        OSError, HTTPException, RuntimeError: no network, a full disk, or a wrong checksum.
    """
    from torchvision.datasets.utils import download_url  # a second of imports, wanted for a download only

    part = path.with_name(path.name + ".part")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        download_url(url, str(path.parent), part.name, md5)
    finally:
        socket.setdefaulttimeout(before)
    os.replace(part, path)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system drops when the process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".download.lock", "w") as file:  # left there: removing it would race with the next one
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"another process is fetching data to {folder}: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
