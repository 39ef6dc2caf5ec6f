"""How modules that share no memory, or no module 1, learn of the pauses that ``processes/board.py`` writes down.

Module 1 of replica 1 decides as it always does. Then the word travels the way that features go, one small message ahead
of them in every iteration: up the modules of its replica, and from it to module 1 of every other replica.

    replica 1   module 1 -> module 2 -> ... -> module K
                    |-----> replica 2, module 1 -> module 2 -> ... -> module K
                    '-----> replica 3, ...

    every module, iteration t:   receive the word | pass it on | play t | look at the own board | learn t | barrier

  - Nobody waits for what does not come anyway: the module below says the word before it plays t, and its features are
    waited for next. Module 1 of another replica waits until that of replica 1 has begun t, which in iteration t - 1
    waited for its gradients.
  - Nobody looks too early or too late: every module has a board of its own, and writes the word about t there before it
    plays t. Under nccl this needs no waiting for the device, since the word travels through the host.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.distributed as dist

from fr_bench.transport.spec import noticing_loss
from fr_bench.waits import waiting_for

GO_ON, PAUSE, STOP = range(3)
# The sender is never more than a few iterations ahead of the receiver: gradients, features and sums hold it back.
MOST_UNFINISHED = 64


class Relay:
    """One module's place in the chain.

    Args:
        number: of the module, from 1; its rank is one less.
        num_modules, num_replicas: of the run.
        group: all modules of all replicas; used for nothing else.
    """

    def __init__(self, number: int, num_modules: int, num_replicas: int, group: dist.ProcessGroup | None) -> None:
        k = (number - 1) % num_modules + 1
        rank = number - 1
        self._group = group
        self._before = None if number == 1 else rank - 1 if k > 1 else 0
        self._behind = [rank + 1] if k < num_modules else []
        if number == 1:
            self._behind += [replica * num_modules for replica in range(1, num_replicas)]
        self._unfinished: deque[tuple[dist.Work, torch.Tensor]] = deque()

    def receive(self) -> int:
        """Waits for the word about this iteration: GO_ON, PAUSE or STOP after it.

        Raises:
            PeerLost: the module before is gone.
        """
        assert self._before is not None, "module 1 of replica 1 makes the word"
        word = torch.empty(1, dtype=torch.int64)
        with noticing_loss(f"module {self._before + 1} is gone"), waiting_for(f"a word from module {self._before + 1}"):
            dist.recv(word, self._before, group=self._group)
        return int(word)

    def pass_on(self, word: int) -> None:
        """Tells those behind.

        Raises:
            PeerLost: one of them is gone.
        """
        with noticing_loss("a module behind is gone"):
            while len(self._unfinished) > MOST_UNFINISHED:
                with waiting_for("room for a word"):
                    self._unfinished.popleft()[0].wait()
            for rank in self._behind:
                message = torch.tensor([word])
                work = dist.isend(message, rank, group=self._group)
                assert work is not None
                self._unfinished.append((work, message))
