"""How far the host may be ahead of the streams on which the modules of its process train."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

MOST = 2  # iterations: one that the GPU does, and one that waits for it


class Lead:
    """Holds the host back, between iterations, until its streams are at most ``MOST`` of them behind.

    The memory of a message is its sender's again once the receiver's stream is done with it. A host that is further
    ahead takes new memory for the messages of every iteration instead, as much as chance has it, and the peak tells of
    the host rather than of the method.
    """

    def __init__(self, streams: Sequence[torch.cuda.Stream]) -> None:
        """``streams``: none where all that the host launches is on one, which uses its memory in order."""
        self._streams = streams
        self._ends: deque[list[torch.cuda.Event]] = deque()

    def end_iteration(self) -> None:
        """Notes the end of what was launched of an iteration, and waits if the streams are too far behind."""
        if not self._streams:
            return
        self._ends.append([stream.record_event(torch.cuda.Event(blocking=True)) for stream in self._streams])
        if len(self._ends) > MOST:
            for end in self._ends.popleft():
                end.synchronize()
