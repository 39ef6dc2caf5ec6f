"""The event simulation: the table of speed-ups, the pipelines' formulas, and the engine's invariants."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace

import pytest
from fr_orders import authors_order, waiting_before_the_replay, with_barriers

from fr_bench.errors import ConfigError
from fr_bench.planning.limits import balanced_limit, balanced_shares, speedup_limit
from fr_bench.simulation import (
    METHODS,
    PEERS,
    BlockTimes,
    Deadlock,
    Link,
    ModuleTimes,
    Schedule,
    Setup,
    group_blocks,
    make_schedule,
    simulate,
)
from fr_bench.simulation.costs import CHANNEL_DEPTH
from fr_bench.simulation.data_parallel import data_parallel, ring_all_reduce_s
from fr_bench.simulation.engine import Span, execute
from fr_bench.simulation.features_replay import features_replay
from fr_bench.simulation.gpipe import gpipe
from fr_bench.simulation.interleaved import interleaved
from fr_bench.simulation.kept_graphs import delayed_gradients, synthetic_gradients
from fr_bench.simulation.locked import locked
from fr_bench.simulation.one_f_one_b import one_f_one_b
from fr_bench.simulation.program import Channel, Compute, Operation, Receive, Send
from fr_bench.simulation.zero_bubble import zero_bubble
from fr_bench.transport import ipc

FR_ORDERS = (features_replay, waiting_before_the_replay, authors_order, with_barriers)


def make_setup(shares, backward: float = 2.0, message_s: float = 0.0, **settings) -> Setup:
    """A network whose modules' forwards take ``shares``, in units of the mean; messages take ``message_s``."""
    unit = len(shares) / sum(shares)
    modules = tuple(ModuleTimes(s * unit, s * unit, backward * s * unit) for s in shares)
    return Setup(
        modules,
        (1.0,) * (len(shares) - 1),
        Link(bandwidth_bytes_per_s=1 / message_s if message_s else math.inf),
        **settings,
    )


def equal(k: int, **settings) -> Setup:
    return make_setup([1.0] * k, **settings)


def balanced(k: int, backward: float = 2.0, replays: bool = True, **settings) -> Setup:
    return make_setup(balanced_shares(k, backward, replays), backward, **settings)


def speedup(schedule: Schedule) -> float:
    """Over locked BP whose messages take no time, as in fr_bench.planning.limits: so transport shows as a loss."""
    all_work_s = sum(times.forward_s + times.backward_s for times in schedule.setup.modules)
    return all_work_s / simulate(schedule).step_time_s


def uneven(k: int, seed: int = 0) -> Setup:
    """Random costs and messages over a slow link."""
    draw = random.Random(seed)
    modules = [ModuleTimes(*(draw.uniform(0.5, 1.5) for _ in range(6))) for _ in range(k)]
    return Setup(tuple(modules), tuple(draw.uniform(0.1, 0.6) for _ in range(k - 1)), Link(0.05, 1.0, 20.0))


# K: barrier, authors' order, this order with equal cuts, balanced, balanced at c = 0.4, waiting first at c = 0.4, DDG
TABLE = {
    2: (1.20, 1.50, 1.50, 1.75, 1.75, 1.57, 2.00),
    3: (1.50, 1.80, 2.25, 2.50, 2.50, 2.18, 3.00),
    4: (1.71, 2.40, 3.00, 3.25, 3.25, 2.80, 4.00),
    8: (2.18, 4.80, 6.00, 6.25, 6.25, 5.29, 8.00),
}


@pytest.mark.parametrize("k", TABLE)
def test_the_table_of_speedups_over_locked_backpropagation(k):
    """c is a share of one module's forward under equal cuts; the reference waits for no messages."""
    schedules = (
        with_barriers(equal(k)),
        authors_order(equal(k)),
        features_replay(equal(k)),
        features_replay(balanced(k)),
        features_replay(balanced(k, message_s=0.4)),
        waiting_before_the_replay(balanced(k, message_s=0.4)),
        delayed_gradients(balanced(k, replays=False)),
    )
    assert [speedup(schedule) for schedule in schedules] == pytest.approx(TABLE[k], abs=0.005)


