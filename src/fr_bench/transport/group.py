"""Process groups that outlast whatever a run does between two messages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

# Longer than any step, evaluation or diagnostic; a dead neighbour is noticed by the parent, not by this.
EXCHANGE_TIMEOUT = timedelta(hours=24)


def new_group(backend: str, ranks: Sequence[int] | None = None) -> dist.ProcessGroup:
    """A group of all processes, or of ``ranks``; all processes make it, and this one is in it."""
    group = make_group(backend, ranks)
    assert isinstance(group, dist.ProcessGroup), "this process is in the group"
    return group


def make_group(backend: str, ranks: Sequence[int] | None = None) -> object:
    """The same where this process may not be in it."""
    return dist.new_group(None if ranks is None else list(ranks), backend=backend, timeout=EXCHANGE_TIMEOUT)
