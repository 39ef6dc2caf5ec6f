"""What a mini-batch costs in each block, and in a module made of blocks, under the costs of a method.

A meter tells what a pass costs. The one here counts: every operator of a pass that has shapes alone costs

    operations / FLOPS_PER_S + bytes / BYTES_PER_S

No clock is read, so the costs, and the cuts that follow from them, are the same on every machine. The one in
:mod:`fr_bench.planning.measured_costs` reads a clock.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fr_bench.errors import ConfigError
from fr_bench.methods.policy import Policy
from fr_bench.seeds import derive_seed, streams_of

# The reference machine stands between those that were measured, in float32. Only the ratio matters to the cuts, ten
# operations a byte: least squares give 7 for a core of an AMD EPYC (eight networks, blocks timed one by one), 10 for
# four threads of an Intel Xeon and 13 for an H100 that replays CUDA graphs (ResNet-164, modules of several cuts).
FLOPS_PER_S = 100e9  # a multiplication and an addition are two
BYTES_PER_S = 10e9  # from and to the operators' tensors
BACKWARD_PER_FORWARD = 2.0  # where an operator has no backward for shapes alone

CANNOT_RUN = (RuntimeError, ValueError, TypeError, AttributeError)  # what a block raises on an input not made for it
COMPANION = "method: what it trains beside the model"  # for messages
Result = TypeVar("Result")
NO_CONTEXT: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class BlockCost:
    """Seconds a mini-batch, for one block: of a forward without a graph, one with a graph, and a backward.

    ``step`` is the optimizer's, where a clock measured it; it takes no part in balancing.
    """

    play: float
    forward: float
    backward: float
    step: float = 0.0


@dataclass(frozen=True)
class NetworkCosts:
    """What a partition is balanced by.

    Attributes:
        blocks: in order.
        companions: by block, seconds a mini-batch of the method's own network at the output of the block (DNI's
            synthesizer, DGL's auxiliary network), if a module below the top ends there; 0 for methods without one.
        load: seconds to make a mini-batch of inputs, where a clock measured it.
        copy_s_per_byte: of a copy into shared memory, where a clock measured it.
        measured_at: when a clock measured all this, in seconds since 1970. These three take no part in balancing.
    """

    blocks: list[BlockCost]
    companions: list[float]
    load: float = 0.0
    copy_s_per_byte: float = 0.0
    measured_at: float = 0.0


Likeness = tuple[tuple[type, ...], str]


class Meter(Protocol):
    """Tells what an action costs, and when it has been told often enough.

    Attributes:
        known: by :func:`_likeness`, what a block costs and what comes out of it.
    """

    known: dict[Likeness, tuple[BlockCost, Tensor]]

    def measure(self, action: Callable[[], Result]) -> tuple[float, Result]:
        """Seconds, and what the action returned."""

    def is_enough(self, samples: Sequence[BlockCost]) -> bool:
        """Whether the median of ``samples`` will do."""


# For all networks of this process: a sweep checks one after the other.
_COUNTED: dict[Likeness, tuple[BlockCost, Tensor]] = {}


class OperationMeter:
    """Counts instead of waiting: seconds on the reference machine."""

    def __init__(self) -> None:
        self.known = _COUNTED

    def measure(self, action: Callable[[], Result]) -> tuple[float, Result]:
        """See :class:`Meter`."""
        with OperationCounter() as counter:
            result = action()
        return counter.seconds, result

    def is_enough(self, samples: Sequence[BlockCost]) -> bool:
        """Arithmetic gives the same answer every time."""
        return True


class OperationCounter(TorchDispatchMode):
    """Adds up the cost of every operator that runs inside, backwards included."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # half a second, which a worker need not pay

        super().__init__()
        self.seconds = 0.0
        self._formulas = flop_registry

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and counts it."""
        kwargs = kwargs or {}
        results = operator(*args, **kwargs)
        if operator.is_view or operator is torch.ops.aten.empty.memory_format:
            return results  # no memory is touched
        tensors = [leaf for leaf in tree_leaves((args, kwargs, results)) if isinstance(leaf, Tensor)]
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        formula = self._formulas.get(operator._overloadpacket)
        num_operations = formula(*args, **kwargs, out_val=results) if formula else 0
        self.seconds += num_operations / FLOPS_PER_S + num_bytes / BYTES_PER_S
        return results


def network_costs(
    blocks: Sequence[tuple[str, nn.Module]],
    x: Tensor,
    meter: Meter,
    companion_of: Callable[[Tensor], nn.Module | None],
    context: Callable[[], AbstractContextManager[Any]] = NO_CONTEXT,
    optimizer_of: Callable[..., torch.optim.Optimizer] | None = None,
    companion_gradient: bool = False,
) -> NetworkCosts:
    """Runs ``x`` through ``blocks``, forward and backward, and returns what each costs.

    Blocks that are built alike and get inputs alike are run once; where costs are counted, once a process.

    Args:
        blocks: in order, on the device and in the dtype and memory format of the run.
        x: the mini-batch; a shape alone (``meta``) for :class:`OperationMeter`.
        meter: what tells the cost.
        companion_of: a module's output -> the network that the method trains beside it (see Method.companion).
        context: of every forward (autocast).
        optimizer_of: parameters -> optimizer, whose steps are measured too; None where they do not matter.
        companion_gradient: whether the companion's backward goes on to the module's output.

    Raises:
        ConfigError: a block, or a companion, cannot run on what comes out of the block before.
    """
    known = meter.known
    found = NetworkCosts([], [])
    needs_gradient = False  # nothing below a first parameter has a backward
    for name, block in blocks:
        key = _likeness(block, x, needs_gradient, optimizer_of)
        if key not in known:
            with able_to_run(f"model: block '{name}'", x):
                known[key] = _cost(block, (x,), meter, context, needs_gradient, optimizer_of)
        cost, x = known[key]
        found.blocks.append(cost)
        what = f"{COMPANION}, behind block '{name}',"
        with able_to_run(what, x):
            companion, seconds = companion_of(x), 0.0
        if companion is not None:
            key = _likeness(companion, x, companion_gradient)
            if key not in known:
                labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
                with able_to_run(what, x):
                    known[key] = _cost(companion, (x, labels), meter, context, companion_gradient)
            seconds = known[key][0].forward + known[key][0].backward
        found.companions.append(seconds)
        needs_gradient = needs_gradient or any(p.requires_grad for p in block.parameters())
    return found


@contextmanager
def able_to_run(what: str, x: Tensor) -> Iterator[None]:
    """``what`` runs on ``x`` inside."""
    try:
        yield
    except CANNOT_RUN as error:
        raise ConfigError(f"{what} cannot run on input {tuple(x.shape)}: {error}{advice_on(x)}") from error


def _likeness(block: nn.Module, x: Tensor, needs_gradient: bool, optimizer_of: object = None) -> Likeness:
    """Equal for two blocks that do the same to the same input: layers, their settings, shapes of all tensors."""
    internal = vars(nn.Module())
    types = tuple(type(layer) for layer in block.modules())  # themselves: two may have one name
    layers = [
        (name, sorted((key, repr(value)) for key, value in vars(layer).items() if key not in internal))
        for name, layer in block.named_modules()
    ]
    tensors = [*block.named_parameters(), *block.named_buffers()]
    shapes = [(name, tensor.shape, tensor.requires_grad) for name, tensor in tensors]
    return types, repr((layers, shapes, x.shape, x.stride(), x.dtype, x.device, needs_gradient, optimizer_of))


def _cost(
    block: nn.Module,
    inputs: tuple[Tensor, ...],
    meter: Meter,
    context: Callable[[], AbstractContextManager[Any]],
    needs_gradient: bool,
    optimizer_of: Callable[..., torch.optim.Optimizer] | None = None,
) -> tuple[BlockCost, Tensor]:
    trained = [p for p in block.parameters() if p.requires_grad]
    optimizer = optimizer_of(trained) if optimizer_of is not None and trained else None
    samples: list[BlockCost] = []
    with streams_of(derive_seed("costs")):  # a block may draw which of its layers it skips
        while not samples or not meter.is_enough(samples):
            sample, h = _sample(block, inputs, meter, context, needs_gradient)
            if optimizer is not None:
                sample = replace(sample, step=_step(optimizer, trained, meter))
            samples.append(sample)
    medians = {part.name: statistics.median(getattr(each, part.name) for each in samples) for part in fields(BlockCost)}
    return BlockCost(**medians), h


def _step(optimizer: torch.optim.Optimizer, trained: Sequence[Tensor], meter: Meter) -> float:
    """Seconds of a step that moves nothing: the weights stay what the other samples are taken at."""
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    seconds, _ = meter.measure(optimizer.step)
    optimizer.zero_grad(set_to_none=True)
    return seconds


def _sample(
    block: nn.Module,
    inputs: tuple[Tensor, ...],
    meter: Meter,
    context: Callable[[], AbstractContextManager[Any]],
    needs_gradient: bool,
) -> tuple[BlockCost, Tensor]:
    x, *labels = inputs

    def start() -> Tensor:  # a copy that is no leaf: a block may change its input in place
        return x.detach().requires_grad_(needs_gradient).clone()

    def run(source: Tensor) -> Tensor:
        with context():
            h = block(source, *labels)
        if not isinstance(h, Tensor):
            raise TypeError(f"it returns a {type(h).__name__}, and a block returns one tensor")
        return h

    source = start()
    with torch.no_grad():
        play, _ = meter.measure(lambda: run(source))
    source = start()
    forward, h = meter.measure(lambda: run(source))
    if not h.requires_grad:
        return BlockCost(play, forward, 0.0), h
    wanted = [p for p in block.parameters() if p.requires_grad] + ([source] if needs_gradient else [])
    d = torch.ones_like(h)
    try:
        backward, _ = meter.measure(lambda: torch.autograd.grad(h, wanted, d, allow_unused=True))
    except (NotImplementedError, RuntimeError):
        if not h.is_meta:
            raise
        backward = BACKWARD_PER_FORWARD * forward  # an operator without a backward for shapes alone
    return BlockCost(play, forward, backward), h.detach()


def module_cost(policy: Policy, k: int, num_modules: int, blocks: Sequence[BlockCost]) -> float:
    """Seconds a mini-batch that ``blocks`` keep module ``k`` busy with, without a companion."""
    return sum(policy.busy(k, num_modules, cost.play, cost.forward, cost.backward) for cost in blocks)


class ModuleCosts:
    """(first, last, k) -> seconds that module ``k`` of blocks[first:last] is busy with a mini-batch.

    Infinite for a module without a parameter to train. Optimizer steps, messages and DDG's copies of the weights
    are not counted: beside convolutions they are small.
    """

    def __init__(self, costs: NetworkCosts, policy: Policy, num_modules: int, trains: Sequence[bool]) -> None:
        """``trains``: by block, whether it has parameters to train."""
        self._num_modules = num_modules
        self._companions = costs.companions
        self._num_training = list(accumulate(trains, initial=0))
        self._totals = [
            list(accumulate((module_cost(policy, k, num_modules, [cost]) for cost in costs.blocks), initial=0.0))
            for k in range(1, num_modules + 1)
        ]

    def __call__(self, first: int, last: int, k: int) -> float:
        """See the class."""
        if self._num_training[first] == self._num_training[last]:
            return float("inf")
        totals = self._totals[k - 1]
        companion = self._companions[last - 1] if k < self._num_modules else 0.0
        return totals[last] - totals[first] + companion


def advice_on(x: Tensor) -> str:
    """What else to say where a block cannot run on ``x``."""
    if len(x) == 1:  # batch norm, for one, has no statistics of one sample
        return "; it sees one sample at a time: try a larger batch_size"
    if not x.is_floating_point():
        return "; it gets tokens, integers that a model has to embed first, as model=transformer does"
    return ""
