"""What others can reach, read or have us run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from test_faults import Run, start  # noqa: F401  # start is a fixture

LISTENS = "0A"
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def listening_addresses(pid: int) -> list[str]:
    """Of the process's TCP sockets that listen, in the kernel's notation."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and fields[9] in inodes:
                found.append(fields[1].partition(":")[0])
    return found


def test_nobody_outside_the_machine_can_connect_to_a_run(start: Callable[..., Run]) -> None:  # noqa: F811
    run = start("k=2", "transport=gloo", "wandb.mode=offline")
    for pid in (run.process.pid, run.module(1), run.module(2)):
        assert listening_addresses(pid), "nothing listens: this test looks in the wrong place"
    for pid in run.group():
        assert all(address in LOOPBACK for address in listening_addresses(pid)), pid