@pytest.mark.parametrize("k", [2, 3, 4, 8, 16, 64])
def test_the_closed_forms_behind_the_table(k):
    """Exactly, and for every K: what a cycle of messages through all modules takes."""
    share = k / (k + 1 / 3)  # forward of a balanced module below the top
    assert speedup(authors_order(equal(k))) == pytest.approx(3 * k / (4 if k == 2 else 5))
    assert speedup(with_barriers(equal(k))) == pytest.approx(3 * k / (k + 3))
    waiting_first_s = 4 * share + 2 * (k - 1) / k * 0.4
    assert speedup(waiting_before_the_replay(balanced(k, message_s=0.4))) == pytest.approx(3 * k / waiting_first_s)


@pytest.mark.parametrize(("k", "limit"), [(2, 1.71), (3, 2.43), (4, 3.14), (8, 6.00)])
def test_with_the_backward_ratio_of_cpus(k, limit):
    assert speedup(features_replay(balanced(k, backward=1.5))) == pytest.approx(limit, abs=0.005)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("method", ["fr", "ddg", "dni", "dgl"])
def test_without_messages_every_method_reaches_its_limit(method, k):
    setup = balanced(k, replays=method == "fr")
    assert speedup(make_schedule(method, setup)) == pytest.approx(balanced_limit(method, k))
    draw = random.Random(k)
    shares = [draw.uniform(0.5, 2) for _ in range(k)]
    for backward in (1.3, 2.0):
        schedule = make_schedule(method, make_setup(shares, backward))
        assert speedup(schedule) == pytest.approx(speedup_limit(shares, backward, method == "fr"))


@pytest.mark.parametrize("k", [2, 3, 8])
def test_a_replay_hides_messages_of_half_a_forward(k):
    """The two messages of a round trip through a cut have one replay to hide behind."""
    forward_s = balanced(k).modules[0].forward_s

    def step_s(share: float, schedule=features_replay) -> float:
        return simulate(schedule(balanced(k, message_s=share * forward_s))).step_time_s

    assert step_s(0.5) == pytest.approx(step_s(0))
    assert step_s(0.6) > step_s(0) * 1.01
    assert step_s(0.1, waiting_before_the_replay) > step_s(0) * 1.01


def test_latency_costs_what_a_slow_link_costs():
    slow = waiting_before_the_replay(balanced(4, message_s=0.4))
    late = waiting_before_the_replay(replace(balanced(4), link=Link(latency_s=0.4)))
    assert simulate(late).step_time_s == pytest.approx(simulate(slow).step_time_s)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_locked_backpropagation_takes_the_sum_of_all_work_and_messages(k):
    schedule = locked(equal(k, message_s=0.25))
    assert simulate(schedule).step_time_s == pytest.approx(3 * k + 2 * (k - 1) * 0.25)
    assert simulate(locked(equal(k), recomputes=True)).step_time_s == pytest.approx(4 * k)


@pytest.mark.parametrize("method", METHODS)
def test_one_module_is_ordinary_training(method):
    setup = Setup((ModuleTimes(play_s=9, forward_s=1, backward_s=2, step_s=0.5, load_s=0.25, synthesize_s=9),))
    prediction = simulate(make_schedule(method, setup))
    assert prediction.step_time_s == pytest.approx(3.75)
    assert prediction.busy_share == pytest.approx((1.0,)) and prediction.efficiency == pytest.approx(1)


# --- synchronous pipelines


