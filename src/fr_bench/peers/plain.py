"""The loop that everybody writes first: one process, the whole network, the whole batch."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from fr_bench.peers.task import PeerTask


class PlainLoop:
    """See :class:`fr_bench.peers.task.Training`."""

    def __init__(self, task: PeerTask) -> None:
        self._task = task
        self._model = nn.Sequential(OrderedDict(task.blocks()))
        self._optimizer = task.optimizer(self._model.parameters())

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Forward, loss, backward, step."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._task.autocast():
            loss = self._task.loss(self._model(x), y)
        loss.backward()
        self._optimizer.step()
        return loss.detach()


make = PlainLoop
