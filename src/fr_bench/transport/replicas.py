"""What the replicas of one module exchange: gradients, summed while the backward still runs, and now and then a number.

    backward      d w_n ... d w_j | d w_i ... d w_1 |
    bucket 1                      | all-reduce ........ |
    bucket 2                                        | all-reduce ... |
    step                                                             | copy back, update

Gradients are gathered in buckets, in the order in which a backward makes them, because many small messages cost more
than few large ones (Li et al., PyTorch Distributed, VLDB 2020, section 3.2). All replicas send their buckets in the
same order, and all get the same bits. A parameter that the graph of one does not use, as in a block that its images
skip by chance, has the gradient of the others there, too: behind the gradients a bucket carries how many have each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from fr_bench.errors import RunFailed
from fr_bench.transport.spec import noticing_loss
from fr_bench.waits import waiting_for

# Small enough that the first is on its way early in a backward; larger ones save little.
BUCKET_BYTES = 2**20


@dataclass
class _Bucket:
    """Gradients that travel together.

    Attributes:
        buffer: flat; the message.
        slots: by index of the parameter, the part of the buffer that is its gradient's, in the parameter's shape and
            strides.
        counts: the part of the buffer that tells how many replicas have each gradient, in the order of the slots.
        leaves: by index, whose gradients have come; with the gradient, and its version then.
        work: of the message on its way.
    """

    buffer: Tensor
    slots: dict[int, Tensor]
    counts: Tensor
    leaves: dict[int, tuple[Tensor, Tensor, int]] = field(default_factory=dict)
    work: dist.Work | None = None

    @property
    def is_full(self) -> bool:
        return len(self.leaves) == len(self.slots)

    @property
    def absent(self) -> dict[int, int]:
        """Of the gradients that have not come: the index of the parameter, and the place among the slots."""
        return {index: place for place, index in enumerate(self.slots) if index not in self.leaves}


class Replicas:
    """The same module in all replicas.

    Args:
        group: their processes; all of them call the same methods in the same order.
        parameters: of the module, in the order in which a forward uses them.
    """

    def __init__(self, group: dist.ProcessGroup, parameters: Iterable[Tensor]) -> None:
        self._group = group
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._buckets = _make_buckets(self._parameters)
        self._bucket_of = {index: bucket for bucket in self._buckets for index in bucket.slots}
        self._num_sent = 0  # buckets of this backward

    @property
    def buffer_bytes(self) -> int:
        """Of the buckets: as much as the gradients. Their counts are left out."""
        return sum(slot.numel() * slot.element_size() for bucket in self._buckets for slot in bucket.slots.values())

    def listen(self, leaves: Iterable[Tensor]) -> None:
        """Sums from now on the gradients that a backward leaves in ``leaves``: the parameters, or copies of them in the
        same order."""
        for index, leaf in enumerate(leaf for leaf in leaves if leaf.requires_grad):
            leaf.register_post_accumulate_grad_hook(lambda ready, index=index: self._add(index, ready))

    def _add(self, index: int, leaf: Tensor) -> None:
        bucket = self._bucket_of[index]
        assert leaf.grad is not None
        if index in bucket.leaves or bucket.work is not None:
            raise RunFailed(
                "a backward began before module.step took the gradients of the one before, whose sum over the replicas "
                "would be lost: a method with several backwards a step needs replicas=1"
            )
        bucket.slots[index].copy_(leaf.grad)
        bucket.leaves[index] = leaf, leaf.grad, leaf.grad._version
        while self._num_sent < len(self._buckets) and self._buckets[self._num_sent].is_full:
            self._send_next()

    def _send_next(self) -> None:
        bucket = self._buckets[self._num_sent]
        self._num_sent += 1
        bucket.counts.fill_(1)
        for index, place in bucket.absent.items():
            bucket.slots[index].zero_()
            bucket.counts[place] = 0
        bucket.work = self._reduce(bucket.buffer)

    def end_backward(self) -> None:
        """Sends what is left, with parameters that this graph does not use: before what others send next."""
        while self._num_sent < len(self._buckets):
            self._send_next()

    def finish_sum(self) -> None:
        """Waits until the gradients of the last backward are those of all replicas. Nothing to do if there was none.

        Raises:
            PeerLost: a replica is gone.
            RunFailed: somebody changed a gradient before, which would be lost.
        """
        if not self._num_sent and not any(bucket.leaves for bucket in self._buckets):
            return
        self.end_backward()
        for bucket in self._buckets:
            assert bucket.work is not None
            _wait(bucket.work)
            for index, (leaf, gradient, version) in bucket.leaves.items():
                if leaf.grad is not gradient or gradient._version != version:
                    raise RunFailed(
                        "a method changed gradients before they were those of all replicas: it calls "
                        "self.module.sum_gradients(t) first"
                    )
                gradient.copy_(bucket.slots[index])
            if bucket.absent:
                counts = bucket.counts.tolist()
                for index, place in bucket.absent.items():
                    if counts[place]:
                        self._parameters[index].grad = bucket.slots[index].clone()
            bucket.leaves, bucket.work = {}, None
        self._num_sent = 0

    def total(self, own: Tensor) -> Tensor:
        """The sum of ``own`` over the replicas, a new tensor.

        Raises:
            PeerLost: a replica is gone.
        """
        summed = own.clone()
        _wait(self._reduce(summed))
        return summed

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each of ``tensors`` by its sum over the replicas.

        Raises:
            PeerLost: a replica is gone.
        """
        for work in [self._reduce(tensor) for tensor in tensors]:
            _wait(work)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """The same with the mean."""
        self.add_up(tensors)
        num_replicas = dist.get_world_size(self._group)
        for tensor in tensors:
            tensor /= num_replicas

    def _reduce(self, tensor: Tensor) -> dist.Work:
        with noticing_loss("another replica is gone"):
            work = dist.all_reduce(tensor, group=self._group, async_op=True)
        assert work is not None
        return work


def _wait(work: dist.Work) -> None:
    with noticing_loss("another replica is gone"), waiting_for("the sum over the replicas"):
        work.wait()


def _make_buckets(parameters: Sequence[Tensor]) -> list[_Bucket]:
    """From the last parameter, whose gradient comes first, to the first."""
    buckets: list[_Bucket] = []
    indices: list[int] = []
    num_bytes = 0
    for index in range(len(parameters) - 1, -1, -1):
        indices.append(index)
        num_bytes += parameters[index].numel() * parameters[index].element_size()
        is_last = index == 0 or parameters[index].dtype != parameters[index - 1].dtype
        if num_bytes >= BUCKET_BYTES or is_last:
            buckets.append(_make_bucket(parameters, indices))
            indices, num_bytes = [], 0
    return buckets


def _make_bucket(parameters: Sequence[Tensor], indices: Sequence[int]) -> _Bucket:
    first = parameters[indices[0]]
    num_elements = sum(parameters[i].numel() for i in indices)
    buffer = torch.zeros(num_elements + len(indices), dtype=first.dtype, device=first.device)
    slots, offset = {}, 0
    for i in indices:
        slots[i] = buffer.as_strided(parameters[i].shape, parameters[i].stride(), offset)
        offset += parameters[i].numel()
    return _Bucket(buffer, slots, buffer[offset:])