@pytest.mark.parametrize(("k", "m"), [(1, 3), (2, 1), (2, 4), (4, 4), (4, 16), (8, 8), (3, 2)])
def test_the_bubble_of_gpipe(k, m):
    """(K - 1) of M + K - 1 slots; 1F1B only keeps less."""
    prediction = simulate(gpipe(equal(k), m))
    assert 1 - prediction.busy_share[0] == pytest.approx((k - 1) / (m + k - 1))
    assert simulate(one_f_one_b(equal(k), m)).step_time_s == pytest.approx(prediction.step_time_s)


def test_the_images_of_a_batch_are_loaded_once():
    """In parts, one for each micro-batch: half a second beside 3 of computing."""
    setup = Setup((ModuleTimes(1, 1, 2, load_s=0.5), ModuleTimes(1, 1, 2)), (0.0,))
    assert simulate(gpipe(setup, 4)).busy_s == pytest.approx([3.5, 3.0])


@pytest.mark.parametrize(("k", "m"), [(2, 2), (4, 4), (4, 8), (8, 16)])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_interleaving_divides_the_bubble_by_the_chunks(k, m, chunks):
    stages = (ModuleTimes(1 / chunks, 1 / chunks, 2 / chunks),) * (k * chunks)
    prediction = simulate(interleaved(Setup(stages, (0.0,) * (len(stages) - 1)), m, chunks))
    assert prediction.num_devices == k
    assert prediction.step_time_s == pytest.approx(3 + 3 * (k - 1) / chunks / m)


@pytest.mark.parametrize(("k", "m"), [(2, 2), (4, 4), (4, 8), (8, 16)])
def test_the_split_backward_fills_bubbles(k, m):
    step_s = simulate(zero_bubble(equal(k), m)).step_time_s
    assert step_s == pytest.approx(3 + (k - 1) * (1 + 1 - 1) / m)  # F + D - W, against F + B
    assert step_s < simulate(one_f_one_b(equal(k), m)).step_time_s
    nothing_to_delay = simulate(zero_bubble(equal(k), m, weight_share=0)).step_time_s
    assert nothing_to_delay == pytest.approx(simulate(one_f_one_b(equal(k), m)).step_time_s)


@pytest.mark.parametrize("make", [gpipe, one_f_one_b, zero_bubble])
def test_more_microbatches_less_bubble(make):
    steps = [simulate(make(equal(4), m)).step_time_s for m in (1, 2, 4, 8, 32)]
    assert steps == sorted(steps, reverse=True) and steps[-1] >= 3


@pytest.mark.parametrize(("name", "k"), [("gpipe", 8), ("interleaved", 4)])
def test_by_default_there_are_four_microbatches_a_device(name, k):
    schedule, same = (make_schedule(name, equal(8), num_microbatches=number) for number in (None, 4 * k))
    assert schedule.programs == same.programs and len(schedule.programs) == k


def test_a_pipeline_of_one_microbatch_is_locked_backpropagation():
    setup = uneven(4)
    assert simulate(gpipe(setup, 1)).step_time_s == pytest.approx(simulate(locked(setup)).step_time_s)


def test_data_parallelism_hides_the_all_reduce_behind_the_backward():
    setup = replace(equal(4), link=Link(bandwidth_bytes_per_s=1e9))
    assert ring_all_reduce_s(1e9, 4, setup) == pytest.approx(1.5)
    assert simulate(data_parallel(setup, 0.0)).step_time_s == pytest.approx(3)
    last_bucket_s = ring_all_reduce_s(25 * 2**20, 4, setup)
    assert simulate(data_parallel(setup, 1e9)).step_time_s == pytest.approx(3 + last_bucket_s)
    assert simulate(data_parallel(setup, 10e9)).step_time_s == pytest.approx(1 + 15)
    slow = replace(setup, straggler=(1, 1, 3, 1))
    assert simulate(data_parallel(slow, 0.0)).step_time_s == pytest.approx(9)
    assert simulate(data_parallel(slow, 1e9)).step_time_s == pytest.approx(9 + last_bucket_s)


