"""The link of one module: the channels to its neighbours, the images below and the labels above, timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.distributed import ProcessGroup

from fr_bench.stopwatch import Stopwatch
from fr_bench.transport.channel import Receiver, Sender


class Batches(Protocol):
    """Images or labels by mini-batch."""

    def batch(self, t: int) -> Tensor:
        """Those of iteration ``t``, on this module's device."""


@dataclass(frozen=True)
class FirstPart:
    """The first of ``num_parts`` equal parts of every batch."""

    batches: Batches
    num_parts: int

    def batch(self, t: int) -> Tensor:
        """See :class:`Batches`."""
        whole = self.batches.batch(t)
        return whole[: len(whole) // self.num_parts]


class ModuleLink:
    """Implements :class:`fr_bench.methods.base.Link`; ends that a module does not have are None."""

    def __init__(
        self,
        watch: Stopwatch,
        *,
        images: Batches | None,
        labels: Batches | None,
        features_in: Receiver | None,
        features_out: Sender | None,
        gradients_in: Receiver | None,
        gradients_out: Sender | None,
        group: ProcessGroup | None = None,
    ) -> None:
        self.group = group
        self._watch = watch
        self._images = images
        self._labels = labels
        self._features_in = features_in
        self._features_out = features_out
        self._gradients_in = gradients_in
        self._gradients_out = gradients_out

    def receive_features(self, batch: int) -> Tensor:
        """h_{k-1} of ``batch``; in module 1 the augmented images."""
        if self._images is not None:
            with self._watch.span("load images", batch):
                return self._images.batch(batch)
        assert self._features_in is not None
        with self._watch.span("wait features", batch):
            return self._features_in.receive(batch)

    def send_features(self, h: Tensor, batch: int) -> None:
        """h_k of ``batch``, up."""
        assert self._features_out is not None
        with self._watch.span("send features", batch):
            self._features_out.send(h, batch)

    def receive_gradient(self, batch: int) -> Tensor:
        """d_k of ``batch``, from above."""
        assert self._gradients_in is not None
        with self._watch.span("wait gradient", batch):
            return self._gradients_in.receive(batch)

    def send_gradient(self, gradient: Tensor | None, batch: int) -> None:
        """The gradient with respect to h_{k-1} of ``batch``, down; module 1 has nobody to send it to."""
        if self._gradients_out is None:
            return
        assert gradient is not None
        with self._watch.span("send gradient", batch):
            self._gradients_out.send(gradient, batch)

    def targets(self, batch: int) -> Tensor:
        """The labels of ``batch``, where this module draws them."""
        assert self._labels is not None, "this module draws no labels"
        return self._labels.batch(batch)

    @property
    def buffer_bytes(self) -> int:
        """Bytes held by this module's ends of its channels."""
        ends = (self._features_in, self._features_out, self._gradients_in, self._gradients_out)
        return sum(end.buffer_bytes for end in ends if end is not None)
