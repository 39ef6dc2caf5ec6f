"""The link of one module: the channels to its neighbours, the images below and the labels above, timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.distributed import ProcessGroup

from fr_bench.measuring.stopwatch import Stopwatch
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
        self.num_sent = self.num_received = 0
        self._is_keeping = False
        self._kept: list[tuple[int, Tensor]] = []

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
            gradient = self._gradients_in.receive(batch)
        self.num_received += 1
        return gradient

    @property
    def gradients_keep_devices_busy(self) -> bool:
        """Whether a gradient is a piece of work for the sender's device until the receiver asks for it. The same in all
        modules of a run."""
        if self._gradients_in is None and self._gradients_out is None:
            return False
        return any(end is not None and not end.is_ahead for end in (self._features_in, self._gradients_in))

    def expect_gradients(self, num_messages: int) -> None:
        """Has so many gradients that are on their way from above arrive, before they are asked for."""
        if self._gradients_in is not None:
            self._gradients_in.expect(num_messages)

    def send_gradient(self, gradient: Tensor | None, batch: int) -> None:
        """The gradient with respect to h_{k-1} of ``batch``, down; module 1 has nobody to send it to."""
        if self._gradients_out is None:
            return
        if gradient is None:
            raise RuntimeError("there is no gradient to send down: was the pass one with input_gradient=False?")
        with self._watch.span("send gradient", batch):
            self._gradients_out.send(gradient, batch)
        self.num_sent += 1
        if self._is_keeping:
            self._kept.append((batch, gradient))

    def targets(self, batch: int) -> Tensor:
        """The labels of ``batch``, where this module draws them."""
        if self._labels is None:
            raise RuntimeError("this module draws no labels: the method's needs_targets must return True")
        return self._labels.batch(batch)

    def keep_gradients(self) -> None:
        """Keeps the gradients that are sent from now on: a checkpoint needs those of its last iteration."""
        self._is_keeping = True

    def forget_gradients(self) -> None:
        """Lets them go again."""
        self._is_keeping = False
        self._kept = []

    def state_dict(self) -> dict[str, Any]:
        """The gradients that were kept, and how many were sent and received in all."""
        return {"kept": self._kept, "num_sent": self.num_sent, "num_received": self.num_received}

    def load_state_dict(self, state: dict[str, Any], num_in_flight: int) -> None:
        """Sends those of ``state`` once more that the module below had not received: the last ``num_in_flight``."""
        kept = state["kept"]
        assert num_in_flight <= len(kept), "a gradient is used in the iteration after it was sent, at the latest"
        for batch, gradient in kept[len(kept) - num_in_flight :]:
            assert self._gradients_out is not None
            self._gradients_out.send(gradient, batch)
        self.num_sent, self.num_received = state["num_sent"], state["num_received"]

    @property
    def buffer_bytes(self) -> int:
        """Bytes held by this module's ends of its channels."""
        ends = (self._features_in, self._features_out, self._gradients_in, self._gradients_out)
        return sum(end.buffer_bytes for end in ends if end is not None)