# --- stragglers


@pytest.mark.parametrize("name", [*METHODS, *PEERS])
def test_a_slower_module_never_makes_a_schedule_faster(name):
    setup = uneven(4)
    num_devices = 2 if name == "interleaved" else 4
    for slow in range(num_devices):
        steps = []
        for factor in (0.5, 1.0, 1.5, 4.0):
            straggler = tuple(factor if device == slow else 1.0 for device in range(num_devices))
            steps.append(simulate(make_schedule(name, replace(setup, straggler=straggler))).step_time_s)
        assert steps == sorted(steps) and steps[-1] > steps[0]


def test_without_locks_a_straggler_sets_the_pace_alone():
    prediction = simulate(features_replay(balanced(4, straggler=(1, 2, 1, 1))))
    assert prediction.busy_share[1] == pytest.approx(1)
    assert prediction.busy_share[0] == prediction.busy_share[2] == pytest.approx(0.5)
    assert prediction.wait_s[0] == pytest.approx(prediction.step_time_s / 2)


# --- the engine


def chain(seconds: list[list[float]], depth: int | None) -> Schedule:
    """Device 1 works and sends, device 2 receives and works; one program for all iterations."""
    channel = Channel("features", 1, 0, 1, 0.0, depth)
    programs = ((Compute("play", seconds[0][0]), Send(channel)), (Receive(channel), Compute("play", seconds[1][0])))
    return Schedule("chain", Setup((ModuleTimes(0, 0, 0),)), programs, 2, 2)


def jittery(schedule: Schedule, sigma: float, num_iterations: int, seed: int = 0) -> Schedule:
    """All iterations as a single one, in which compute times vary: those of a device in an iteration have one random
    factor, with mean 1, whose logarithm has the standard deviation ``sigma``. All schedules meet the same factors."""
    programs = []
    for device, program in enumerate(schedule.programs):
        draw = random.Random(f"{seed}/{device}")
        operations: list[Operation] = []
        for iteration in range(num_iterations):
            factor = draw.lognormvariate(-(sigma**2) / 2, sigma)
            for operation in program:
                if isinstance(operation, Compute):
                    operation = replace(operation, seconds=factor * operation.seconds)
                if iteration >= operation.first_iteration:
                    operations.append(replace(operation, first_iteration=0))
        programs.append(tuple(operations))
    return replace(schedule, programs=tuple(programs))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_full_channel_holds_its_sender_back(depth):
    """The sender needs 1 s, the receiver 10 s: message n leaves once message n - depth has been received."""
    execution = execute(chain([[1.0], [10.0]], depth), num_iterations=8)
    (log,) = execution.channels.values()
    assert log.received_s == [1 + 10 * n for n in range(8)]
    assert log.sent_s[depth:] == [max(log.received_s[n], log.sent_s[n + depth - 1] + 1) for n in range(8 - depth)]
    free = execute(chain([[1.0], [10.0]], None), num_iterations=8)
    assert free.ends_s[0] == [float(n) for n in range(1, 9)] and free.ends_s[1] == execution.ends_s[1]


def test_a_link_is_free_while_its_last_message_is_late():
    """A message of 3 s every second, which arrives 10 s after it has left: they queue for the wire alone."""
    channel = Channel("features", 1, 0, 1, 3.0, None)
    setup = Setup((ModuleTimes(0, 0, 0),), link=Link(latency_s=10.0, bandwidth_bytes_per_s=1.0))
    execution = execute(Schedule("late", setup, ((Compute("play", 1.0), Send(channel)), (Receive(channel),)), 2, 2), 4)
    assert execution.channels[channel].arrived_s == [14.0, 17.0, 20.0, 23.0]


