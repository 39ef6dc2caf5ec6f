"""From measurements to the rows of bench.json: medians with quartiles, speed-ups, limits."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain

from fr_bench.bench.checkpoints import CheckpointCost
from fr_bench.bench.contenders import Contender
from fr_bench.bench.measurement import Iteration, Measurement
from fr_bench.measuring.stopwatch import KINDS
from fr_bench.peers import PEERS

COMPUTING = ("play_s", "learn_s")  # kinds of spans in which a module computes
# Settings that say how modules work together, or are a method's own: BP without them is what they are compared with.
OF_THE_MODULES = (
    "transport=", "streams=", "partition=", "memory_limit_gb=", "replicas=", "devices=", "freeze=", "method.",
)  # fmt: skip


@dataclass(frozen=True)
class Quartiles:
    """A median between its quartiles."""

    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Quartiles:
        """Of the samples; of one, that one thrice."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        return cls(*statistics.quantiles(samples, n=4, method="inclusive"))


@dataclass(frozen=True)
class CheckpointCosts:
    """What a checkpoint costs; see :mod:`fr_bench.bench.checkpoints`.

    Attributes:
        extra_s: seconds by which training gets behind, its pause included.
        share_at_one_a_minute: the median of that, of a minute.
        pause_s: median of the seconds between the last step before and the first after, in which nothing is trained.
        whole_after_s: median of the seconds until it is whole on disk.
        num_bytes: median of the size of its files.
        num_samples: checkpoints that were measured, in all rounds.
    """

    extra_s: Quartiles
    share_at_one_a_minute: float
    pause_s: float
    whole_after_s: float
    num_bytes: int
    num_samples: int

    @classmethod
    def of(cls, samples: Sequence[CheckpointCost]) -> CheckpointCosts:
        """Of at least one checkpoint."""
        extra_s = Quartiles.of([each.extra_s for each in samples])
        return cls(
            extra_s=extra_s,
            share_at_one_a_minute=extra_s.median / 60,
            pause_s=statistics.median(each.pause_s for each in samples),
            whole_after_s=statistics.median(each.whole_after_s for each in samples),
            num_bytes=round(statistics.median(each.num_bytes for each in samples)),
            num_samples=len(samples),
        )


@dataclass
class Row:
    """A method or peer with K modules or processes. Seconds are those of an iteration.

    Attributes:
        method: its name; ``words`` with the settings that stood behind it in ``bench.methods``.
        k: modules or processes.
        replicas: of those modules.
        threads: of each.
        cuts: block indices (of a pipeline: of its stages); empty for one that is not cut.
        num_microbatches: of a pipeline, the fastest; ``tried_microbatches`` has the step times of all.
        step_time_s: on the slowest module or process.
        images_per_s: from the median.
        speedup_vs_single: in images/s over BP with one module; see :func:`compare`.
        speedup_vs_locked: over BP over K modules, likewise.
        speedup_vs_plain: over the plain loop, where that takes part.
        limit: the speed-up over locked BP if the busiest module neither waited nor sent: ``speedup_vs_locked /
            efficiency``, so from what was measured in this very run, while all modules are busy.
        limit_uncontended: the same from costs of the blocks that were measured while nothing else ran, for both.
        efficiency: the share of its time, over all timed iterations, in which the busiest module computes: what was
            reached of the limit.
        simulated_step_time_s: what the event simulation, which knows no replicas, makes of the computing times.
        busy_s, wait_s, send_s: by module, from ``phases_s``.
        waiting_share: by module, of its time over all timed iterations.
        phases_s: by module, by name of span (see stopwatch.KINDS), medians.
        num_processes: in which the modules are.
        peak_memory: by module or process, of the process that it is in: peak resident bytes (libraries included), on a
            GPU the allocator's peak.
        accounted_memory: by module, bytes of its tensors.
        num_samples: timed iterations of all rounds.
        shares_gpu: whether modules share a GPU. Then ``busy_s`` is how long their streams took, the others' work in
            between included, and what waiting, efficiency and limits would be made of it is None.
        device_busy_s: how long the GPU is busy in an iteration, by a profile; of several the busiest.
        idle_share: the share of the step time in which it is not. None of processes that share a GPU: what each of
            them has running there lasts as long as the others' in between.
        num_kernels: of an iteration, on all GPUs.
        checkpoint: what a checkpoint costs, where that was asked for.
    """

    method: str
    words: str
    k: int
    threads: int
    cuts: list[int]
    step_time_s: Quartiles
    images_per_s: float
    num_samples: int
    peak_memory: list[int]
    accounted_memory: list[int]
    phases_s: list[dict[str, float]]
    replicas: int = 1
    num_processes: int = 1
    num_microbatches: int | None = None
    tried_microbatches: dict[int, float] | None = None
    speedup_vs_single: float | None = None
    speedup_vs_locked: float | None = None
    speedup_vs_plain: float | None = None
    limit: float | None = None
    limit_uncontended: float | None = None
    efficiency: float | None = None
    simulated_step_time_s: float | None = None
    busy_s: list[float] | None = None
    wait_s: list[float] | None = None
    send_s: list[float] | None = None
    waiting_share: list[float] | None = None
    checkpoint: CheckpointCosts | None = None
    shares_gpu: bool = False
    device_busy_s: float | None = None
    idle_share: float | None = None
    num_kernels: float | None = None

    def as_json(self) -> dict[str, object]:
        """Plain data; what is not known is null."""
        return asdict(self)


