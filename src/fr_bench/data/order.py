"""Which images are in mini-batch t: a seeded permutation an epoch, drawn alike wherever it is needed."""

from __future__ import annotations

import torch
from torch import Tensor

from fr_bench.seeds import derive_seed


class SeededOrder:
    """The order of the training set. Module 1 draws images by it and module K labels: no label is ever sent.

    An epoch shows every image once, except those of the last, short batch, which is dropped.
    """

    def __init__(self, num_train: int, batch_size: int, seed: int) -> None:
        """Args: number of training images, images a batch (at most as many), seed of the run."""
        if not 1 <= batch_size <= num_train:
            raise ValueError(f"batch_size={batch_size}: must be 1 to {num_train}, the number of training images")
        self.num_train = num_train
        self.batch_size = batch_size
        self.steps_per_epoch = num_train // batch_size
        self._seed = seed
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def indices(self, t: int) -> Tensor:
        """Image numbers of mini-batch ``t`` (from 0, over all epochs): int64 [batch_size] on the CPU."""
        epoch, step = divmod(t, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
            self._permutation = torch.randperm(self.num_train, generator=generator)
            self._epoch = epoch
        return self._permutation[step * self.batch_size : (step + 1) * self.batch_size]