def test_deeper_channels_even_jitter_out_where_nothing_comes_back():
    """Modules in a row that only pass features on may drift apart as far as their channels let them."""

    def step_s(depth: int | None) -> float:
        channels = [Channel("features", cut, cut - 1, cut, 0.0, depth) for cut in (1, 2, 3)]
        sends, receives = [[Send(channel)] for channel in channels], [[Receive(channel)] for channel in channels]
        parts = zip([[], *receives], [*sends, []], strict=True)
        programs = tuple((*receive, Compute("play", 1.0), *send) for receive, send in parts)
        execution = execute(jittery(Schedule("row", equal(4), programs, 0, 1), 0.3, num_iterations=2000, seed=3), 1)
        return max(ends_s[-1] for ends_s in execution.ends_s) / 2000

    steps = [step_s(depth) for depth in (1, 2, 4, None)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 1.02 * steps[1] > 1.02 * steps[2]


@pytest.mark.parametrize("make", [*FR_ORDERS, delayed_gradients, synthetic_gradients, locked])
def test_two_messages_a_channel_never_hold_a_method_back(make):
    """Neighbours wait for each other's last message in every iteration, so at most two are ever under way."""
    schedules = (make(replace(uneven(5), channel_depth=depth)) for depth in (CHANNEL_DEPTH, None))
    bounded, free = (execute(jittery(schedule, 0.5, num_iterations=100), 1) for schedule in schedules)
    assert bounded.ends_s == free.ends_s
    assert sorted(log.sent_s for log in bounded.channels.values()) == sorted(
        log.sent_s for log in free.channels.values()
    )


@pytest.mark.parametrize("make", [*FR_ORDERS, delayed_gradients, synthetic_gradients, locked])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_what_holds_in_every_execution(make, k):
    setup = uneven(k, seed=k)
    execution = execute(jittery(make(setup), 0.2, num_iterations=20), 1, traced=[0])
    for device in range(k):
        spans = [span for span in execution.spans if span.device == device]
        assert all(before.end_s <= after.start_s for before, after in itertools.pairwise(spans))  # no overlap
        computed = [span for span in spans if not span.name.startswith("wait")]
        busy_s = sum(span.end_s - span.start_s for span in computed)
        assert busy_s == pytest.approx(sum(execution.busy_s[device]))
        assert execution.ends_s[device] == [spans[-1].end_s]
    for channel, log in execution.channels.items():
        transfer_s = channel.num_bytes / setup.link.bandwidth_bytes_per_s
        assert len(log.received_s) <= len(log.sent_s) <= len(log.received_s) + CHANNEL_DEPTH
        for sent_s, arrived_s in zip(log.sent_s, log.arrived_s, strict=True):
            assert arrived_s >= sent_s + transfer_s + setup.link.latency_s - 1e-9
        for before_s, after_s in itertools.pairwise(log.arrived_s):
            assert after_s - before_s >= transfer_s - 1e-9  # one message at a time
        assert all(
            received_s >= arrived_s for received_s, arrived_s in zip(log.received_s, log.arrived_s, strict=False)
        )
        for sent_s, received_s in zip(log.sent_s[CHANNEL_DEPTH:], log.received_s, strict=False):
            assert sent_s >= received_s


@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_delayed_gradient_is_that_of_the_iteration_before(k):
    """Module k learns first in iteration K - k, from what module k + 1 first sent one iteration earlier."""
    execution = execute(features_replay(uneven(k)), 12, traced=range(12))
    for device in range(k - 1):
        backwards = [span for span in execution.spans if span.device == device and span.name == "backward"]
        above = [span for span in execution.spans if span.device == device + 1 and span.name == "backward"]
        assert backwards[0].iteration == k - 1 - device
        for mine, its in zip(backwards, above, strict=False):
            assert mine.iteration == its.iteration + 1 and mine.start_s >= its.end_s


@pytest.mark.parametrize("k", [2, 5])
def test_the_target_of_a_synthesizer_is_the_gradient_of_the_iteration_before(k):
    """Every module below the top receives one in each iteration but its first."""
    logs = execute(synthetic_gradients(uneven(k)), 12).channels
    received = [len(log.received_s) for channel, log in logs.items() if channel.what == "gradient"]
    assert received == [11] * (k - 1)


def test_copies_keep_both_modules_busy():
    copying = replace(equal(2), link=Link(copy_bytes_per_s=10.0))
    prediction = simulate(delayed_gradients(copying))
    assert prediction.step_time_s == pytest.approx(3 + 2 * 0.1)
    assert prediction.busy_s == pytest.approx((3.2, 3.2))


def test_devices_that_wait_for_each_other_are_named():
    up, down = Channel("features", 1, 0, 1, 0.0, 2), Channel("gradient", 1, 1, 0, 0.0, 2)
    programs = ((Receive(down), Send(up)), (Receive(up), Send(down)))
    with pytest.raises(Deadlock, match=r"device 1 at Receive.*gradient.*device 2 at Receive.*features"):
        simulate(Schedule("stuck", Setup((ModuleTimes(0, 0, 0),)), programs, 2, 2))


def test_the_depth_is_that_of_the_transports():
    assert CHANNEL_DEPTH == ipc.DEPTH


@pytest.mark.parametrize("make", [*FR_ORDERS, delayed_gradients, synthetic_gradients])
@pytest.mark.parametrize("k", [2, 3, 7])
def test_the_step_time_is_that_of_the_steady_state(make, k):
    """Measuring eight times as long changes nothing."""
    schedule = make(uneven(k, seed=7))
    longer = replace(schedule, num_settling=4 * schedule.num_settling, num_measured=8 * schedule.num_measured)
    expected = simulate(longer).step_time_s
    assert simulate(schedule).step_time_s == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", [features_replay, delayed_gradients])
@pytest.mark.parametrize(
    ("backward_s", "message_bytes", "fr_s", "ddg_s"),
    [
        ((2, 3, 3, 2, 3, 2, 3), (2, 0, 0, 4, 4, 0), 9, 26 / 3),
        ((3, 3, 1, 2, 2, 3), (3, 4, 3, 4, 0), 9, 8.8),
    ],
)
def test_whatever_the_steps_are_that_it_repeats(make, backward_s, message_bytes, fr_s, ddg_s):
    """Three in a pipe of seven modules, five in one of six: the cycle that sets the pace is not one through all."""
    modules = tuple(ModuleTimes(1, 1, seconds) for seconds in backward_s)
    prediction = simulate(make(Setup(modules, message_bytes, Link(bandwidth_bytes_per_s=1.0))))
    assert prediction.step_time_s == pytest.approx(fr_s if make is features_replay else ddg_s, rel=1e-12)


# --- what it is asked with, and what it answers


def test_the_time_of_a_run_counts_the_filling_of_the_pipe():
    schedule = features_replay(balanced(4))
    ends_s = max(ends[-1] for ends in execute(schedule, 1000).ends_s)
    prediction = simulate(schedule)
    assert prediction.fill_s + 1000 * prediction.step_time_s == pytest.approx(ends_s) and prediction.fill_s > 0


def test_measured_blocks_add_up_to_modules():
    blocks = [BlockTimes(i, 2 * i, 3 * i, 4 * i, 100 * i) for i in range(1, 6)]
    modules, message_bytes = group_blocks(blocks, cuts=[2, 3], load_s=7)
    assert [times.play_s for times in modules] == [3, 3, 9]
    assert modules[0] == ModuleTimes(3, 6, 9, 12, load_s=7) and modules[2].load_s == 0
    assert message_bytes == (200, 300)
    assert simulate(make_schedule("fr", Setup(modules, message_bytes))).step_time_s > 0


@pytest.mark.parametrize("name", [*METHODS, *PEERS])
def test_sixty_four_devices(name):
    num_stages = 128 if name == "interleaved" else 64
    prediction = simulate(make_schedule(name, equal(num_stages, message_s=0.1), num_microbatches=64))
    assert prediction.num_devices == 64 and 0 < max(prediction.busy_share) <= 1 + 1e-9


def draw_timeline(spans: Iterable[Span], unit_s: float, numbered: bool = False) -> str:
    """A row a device and a character for every ``unit_s``: the first letter of what it did, ``.`` for waiting; or, if
    ``numbered``, the last digit of the iteration."""
    spans = [span for span in spans if not span.name.startswith("wait")]
    origin_s = min(span.start_s for span in spans)
    num_columns = round((max(span.end_s for span in spans) - origin_s) / unit_s)
    rows = [["."] * num_columns for _ in range(1 + max(span.device for span in spans))]
    for span in spans:
        start, end = round((span.start_s - origin_s) / unit_s), round((span.end_s - origin_s) / unit_s)
        character = str(span.iteration % 10) if numbered else span.name[0].upper()
        rows[span.device][start:end] = character * (end - start)
    return "\n".join(f"device {device}  {''.join(row)}" for device, row in enumerate(rows, start=1))


def test_a_timeline_in_characters():
    spans = execute(features_replay(equal(2)), 102, traced=range(100, 102)).spans
    assert draw_timeline(spans, unit_s=1.0) == "device 1  PRBBPRBB\ndevice 2  .PBB.PBB"
    assert draw_timeline(spans, unit_s=1.0, numbered=True) == "device 1  00001111\ndevice 2  .000.111"


@pytest.mark.parametrize(
    ("make", "num_stages", "numbers"),
    [(gpipe, 3, (4,)), (one_f_one_b, 3, (4,)), (interleaved, 4, (4, 2)), (zero_bubble, 3, (4,))],
)
def test_a_pipeline_is_as_its_module_draws_it(make, num_stages, numbers):
    spans = execute(make(equal(num_stages), *numbers), 1, traced=[0]).spans
    rows = [row.split()[2] for row in draw_timeline(spans, unit_s=0.25).splitlines()]
    words = [line.split() for line in sys.modules[make.__module__].__doc__.splitlines()]
    assert rows == [line[2] for line in words if len(line) == 3 and line[0] in ("stage", "device")]


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: make_schedule("gpip", equal(2)), "Did you mean 'gpipe'"),
        (lambda: simulate(make_schedule("fr", equal(3, straggler=(2.0,)))), "1 factors for 3 devices"),
        (lambda: equal(2, straggler=(1.0, 0.0)), "simulate.straggler"),
        (lambda: Link(latency_s=-1e-6), "simulate.latency_us=-1"),
        (lambda: Link(bandwidth_bytes_per_s=0), "simulate.bandwidth_gb_s=0"),
        (lambda: Link(copy_bytes_per_s=0), "copy_bytes_per_s=0"),
        (lambda: Link(latency_s=math.inf), "simulate.latency_us=inf"),
        (lambda: make_schedule("1f1b", equal(2), num_microbatches=0), "num_microbatches=0"),
        (lambda: make_schedule("interleaved", equal(4), num_microbatches=3), "multiple of the 2 devices"),
        (lambda: make_schedule("interleaved", equal(5)), "num_chunks=2"),
        (lambda: zero_bubble(equal(2), 4, weight_share=1.5), "weight_share=1.5"),
    ],
)
def test_mistakes_are_named(mistake, words):
    with pytest.raises(ConfigError, match=words):
        mistake()


def test_sizes_that_do_not_fit_are_refused():
    for mistake in (
        lambda: Setup((ModuleTimes(1, 1, 1),) * 2, ()),
        lambda: Setup((ModuleTimes(-1, 1, 1),)),
        lambda: equal(2, channel_depth=0),
    ):
        with pytest.raises(ValueError):
            mistake()


def test_a_simulation_needs_no_torch():
    program = "import sys; sys.modules['torch'] = None; import fr_bench.simulation"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