def make_row(contender: Contender, measurements: Sequence[Measurement]) -> Row:
    """The row of one contender from its runs, without what needs other rows."""
    samples = [seconds for each in measurements for seconds in each.step_s]
    step = Quartiles.of(samples)
    rounds_by_module = zip(*(each.iterations for each in measurements), strict=True)
    by_module = [list(chain.from_iterable(rounds)) for rounds in rounds_by_module]
    row = Row(
        method=contender.method,
        words=contender.words,
        k=contender.k,
        threads=contender.plan.threads,
        cuts=list(contender.cuts),
        step_time_s=step,
        images_per_s=contender.plan.config["batch_size"] / step.median,
        num_samples=len(samples),
        peak_memory=_medians([each.peak_bytes for each in measurements]),
        accounted_memory=_medians([each.accounted_bytes for each in measurements]),
        phases_s=[_median_phases(iterations) for iterations in by_module],
        replicas=contender.plan.config["replicas"],
        num_processes=contender.num_processes,
        num_microbatches=contender.num_microbatches,
        shares_gpu=contender.shares_gpu,
        device_busy_s=_median(each.device_busy_s for each in measurements),
        num_kernels=_median(each.num_kernels for each in measurements),
    )
    if row.device_busy_s is not None and (row.num_processes == 1 or not row.shares_gpu):
        row.idle_share = max(0.0, 1 - row.device_busy_s / step.median)
    if row.phases_s:
        row.busy_s = [_total(phases, COMPUTING) for phases in row.phases_s]
        row.send_s = [_total(phases, ("send_s",)) for phases in row.phases_s]
    if row.phases_s and not row.shares_gpu:
        row.wait_s = [_total(phases, ("wait_s",)) for phases in row.phases_s]
    if len(by_module) > 1 and not row.shares_gpu:
        row.efficiency = max(_share(iterations, COMPUTING) for iterations in by_module)
        row.waiting_share = [_share(iterations, ("wait_s",)) for iterations in by_module]
    return row


def compare(rows: Sequence[Row]) -> None:
    """Fills in the speed-ups and limits, which are ratios to other rows; in place.

    They are of images/s: a row may have a batch of its own (``batch_size=128``).

    A method is compared with BP under the same switches (``cuda_graphs=true``, a precision); BP under a switch, and a
    peer, with BP as it is, which says what they bring.
    """
    plain = _speed_of(rows, "plain", frozenset(), 1)
    for row in rows:
        switches = frozenset() if row.method == "bp" or row.method in PEERS else _switches(row)
        single = _speed_of(rows, "bp", switches, 1)
        locked = _speed_of(rows, "bp", switches, row.k) if row.k > 1 else None
        row.speedup_vs_single = row.images_per_s / single if single else None
        row.speedup_vs_plain = row.images_per_s / plain if plain else None
        row.speedup_vs_locked = row.images_per_s / locked if locked else None
        if row.speedup_vs_locked and row.efficiency and row.method != "bp":
            row.limit = row.speedup_vs_locked / row.efficiency


def _switches(row: Row) -> frozenset[str]:
    """What stands behind the method's name and would make BP faster or slower, too."""
    own = row.words.split()[1:]
    return frozenset(word for word in own if not word.lstrip("+~").startswith(OF_THE_MODULES))


def _speed_of(rows: Sequence[Row], method: str, switches: frozenset[str], k: int) -> float | None:
    """Images/s of a row with these very switches and nothing else behind its name."""
    return next(
        (
            row.images_per_s
            for row in rows
            if (row.method, row.k) == (method, k) and frozenset(row.words.split()[1:]) == switches
        ),
        None,
    )


def _total(phases: Mapping[str, float], kinds: Sequence[str]) -> float:
    return sum(seconds for name, seconds in phases.items() if KINDS[name] in kinds)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _medians(by_run: Sequence[Sequence[int]]) -> list[int]:
    return [round(statistics.median(values)) for values in zip(*by_run, strict=True)]


def _median_phases(iterations: Sequence[Iteration]) -> dict[str, float]:
    return {
        name: statistics.median(iteration.phases_s.get(name, 0.0) for iteration in iterations)
        for name in KINDS
        if any(name in iteration.phases_s for iteration in iterations)
    }


def _share(iterations: Sequence[Iteration], kinds: Sequence[str]) -> float:
    """The share of a module's whole time. A ratio of medians could exceed 1, and would miss what is rare."""
    seconds = sum(iteration.seconds for iteration in iterations)
    return sum(_total(iteration.phases_s, kinds) for iteration in iterations) / seconds
