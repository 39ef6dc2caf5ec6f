"""``cuda_graphs=true``: the passes of a module, captured once as CUDA graphs and then launched as a whole.

A pass of ResNet-164 is some two thousand kernels of about ten microseconds, and launching one from Python takes as
long. A captured pass is launched at once, runs the same kernels on the same memory every time, and computes the same
bits. What surrounds it stays as it is: messages, the loss and the optimizer's step run eagerly, which takes a few dozen
kernels more and leaves every optimizer, schedule and hook what it was.

Why not ``torch.cuda.make_graphed_callables``: it holds one pass between forward and backward, where DDG has several in
flight, it copies parameters one by one where a pass runs on copies of the weights, and its warm-up moves running
statistics.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

NUM_WARMUPS = 3  # passes before a capture: libraries choose their algorithms and allocate what they keep

Work = Callable[[], Sequence[Tensor]]


class Recording(Protocol):
    """Work that was done once and can be repeated."""

    def record(self, work: Work) -> list[Tensor]:
        """Records ``work``; returns its results, which every :meth:`repeat` overwrites."""

    def repeat(self) -> None:
        """Does it again on what its inputs hold now, on the current stream."""


class Recorder(Protocol):
    """Makes the recordings of one module."""

    def beside(self) -> AbstractContextManager[None]:
        """Passes inside warm up what a recording needs."""

    def new_pool(self) -> Any:
        """Memory for recordings of which never one has something alive while another runs."""

    def new_recording(self, pool: Any) -> Recording:
        """A recording whose results and intermediate tensors are in ``pool``."""


class CudaRecorder:
    """Records CUDA graphs on ``device``.

    It has a stream of its own: libraries keep a workspace for each stream, and what was captured on the same one must
    not run at the same time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """See :class:`Recorder`."""
        torch.cuda.synchronize(self._device)
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.synchronize(self._device)

    def new_pool(self) -> Any:
        """See :class:`Recorder`."""
        return torch.cuda.graph_pool_handle()

    def new_recording(self, pool: Any) -> Recording:
        """See :class:`Recorder`."""
        return CudaRecording(self._stream, pool)


class CudaRecording:
    """A CUDA graph; see :class:`Recording`."""

    def __init__(self, stream: torch.cuda.Stream, pool: Any) -> None:
        self._stream = stream
        self._pool = pool
        self._graph = torch.cuda.CUDAGraph()

    def record(self, work: Work) -> list[Tensor]:
        """See :class:`Recording`; nothing is computed yet."""
        with torch.cuda.graph(self._graph, pool=self._pool, stream=self._stream):
            return list(work())

    def repeat(self) -> None:
        """See :class:`Recording`."""
        self._graph.replay()


class PlayGraph:
    """A captured forward pass that autograd does not see.

    Args:
        run: input -> output.
        x_like: an input, whose shape, dtype and strides all inputs have.
        recorder, pool: see :class:`Recorder`.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], x_like: Tensor, recorder: Recorder, pool: Any) -> None:
        self._x = torch.zeros_like(x_like)  # tokens that an embedding knows, where a recorder runs what it records
        self._recording = recorder.new_recording(pool)
        (self._h,) = self._recording.record(lambda: [run(self._x)])

    def __call__(self, x: Tensor) -> Tensor:
        """The output, the caller's own."""
        self._x.copy_(x)
        self._recording.repeat()
        return self._h.clone()


class PairGraph:
    """A captured forward pass, and its backward. Between the two it holds the activations of one mini-batch.

    Args:
        run: (input, weights or None) -> output.
        x_like, d_like: an input and an error gradient with respect to the output: shape, dtype and strides.
        leaves: the parameters by name, or copies of them that are this pass's own.
        on_copies: whether they are; then :meth:`forward` sets them first.
        needs_input_gradient: whether the input's gradient is wanted.
        recorder, pool: see :class:`Recorder`.
    """

    def __init__(
        self,
        run: Callable[[Tensor, Mapping[str, Tensor] | None], Tensor],
        x_like: Tensor,
        d_like: Tensor,
        leaves: Mapping[str, Tensor],
        on_copies: bool,
        needs_input_gradient: bool,
        recorder: Recorder,
        pool: Any,
    ) -> None:
        self._run = run
        self.x = torch.zeros_like(x_like, requires_grad=needs_input_gradient)  # as above
        self._d = torch.empty_like(d_like)
        self.leaves = dict(leaves)
        self._on_copies = on_copies
        self._learning = [leaf for leaf in self.leaves.values() if leaf.requires_grad]
        self._owner: Callable[[], object | None] = lambda: None
        self._output: Tensor | None = None  # with its graph
        self._forward, self._backward = recorder.new_recording(pool), recorder.new_recording(pool)
        (self._h,) = self._forward.record(self._play)
        self._gradients = self._backward.record(self._descend)

    def _play(self) -> list[Tensor]:
        self._output = self._run(self.x, self.leaves if self._on_copies else None)
        return [self._output.detach()]

    def _descend(self) -> list[Tensor]:
        assert self._output is not None
        wanted = [self.x, *self._learning] if self.x.requires_grad else self._learning
        for leaf in wanted:
            leaf.grad = None  # not to be added to
        torch.autograd.backward(self._output, self._d)
        found = []
        for leaf in wanted:
            # A parameter that the pass does not use has no gradient; one of zeros would be stepped with.
            found.append(leaf.grad if leaf.grad is not None else torch.empty(0, device=leaf.device))
            leaf.grad = None
        self._output = None
        return found

    @property
    def is_free(self) -> bool:
        """Whether no mini-batch is between its forward and its backward here."""
        return self._owner() is None

    def forward(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The output for ``x``, the caller's own; on copies, with the values of ``weights``."""
        with torch.no_grad():
            self.x.copy_(x)
            if weights is not None:
                torch._foreach_copy_(list(self.leaves.values()), [weights[name] for name in self.leaves])
        self._forward.repeat()
        return self._h.clone()

    def belongs_to(self, owner: object) -> None:
        """It is not free until its backward, or until ``owner`` is gone."""
        self._owner = weakref.ref(owner)

    def backward(self, d: Tensor) -> Tensor | None:
        """Sets the leaves' ``grad``; returns the input's gradient, the caller's own, where it is wanted.

        The leaves' gradients hold until the module's next pass, whose graph may use the same memory: step before it.
        """
        self._owner = lambda: None
        self._d.copy_(d)
        self._backward.repeat()
        gradients = iter(self._gradients)
        own = next(gradients).clone() if self.x.requires_grad else None
        for leaf, gradient in zip(self._learning, gradients, strict=True):
            leaf.grad = gradient if gradient.shape == leaf.shape else None
        return own
