"""What a module learned, summed on the device and turned into numbers only when they are logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fr_bench.modules.module import BatchResult


class LossMeter:
    """Mean loss and error of module K since the last :meth:`take`, for `train` records ("interval") and for `eval`
    records ("epoch", whatever ``eval_every`` is).

    Args:
        device: of module K.
        global_batch_size: what errors are divided by.
        total: of a tensor over the processes that share the batches; all of them take at the same time.
    """

    def __init__(
        self, device: torch.device, global_batch_size: int, total: Callable[[Tensor], Tensor] = lambda own: own
    ) -> None:
        self._total = total
        self._global_batch_size = global_batch_size
        self._device = device
        self._sums = {"interval": self._zeros(), "epoch": self._zeros()}
        self._num_batches = {"interval": 0, "epoch": 0}

    def _zeros(self) -> Tensor:
        return torch.zeros(2, dtype=torch.float64, device=self._device)

    def add(self, result: BatchResult) -> None:
        """Adds a batch; never waits for the device."""
        values = torch.stack((result.loss.double(), result.num_errors.double() / self._global_batch_size))
        for name, total in self._sums.items():
            total += values
            self._num_batches[name] += 1

    def take(self, name: str) -> tuple[float, float]:
        """Returns (mean loss, mean error) of the ``interval`` or ``epoch``, and starts it anew."""
        loss, error = (self._total(self._sums[name]) / self._num_batches[name]).tolist()
        self._sums[name] = self._zeros()
        self._num_batches[name] = 0
        return loss, error

    def state_dict(self) -> dict[str, Any]:
        """The sums since the last :meth:`take`."""
        return {"sums": self._sums, "num_batches": self._num_batches}

    def load_sum(self, states: Sequence[dict[str, Any]], num_shares: int) -> None:
        """Goes on with an equal share, of ``num_shares``, of what all ``states`` sum to: they saw parts of the same
        batches."""
        sums = {name: sum(state["sums"][name].cpu() for state in states) / num_shares for name in self._sums}
        self.load_state_dict({"sums": sums, "num_batches": states[0]["num_batches"]})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the sums of :meth:`state_dict`."""
        self._sums = {name: total.to(self._device) for name, total in state["sums"].items()}
        self._num_batches = dict(state["num_batches"])
