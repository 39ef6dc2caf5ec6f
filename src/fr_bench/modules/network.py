"""The blocks of one module as a single ``nn.Module``, with random streams keyed by block and mini-batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.checkpoint import checkpoint

from fr_bench.measuring.saved_tensors import SavedTensors, tensor_bytes
from fr_bench.modules.buffers import (
    STATISTICS,
    batch_norms_of,
    holds,
    is_torchs_batch_norm,
    repeating,
    still_statistics,
    unmoved_statistics,
)
from fr_bench.modules.draws import KeyedDraws

NUM_DRAWS = 32  # batches that a block may skip by chance before it is taken to skip all


class InPlaceError(ValueError):
    """A module changed its own input, which a history or a sender may still hold."""


class DetachedError(ValueError):
    """No error gradient gets through a module, to its input or to any of its parameters."""


class Network(nn.Module):
    """Blocks in order, under their own names: parameter ``conv1.weight`` of block ``stem`` is ``stem.conv1.weight``.

    A block that draws random numbers (dropout) draws the same ones whenever it sees the same mini-batch:
    its streams are keyed by (seed, block, batch), not by the order of calls, so that a replay repeats the play. That
    holds for what torch's default generators draw, on the block's device and on the host, and what Python's ``random``
    and numpy's global functions do; generators of a block's own are its own affair.
    """

    def __init__(self, blocks: Sequence[tuple[str, nn.Module]], seed: int) -> None:
        super().__init__()
        for name, block in blocks:
            self.add_module(name, block)
        self._compiled: dict[str, Callable[[Tensor], Tensor]] = {}
        self.checkpointing = False  # keep each block's input alone, and recompute the block in the backward
        # Whether blocks recompute layers there by themselves (torch.utils.checkpoint), once a backward has shown it.
        self.recomputes: bool | None = None
        self._draws = KeyedDraws(seed)
        self._batch_norms = batch_norms_of(self.modules())
        self._torchs_batch_norms = [norm for norm in self._batch_norms if is_torchs_batch_norm(norm)]
        # Other buffers, by owner and name: of layers that move some in passes, as far as passes have shown. A batch
        # norm with a forward of its own may move its statistics, and more, whatever it is told.
        self._moving = [
            (layer, name)
            for layer in self.modules()
            for name, buffer in layer.named_buffers(recurse=False)
            if buffer is not None and not (is_torchs_batch_norm(layer) and name in STATISTICS)
        ]
        self._movers: set[nn.Module] = set()  # layers that passes have shown to move a buffer

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """Maps the module's input ``x`` to its output; ``batch`` is the mini-batch's index."""
        if not self.training:
            drawing = self.drawing_blocks
            for name, block in self._named_blocks():
                x = self._forward_keyed(name, block, x, batch) if name in drawing else block(x)
            return x
        source, version = x, x._version
        for name, block in self._named_blocks():
            if self.checkpointing and torch.is_grad_enabled():
                x = self._forward_checkpointed(name, block, x, batch)
            else:
                x = self._forward_keyed(name, block, x, batch)
            if source._version != version:
                raise InPlaceError(
                    f"block '{name}' changes the input of its module in place, which may still be needed: "
                    "make its first operation out of place (for example ReLU(inplace=False))"
                )
        return x

    def _named_blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """By name, in order; one that is there twice comes twice, which ``named_children`` would leave out."""
        for name, block in self._modules.items():
            assert block is not None
            yield name, block

    def compile_blocks(self) -> None:
        """From now on training runs what torch.compile makes of each block, by itself: where the network is cut then
        makes no difference to its numbers. Evaluation, with batches of other sizes, runs the blocks as they are."""
        self._compiled = {name: torch.compile(block, dynamic=False) for name, block in self._named_blocks()}

    @property
    def is_compiled(self) -> bool:
        """Whether :meth:`compile_blocks` was called."""
        return bool(self._compiled)

    @property
    def drawing_blocks(self) -> list[str]:
        """Those that draw random numbers, as far as passes have shown."""
        return self._draws.drawing_blocks

    def _forward_keyed(self, name: str, block: nn.Module, x: Tensor, batch: int) -> Tensor:
        run = self._compiled.get(name, block) if self.training else block
        return self._draws.run(name, run, x, batch)

    def _forward_checkpointed(self, name: str, block: nn.Module, x: Tensor, batch: int) -> Tensor:
        updates = any(norm.track_running_stats for norm in self._batch_norms)
        moving = self._moving_of(block)  # what has these is put back as it was, and must not be told anything
        plain = {*block.modules()} - {layer for layer, _ in moving}
        again = repeating(unmoved_statistics(plain) if updates else still_statistics(block.modules()), moving)
        return checkpoint(
            self._forward_keyed,
            name,
            block,
            x,
            batch,
            use_reentrant=False,
            preserve_rng_state=False,  # a block's stream is keyed: the recomputation draws the same numbers
            context_fn=lambda: (nullcontext(), again),
        )

    def check_connected(self, x: Tensor, h: Tensor) -> None:
        """Raises DetachedError, naming a block, unless a backward from ``h``, the output for ``x``, reaches ``x`` if
        that wants a gradient, and something else in any case; or would in another batch, where blocks draw what they
        skip."""
        again = (self(x, batch) for batch in range(1, NUM_DRAWS) if self.drawing_blocks)
        if any(each.requires_grad and (not x.requires_grad or _reaches(each, x)) for each in chain([h], again)):
            return
        h, last = x, ""
        for name, block in self._named_blocks():
            x = h.detach().requires_grad_(h.is_floating_point())
            h = self._forward_keyed(name, block, x, 0)
            if not h.requires_grad or (x.requires_grad and not _reaches(h, x)):
                last = name
        raise DetachedError(
            f"block '{last}' lets no gradient through (torch.no_grad(), .detach(), .data or integers), so that modules "
            "cannot learn through it; partition=[...] can put it into module 1, with the block above it"
        )

    def unreached_blocks(self, x: Tensor, h: Tensor) -> list[str]:
        """Names of the blocks that have weights to train, none of which a backward from ``h``, the output for ``x``,
        reaches; nor would in another batch, where blocks draw what they skip."""
        unreached = self._unreached_from(h)
        for batch in range(1, NUM_DRAWS):
            if unreached and self.drawing_blocks:
                others = self._unreached_from(self(x, batch))
                unreached = [name for name in unreached if name in others]
        return unreached

    def _unreached_from(self, h: Tensor) -> list[str]:
        nodes = _nodes_behind(h) if h.requires_grad else ()  # of a batch that skips all blocks it may not
        reached = {id(node.variable) for node in nodes if hasattr(node, "variable")}  # those of leaves
        trained = {name: [p for p in block.parameters() if p.requires_grad] for name, block in self._named_blocks()}
        return [name for name, ps in trained.items() if ps and not any(id(p) in reached for p in ps)]

    def block_graph_bytes(self, x: Tensor, batch: int) -> list[int]:
        """What autograd saves for each block on the module's input ``x``, without weights, in bytes."""
        found, x = [], x.detach()
        with self.statistics(update=False):
            for name, block in self._named_blocks():
                saved = SavedTensors()
                with torch.enable_grad(), saved.listen():
                    # Without the graph, which goes before the next one comes: a backward has one at a time, too.
                    x = self._forward_keyed(name, block, x, batch).detach()
                found.append(tensor_bytes(saved.tensors, except_for=[*block.parameters(), *block.buffers()]))
        return found

    @contextmanager
    def noticing_recomputation(self) -> Iterator[None]:
        """Inside is a backward, which shows whether layers run again in it."""
        ran: list[nn.Module] = []
        hooks = [layer.register_forward_pre_hook(lambda layer, _: ran.append(layer)) for layer in self.modules()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        self.recomputes = bool(ran) and not self.checkpointing

    @contextmanager
    def unchanged_buffers(self) -> Iterator[None]:
        """Afterwards all buffers, running statistics among them, are what they were."""
        before = [(buffer, buffer.clone()) for buffer in self.buffers()]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, content in before:
                    buffer.copy_(content)

    def moving_buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers that passes move, batch norms' aside, by name: what a pass computes may depend on them,
        as with spectral norm's vectors."""
        if not self._moving:
            return {}
        moving = {id(layer._buffers[name]) for layer, name in self._moving}
        return {name: buffer.clone() for name, buffer in self.named_buffers() if id(buffer) in moving}

    def _moving_of(self, block: nn.Module) -> dict[tuple[nn.Module, str], Tensor]:
        """Copies of the same of one block, by owner and name."""
        if not self._moving:  # which is nearly always so
            return {}
        owners = set(block.modules())
        return {(layer, name): layer.get_buffer(name).clone() for layer, name in self._moving if layer in owners}

    @contextmanager
    def buffers_as(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the buffers that ``values`` names are those."""
        own = {name: self.get_buffer(name) for name in values}
        before = {name: buffer.clone() for name, buffer in own.items()}
        try:
            for name, buffer in own.items():
                buffer.copy_(values[name])
            yield
        finally:
            for name, buffer in own.items():
                buffer.copy_(before[name])

    @contextmanager
    def statistics(self, update: bool) -> Iterator[None]:
        """Batch norm normalises with the batch's statistics either way; the running ones, and buffers of other layers,
        move only if ``update``."""
        if update:
            yield
            return
        with still_statistics(self._batch_norms), self._moving_aside():
            yield

    @contextmanager
    def _moving_aside(self) -> Iterator[None]:
        """Layers that are not torch's batch norms move copies of their buffers, such as spectral norm's vectors: a
        graph may hold what they moved, so that it cannot be put back in place. Of one that moves a buffer all are set
        aside: it may count the passes, and move another one in every tenth."""
        aside = []
        copies: dict[int, Tensor] = {}  # one of a buffer that several layers have
        for layer, name in self._moving:
            buffer = layer._buffers[name]
            assert buffer is not None
            if id(buffer) not in copies:
                copies[id(buffer)] = buffer.clone()
            layer._buffers[name] = copy = copies[id(buffer)]
            aside.append((layer, name, buffer, copy, copy._version))
        # One that a pass skips by chance has not shown that it moves nothing. A compiler would compile every hook anew.
        skipped = set() if self.is_compiled else {layer for layer, _ in self._moving}
        hooks = [layer.register_forward_pre_hook(lambda layer, _: skipped.discard(layer)) for layer in skipped]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for layer, name, buffer, copy, version in aside:
                if layer not in skipped | self._movers:
                    is_same = layer._buffers[name] is copy and copy._version == version and holds(copy, buffer)
                    self._movers |= set() if is_same else {layer}
                layer._buffers[name] = buffer
            self._moving = [(layer, name) for layer, name, *_ in aside if layer in skipped | self._movers]

    @contextmanager
    def counted_together(self, update: bool) -> Iterator[None]:
        """Batch norms that count their batches do so here at once: one kernel instead of one each."""
        counters: dict[nn.Module, Tensor] = {}
        for norm in self._torchs_batch_norms:
            if norm.num_batches_tracked is not None and norm.momentum is not None:  # else its value is needed
                counters[norm] = norm.num_batches_tracked
        if not update or self.is_compiled or not counters:
            yield
            return
        num_batches: Counter[nn.Module] = Counter()  # two where a block uses a norm twice, none of one in eval mode

        def count(norm: nn.Module, _: Any) -> None:
            num_batches[norm] += norm.training and bool(norm.track_running_stats)

        hooks = [counting.register_forward_pre_hook(count) for counting in counters]
        for counting in counters:
            counting.register_buffer("num_batches_tracked", None)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for counting, counter in counters.items():
                counting.register_buffer("num_batches_tracked", counter)
        for number in {*num_batches.values()} - {0}:
            torch._foreach_add_([counters[norm] for norm, times in num_batches.items() if times == number], number)


def _reaches(h: Tensor, x: Tensor) -> bool:
    """Whether a backward from ``h``, which may be ``x`` itself, comes to the leaf ``x``."""
    return get_gradient_edge(x).node in _nodes_behind(h)


def _nodes_behind(h: Tensor) -> set[Node]:
    """Those of the graph that a backward from ``h`` comes to."""
    found: set[Node] = set()
    ahead: list[Node | None] = [get_gradient_edge(h).node]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in found:
            found.add(node)
            ahead += [before for before, _ in node.next_functions]
    return found
