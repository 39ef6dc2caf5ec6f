"""The synchronous pipelines: the batch in M micro-batches, one step when all have been back-propagated.

    GPipe, K = 2, M = 4     module 2       1 2 3 4 1 1 2 2 3 3 4 4             Huang et al. 2019
                            module 1   1 2 3 4 . . . 1 1 2 2 3 3 4 4 | step
    1F1B                    module 2       1 1 1 2 2 2 3 3 3 4 4 4             Narayanan et al. 2019, flushed
                            module 1   1 2 . . 1 1 3 2 2 4 3 3 . 4 4 | step    (a forward of 1, a backward of 2)

Zero bubble (ZB1P, Qi et al. 2024) is 1F1B with the gradients of the weights in the bubbles: nobody waits for them.

Kept after the forward: graphs of micro-batches. Gradient: true, of batch t. Weights: w^t. The lock stays: a module
steps once it has back-propagated the whole batch, which those above have done before. Batch norm normalises over a
micro-batch and moves its statistics M times a batch, so that with M > 1 the numbers are not BP's; with M = 1 they
are, bit for bit.

The schedules are those of torch.distributed.pipelining, which moves features and gradients itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fr_bench.errors import ConfigError
from fr_bench.measuring.saved_tensors import Held
from fr_bench.methods.base import Link, Method
from fr_bench.methods.policy import Policy
from fr_bench.modules.module import BatchResult, Module
from fr_bench.modules.passes import Pass
from fr_bench.modules.pipelining import Part, Pipeline, why_not


class SynchronousPipeline(Method):
    """A module of a pipeline with K stages, one a process; with K = 1 BP over micro-batches.

    Args:
        microbatches: M, into which a batch is cut; must divide it.
    """

    schedule: ClassVar[str]  # a key of fr_bench.modules.pipelining.SCHEDULES
    keeps: ClassVar[Literal["all micro-batches", "few micro-batches", "parts"]]
    transports = ("gloo", "nccl")
    uses_link = False
    plays_itself = True

    def __init__(self, module: Module, link: Link, *, microbatches: int = 4) -> None:
        super().__init__(module, link)
        assert module.input_like is not None and module.output_like is not None, "known after the rehearsal"
        self._num_microbatches = microbatches
        self._network = KeyedNetwork(module)
        self._pipeline = Pipeline(
            self.schedule,
            [Part(module.k - 1, self._network, module.input_like, module.output_like)],
            module.num_modules,
            microbatches,
            self._loss,
            next(module.network.parameters()).device,
            link.group,
            self._observe,
        )
        self._t = 0
        self._num_errors: list[Tensor] = []

    def play(self, t: int) -> None:
        """Nothing: the schedule mixes playing and learning."""

    def learn(self, t: int) -> BatchResult | None:
        """All of iteration ``t``; module K returns the loss and errors of the whole batch."""
        loss = self._iterate(t)
        if loss is not None:
            self.module.finite.add(loss, t)
        self.module.step(t)
        return None if loss is None else BatchResult(loss, torch.stack(self._num_errors).sum())

    def account_iteration(self, t: int, hold: Callable[[Tensor, Held], None]) -> None:
        """See :class:`Method`."""
        with self.module.watch.paused(), self.module.network.statistics(update=False):
            self._iterate(t, hold)
        self.module.optimizer.zero_grad(set_to_none=True)

    def kept_tensors(self) -> dict[str, list[Tensor]]:
        """What the library receives into, as far as it keeps it."""
        return {"buffers": self._pipeline.received}

    def _iterate(self, t: int, hold: Callable[[Tensor, Held], None] | None = None) -> Tensor | None:
        """Forwards and backwards of batch ``t``; the loss where it is known."""
        self._t = t
        self._num_errors.clear()
        x = self.link.receive_features(t) if self.module.k == 1 else None
        y = self.link.targets(t) if self.module.is_top else None
        with self.module.watch.rest("wait neighbours", t):
            return self._pipeline.step(x, y, hold)

    @contextmanager
    def _observe(self, what: Literal["play", "backward"], microbatch: int) -> Iterator[None]:
        self._network.key = self._t * self._num_microbatches + microbatch
        with self.module.watch.span(what, self._t):
            yield

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Of a micro-batch: its sum over the samples of the whole batch, so that the parts add up to the batch's."""
        result = self.module.loss(Pass(self._t, logits, logits), y)
        self._num_errors.append(result.num_errors)
        return result.loss

    @classmethod
    def check(cls, microbatches: int = 4) -> None:
        """Raises ConfigError for something else than a number of at least 1."""
        if type(microbatches) is not int or microbatches < 1:
            raise ConfigError(f"method.microbatches={microbatches}: must be a number of at least 1")

    @classmethod
    def check_run(
        cls, config: Mapping[str, Any], *, transport: str, on_gpu: bool, microbatches: int = 4, **_: Any
    ) -> None:
        """See :class:`Method`: micro-batches that do not fit, and a GPU for several modules."""
        name, batch_size, k = config["method"]["name"], config["batch_size"], config["k"]
        if batch_size % microbatches:
            raise ConfigError(
                f"method.microbatches={microbatches}: must divide batch_size={batch_size} into equal micro-batches"
            )
        problem = why_not(cls.schedule, microbatches, k)
        if problem:
            raise ConfigError(f"method.microbatches={microbatches}: {problem}")
        if on_gpu and transport == "gloo":
            raise ConfigError(
                f"method={name}: between GPUs it needs nccl, and so a GPU for each of the k={k} modules; use device=cpu"
            )
        limit_gb = config["memory_limit_gb"]
        if limit_gb is not None and not cls.policy(microbatches).is_predictable:
            raise ConfigError(f"memory_limit_gb={limit_gb:g}: the memory of method={name} is not predicted")

    @classmethod
    def policy(cls, microbatches: int = 4, **_: Any) -> Policy:
        """See :class:`Policy`."""
        return Policy(keeps=cls.keeps, gradient="true", num_microbatches=microbatches)


class GPipe(SynchronousPipeline):
    """All forwards, then all backwards: holds the graphs of the whole batch."""

    schedule = "gpipe"
    keeps = "all micro-batches"


class OneForwardOneBackward(SynchronousPipeline):
    """Backwards as early as can be: module k holds the graphs of K-k+1 micro-batches."""

    schedule = "1f1b"
    keeps = "few micro-batches"


class ZeroBubble(SynchronousPipeline):
    """1F1B whose weight gradients come later. Of the micro-batches that wait for theirs a part of the graph stays,
    how much depends on the model: nothing is predicted, the account is measured."""

    schedule = "zero_bubble"
    keeps = "parts"


class KeyedNetwork(nn.Module):
    """The module's network as the schedule calls it, which knows of no batch index.

    Attributes:
        key: of the micro-batch at hand; random layers draw by it. With M = 1 it is the batch's index.
    """

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.network = module.network
        self.key = 0
        self._autocast = module.autocast

    def forward(self, x: Tensor) -> Tensor:
        """Features in, features out."""
        with self._autocast():
            return self.network(x, self.key)
