"""Where the processes of one machine meet. Nobody outside the machine can reach it: what it is told is not checked."""

from __future__ import annotations

import socket
from datetime import timedelta

import torch.distributed as dist

LOOPBACK = "127.0.0.1"
CONNECT_TIMEOUT = timedelta(minutes=5)


def open_store() -> dist.TCPStore:
    """The store, on a port of the system's choice. Left to itself it would listen on every interface."""
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    descriptor = listener.detach()  # the store closes it
    return dist.TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=descriptor)


def connect(port: int) -> dist.TCPStore:
    """The store that another process opened on ``port``."""
    return dist.TCPStore(LOOPBACK, port, is_master=False, timeout=CONNECT_TIMEOUT)
