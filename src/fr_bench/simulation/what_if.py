"""What would K = 8, 16 or 64 devices give? Block costs that were measured on one, cut and simulated for K.

    measured blocks -> cuts, balanced under the method's own costs -> modules -> schedule -> simulate -> a row

Its figures are those of devices like the one measured, each alone with its work, and of links that something else than
the modules serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fr_bench.errors import ConfigError
from fr_bench.methods.policy import Policy
from fr_bench.planning.costs import BlockCost, ModuleCosts, NetworkCosts
from fr_bench.planning.limits import WITH_COMPANIONS
from fr_bench.planning.partition import make_cuts
from fr_bench.simulation.costs import BlockTimes, Link, Setup, group_blocks
from fr_bench.simulation.data_parallel import data_parallel
from fr_bench.simulation.predict import CHUNKS, METHODS, PIPELINES, make_schedule
from fr_bench.simulation.program import Schedule
from fr_bench.simulation.result import Prediction, simulate

PLAIN = Policy(keeps="graph", gradient="true")  # a forward and a backward: what BP and the pipelines balance
MemoryOf = Callable[[str, Sequence[int]], "list[int] | None"]  # method, its cuts -> bytes of each module


@dataclass(frozen=True)
class MeasuredNetwork:
    """What a simulation is made from.

    Attributes:
        blocks: seconds a mini-batch of every block, in order.
        output_bytes: by block, of its output for a mini-batch.
        trains: by block, whether it has parameters to train.
        parameter_bytes: of all parameters to train, which are the bytes of their gradients.
        batch_size: images of a mini-batch.
        load_s: seconds to make a mini-batch of images.
        policies: of the methods, by name; what is not among them is taken to do a forward and a backward, as BP does.
        companions: by name of a method that trains a network beside the model: by block, its seconds a mini-batch if
            a module below the top ends there (see NetworkCosts).
        schedules: by name of a method, that of the one whose schedule it has, if it is a user's own.
    """

    blocks: Sequence[BlockCost]
    output_bytes: Sequence[float]
    trains: Sequence[bool]
    parameter_bytes: float
    batch_size: int
    load_s: float = 0.0
    policies: Mapping[str, Policy] = field(default_factory=dict)
    companions: Mapping[str, Sequence[float]] = field(default_factory=dict)
    schedules: Mapping[str, str] = field(default_factory=dict)

    def schedule_of(self, method: str) -> str:
        """As ``make_schedule`` knows it."""
        return self.schedules.get(method, method)


@dataclass(frozen=True)
class WhatIf:
    """A method on K simulated devices.

    Attributes:
        method, k: which on how many.
        reason: why it cannot be; then nothing else is known.
        cuts: block indices; a pipeline with several stages a device has one less than stages, ``ddp`` none.
        num_microbatches: of a pipeline: of those tried the fastest.
        step_time_s: seconds between two mini-batches with a full pipe.
        images_per_s: the batch size over that.
        speedup_vs_single: over BP on one such device, which is not a straggler.
        speedup_vs_locked: over BP locked on K such devices, with the same links and stragglers.
        efficiency: the busiest device's compute time over the step time.
        waiting_share: by device, the share of time in which it waits.
        predicted_memory: by module, bytes; None where it is not known.
    """

    method: str
    k: int
    reason: str | None = None
    cuts: list[int] | None = None
    num_microbatches: int | None = None
    step_time_s: float | None = None
    images_per_s: float | None = None
    speedup_vs_single: float | None = None
    speedup_vs_locked: float | None = None
    efficiency: float | None = None
    waiting_share: list[float] | None = None
    predicted_memory: list[int] | None = None


def what_if(
    network: MeasuredNetwork,
    ks: Sequence[int],
    methods: Sequence[str],
    link: Link,
    straggler: Sequence[float] = (),
    microbatches: Sequence[int] = (1, 2, 4, 8),
    memory_of: MemoryOf = lambda method, cuts: None,
) -> list[WhatIf]:
    """A row for every method and K.

    Args:
        network: what was measured.
        ks: numbers of devices.
        methods: names as in ``make_schedule``, or in the network's ``schedules``.
        link: between neighbours; of ``ddp``'s ring.
        straggler: factors on the compute times of devices 1, 2, ...; those beyond are not slow.
        microbatches: of the pipelines, in multiples of K, of which those that divide the batch are tried.
        memory_of: predicts memory; None where it cannot. Not asked for peers: what their implementations
            keep beside the graphs is not known here.

    Raises:
        ConfigError: an unknown method.
    """
    asked = _Question(network, link, tuple(straggler), tuple(microbatches), memory_of)
    return [asked.row(method, k) for method in methods for k in ks]


@dataclass(frozen=True)
class _Question:
    network: MeasuredNetwork
    link: Link
    straggler: tuple[float, ...]
    microbatches: tuple[int, ...]
    memory_of: MemoryOf

    def row(self, method: str, k: int) -> WhatIf:
        try:
            cuts = self._cuts(method, k)
            predicted, num_microbatches = self._fastest(method, k, cuts)
        except _Impossible as error:
            return WhatIf(method, k, reason=str(error))
        step_s = predicted.step_time_s
        return WhatIf(
            method,
            k,
            cuts=cuts,
            num_microbatches=num_microbatches,
            step_time_s=step_s,
            images_per_s=self.network.batch_size / step_s,
            speedup_vs_single=self._single_s() / step_s,
            speedup_vs_locked=self._over_locked(k, step_s),
            efficiency=predicted.efficiency,
            waiting_share=[wait_s / step_s for wait_s in predicted.wait_s],
            predicted_memory=self.memory_of(method, cuts) if self.network.schedule_of(method) in METHODS else None,
        )

    def _cuts(self, method: str, k: int) -> list[int]:
        """Balanced under the method's own costs, stage by stage."""
        if method == "ddp":
            return []
        num_stages, num_blocks = k * CHUNKS.get(method, 1), len(self.network.blocks)
        if num_stages > num_blocks:
            raise _Impossible(f"needs {num_stages} stages, and the model has {num_blocks} blocks")
        has_companion = self.network.schedule_of(method) in WITH_COMPANIONS and k > 1
        if has_companion and method not in self.network.companions:
            raise _Impossible("what the network costs that it trains beside was not measured")
        costs = NetworkCosts(list(self.network.blocks), list(self._companions(method)))
        policy = self._policy(method)
        try:
            return make_cuts(
                "measured",
                num_blocks,
                num_stages,
                lambda: ModuleCosts(costs, policy, num_stages, self.network.trains),
            )
        except ConfigError as error:
            raise _Impossible(f"has no such cuts: {error}") from error

    def _fastest(self, method: str, k: int, cuts: Sequence[int]) -> tuple[Prediction, int | None]:
        """What the schedule does; for a pipeline with the best number of micro-batches, and that number."""
        if method not in PIPELINES:
            return simulate(self._schedule(method, k, cuts)), None
        batch_size = self.network.batch_size
        numbers = [multiple * k for multiple in self.microbatches if batch_size % (multiple * k) == 0]
        if not numbers:
            tried = ", ".join(str(multiple * k) for multiple in self.microbatches)
            raise _Impossible(f"needs {tried} micro-batches, which do not divide a batch of {batch_size}")
        results = [(simulate(self._schedule(method, k, cuts, number)), number) for number in numbers]
        return min(results, key=lambda result: result[0].step_time_s)

    def _schedule(self, method: str, k: int, cuts: Sequence[int], num_microbatches: int | None = None) -> Schedule:
        setup = self._setup(method, k, cuts)
        if method == "ddp":
            if self.network.batch_size % k:
                raise _Impossible(f"needs equal shares, and {k} does not divide a batch of {self.network.batch_size}")
            return data_parallel(setup, self.network.parameter_bytes, k)
        recomputes = self._policy(method).recomputes
        name = self.network.schedule_of(method)
        return make_schedule(name, setup, recomputes=recomputes, num_microbatches=num_microbatches)

    def _setup(self, method: str, k: int, cuts: Sequence[int]) -> Setup:
        network = self.network
        blocks = [
            BlockTimes(cost.play, cost.forward, cost.backward, cost.step, num_bytes, companion_s)
            for cost, num_bytes, companion_s in zip(
                network.blocks, network.output_bytes, self._companions(method), strict=True
            )
        ]
        modules, message_bytes = group_blocks(blocks, cuts, network.load_s)
        slow = (*self.straggler, *(1.0 for _ in range(k)))[:k] if self.straggler else ()
        return Setup(modules, message_bytes, self.link, straggler=slow)

    def _policy(self, method: str) -> Policy:
        return self.network.policies.get(method, PLAIN)

    def _companions(self, method: str) -> Sequence[float]:
        return self.network.companions.get(method, [0.0] * len(self.network.blocks))

    def _single_s(self) -> float:
        blocks = self.network.blocks
        return self.network.load_s + sum(cost.forward + cost.backward + cost.step for cost in blocks)

    def _over_locked(self, k: int, step_s: float) -> float | None:
        """None where the network cannot be cut into K."""
        try:
            return self._fastest("bp", k, self._cuts("bp", k))[0].step_time_s / step_s
        except _Impossible:
            return None


class _Impossible(Exception):
    """A method that cannot run on so many devices; the message says why."""
