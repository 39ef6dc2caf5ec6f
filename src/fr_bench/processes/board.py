"""What the processes of a run agree on about pauses, in memory that they share: no barrier, no message.

A checkpoint must find all modules after the same iteration t, although they run skewed. Module 1 alone decides:
before it sends the features of iteration t it writes "pause after t" here, and every other module looks here once
it has played t. Nobody can miss it, and nobody can look too early:

    module 1   write "pause after t" | play t | send h_1^t | learn t | barrier
    module k                             receive h_{k-1}^t | play t | look here | learn t | barrier

  - Not too early: module k has h_{k-1}^t, which module k-1 made out of h_{k-2}^t, and so on down to h_1^t, which
    module 1 sent after it had written. A message orders memory: what was written before the send is seen after
    the receipt (a semaphore under ipc, the kernel's locks under a socket, program order in one process). Under nccl
    the host is ahead of what it has queued, so there the modules pause, and look, only after iterations at whose end
    they wait for their device anyway: those of the `train` records.
    The processes of `ddp` and of the pipelines receive nothing in play. What counts there is the look behind learn,
    in which every one of them has heard of process 1's; an earlier one only says what need not be kept.
  - Not too late: module 1 writes the next pause in a later iteration, which begins behind a barrier that module k
    reaches only after it has looked. Until then the word stays as it is, and the question is never "shall I
    pause?" but "is it after this very t?", so that an older or a newer answer counts as no.

The same holds for "stop after t". Only module 1 needs to hear of a signal, and it need not hear of it at once.
"""

from __future__ import annotations

from collections.abc import MutableSequence

from fr_bench.processes import nursery

# Words of the board, and who writes each.
_STOP_REQUESTED, _PAUSE_STEP, _STOP_STEP, _SETTLED_STEP = range(4)  # parent, module 1, module 1, parent
_NEVER = -1
_INITIAL = [0, _NEVER, _NEVER, _NEVER]


class Board:
    """Steps count completed iterations: a pause at step s comes after iteration s - 1."""

    def __init__(self, words: MutableSequence[int] | None = None) -> None:
        """``words``: see :meth:`shared`; by default the board of a run without a parent."""
        self._words = list(_INITIAL) if words is None else words

    @classmethod
    def shared(cls) -> Board:
        """A board that processes started with it as an argument share with this one."""
        return cls(nursery.context().RawArray("q", _INITIAL))

    def request_stop(self) -> None:
        """The parent: all modules shall finish a common step, save and end."""
        self._words[_STOP_REQUESTED] = 1

    @property
    def stop_is_requested(self) -> bool:
        """For module 1."""
        return bool(self._words[_STOP_REQUESTED])

    def pause_at(self, step: int, stop: bool) -> None:
        """Module 1, before it sends the features of iteration ``step - 1``: all pause and save, or also end."""
        if stop:
            self._words[_STOP_STEP] = step
        self._words[_PAUSE_STEP] = step

    def pauses_at(self, step: int) -> bool:
        """Whether all modules pause; to be asked once the features of iteration ``step - 1`` have come."""
        return self._words[_PAUSE_STEP] == step

    def stops_at(self, step: int) -> bool:
        """Whether all modules end; to be asked as :meth:`pauses_at`."""
        return self._words[_STOP_STEP] == step

    @property
    def stop_step(self) -> int | None:
        """Where all modules end; None if that was not asked for."""
        step = self._words[_STOP_STEP]
        return None if step == _NEVER else step

    def settle(self, step: int) -> None:
        """The parent: the checkpoint of ``step`` is whole on disk, or has failed."""
        self._words[_SETTLED_STEP] = step

    def is_settled(self, step: int) -> bool:
        """For module 1: whether nothing of the checkpoint of ``step`` is still being written."""
        return self._words[_SETTLED_STEP] == step
