"""How long a step of a planned run should take: measured block costs, put through the simulation of its method."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

import torch

from fr_bench.components import check_method
from fr_bench.methods.base import Method
from fr_bench.methods.bp import Backpropagation
from fr_bench.methods.ddg import DecoupledDelayedGradients
from fr_bench.methods.dgl import DecoupledGreedyLearning
from fr_bench.methods.dni import DecoupledNeuralInterfaces
from fr_bench.methods.fr import FeaturesReplay
from fr_bench.methods.pipeline import GPipe, OneForwardOneBackward, SynchronousPipeline, ZeroBubble
from fr_bench.methods.policy import Policy
from fr_bench.planning.costs import NetworkCosts
from fr_bench.planning.environment import cpu_model, usable_cores
from fr_bench.planning.measured_costs import MeasuringTask, measured_costs
from fr_bench.planning.plan import Plan
from fr_bench.planning.tracing import batch_on_meta, blocks_on_meta, trace_modules
from fr_bench.simulation import BlockTimes, Link, ModuleTimes, Setup, group_blocks, make_schedule, simulate

# By class: a user's own method may be called as it likes. A subclass has the same schedule unless it says by a policy
# of its own that it keeps or learns from something else.
SCHEDULES: dict[type[Method], str] = {
    Backpropagation: "bp",
    FeaturesReplay: "fr",
    DecoupledDelayedGradients: "ddg",
    DecoupledNeuralInterfaces: "dni",
    DecoupledGreedyLearning: "dgl",
    GPipe: "gpipe",
    OneForwardOneBackward: "1f1b",
    ZeroBubble: "zero_bubble",
}

# Whose modules train a network beside their own, and what its optimizers are called.
WITH_COMPANIONS: dict[type[Method], str] = {
    DecoupledNeuralInterfaces: "synthesizers' optimizers",
    DecoupledGreedyLearning: "auxiliary networks' optimizers",
}


@dataclass(frozen=True)
class TimePrediction:
    """Of a run.

    Attributes:
        step_s: seconds between two mini-batches with a full pipe.
        fill_s: seconds that the run takes beyond that, to fill the pipe.
        measured_on: the device that the costs were measured on.
        measured_at: when, in seconds since 1970.
        notes: what the prediction leaves out or takes for granted, in sentences without a full stop.
    """

    step_s: float
    fill_s: float
    measured_on: str
    measured_at: float
    notes: list[str]

    def training_time_s(self, num_steps: int) -> float:
        """Seconds of training for ``num_steps`` mini-batches, pipe fill included."""
        return self.fill_s + num_steps * self.step_s


def predict_time(plan: Plan) -> TimePrediction | None:
    """Measures the blocks of the plan's model, unless that was done before, and simulates its schedule.

    Returns:
        None for a method whose schedule is not known, and with replicas.

    Raises:
        ConfigError: the measurement failed.
    """
    config = plan.config
    method, hyper_parameters = check_method(config["method"])
    known = made_from(method)
    if known is None or plan.num_replicas > 1:
        return None
    blocks, x = blocks_on_meta(config, plan.sample), batch_on_meta(config, plan.sample)
    shapes = trace_modules(config, blocks, plan.cuts, x, plan.sample, plan.devices[0])
    has_companion = plan.k > 1 and known in WITH_COMPANIONS
    costs = costs_of_plan(plan, "dry_run=true", has_companion)
    message_bytes = tuple(float(module.output_bytes) for module in shapes[:-1])
    link, notes = _link(plan, costs)
    setup = Setup(_module_times(plan, costs), message_bytes, link)
    policy: Policy = method.policy(**hyper_parameters)
    schedule = make_schedule(
        SCHEDULES[known], setup, recomputes=policy.recomputes, num_microbatches=policy.num_microbatches
    )
    prediction = simulate(schedule)
    step_s, fill_s, sharing = _on_shared_devices(plan, prediction.step_time_s, prediction.fill_s, prediction.busy_s)
    if config["compile"]:
        notes.append("blocks were timed as they are: compiled ones take less")
    if config["cuda_graphs"]:
        notes.append("kernels were timed one by one, as the host launches them: those of a graph may take less")
    if has_companion:
        notes.append(f"steps of the {WITH_COMPANIONS[known]} are not counted")
    if issubclass(known, SynchronousPipeline):
        notes.append("a micro-batch is taken to cost its share of the batch")
    if known is DecoupledDelayedGradients and plan.k > 1:
        notes.append("copies of weights for the stash are not counted")
    if method is not known:
        notes.append(as_long_as(config["method"]["name"], known))
    return TimePrediction(step_s, fill_s, measured_on(plan), costs.measured_at, [*sharing, *notes])


def as_long_as(name: str, known: type[Method]) -> str:
    """The note on a user's own method."""
    return f"'{name}' is taken to take as long as {known.__name__}, which it is made from"


def made_from(method: type[Method]) -> type[Method] | None:
    """The method whose schedule, by SCHEDULES, is that of ``method``; None if none is."""
    known = next((base for base in method.__mro__ if base in SCHEDULES), None)
    says_policy = next(base for base in method.__mro__ if "policy" in vars(base))
    return known if known is not None and issubclass(known, says_policy) else None


def costs_of_plan(plan: Plan, asked_by: str, has_companion: bool) -> NetworkCosts:
    """The costs of every block on the device of module 1, from the cache or measured now; see ``measured_costs``.

    Raises:
        ConfigError: the measurement failed.
    """
    num_blocks = len(plan.block_names)
    task = MeasuringTask.of(plan.config, plan.sample, plan.devices[0], plan.threads, num_blocks, has_companion)
    return measured_costs(task, asked_by)


def _module_times(plan: Plan, costs: NetworkCosts) -> tuple[ModuleTimes, ...]:
    """Of modules 1..K."""
    blocks = [
        BlockTimes(cost.play, cost.forward, cost.backward, cost.step, 0.0, companion_s)
        for cost, companion_s in zip(costs.blocks, costs.companions, strict=True)
    ]
    modules, _ = group_blocks(blocks, plan.cuts, costs.load)
    frozen = plan.config["freeze"]
    return tuple(replace(times, step_s=0.0) if k in frozen else times for k, times in enumerate(modules, start=1))


def _link(plan: Plan, costs: NetworkCosts) -> tuple[Link, list[str]]:
    """Links between neighbours, and what they leave out."""
    if plan.k == 1 or plan.transport == "serial":
        return Link(), []
    if plan.transport == "ipc" and costs.copy_s_per_byte:
        return Link(copy_bytes_per_s=1 / costs.copy_s_per_byte), []
    return Link(), [f"messages over {plan.transport} are taken to cost nothing"]


def _on_shared_devices(
    plan: Plan, step_s: float, fill_s: float, busy_s: tuple[float, ...]
) -> tuple[float, float, list[str]]:
    """The step and fill times where modules do not have a device each, and why they are what they are."""
    if plan.transport == "serial" and plan.k > 1:
        why = "the modules share one GPU, which is taken to do one thing at a time"
        if plan.devices[0] == "cpu":
            why = "serial: the modules take turns in one process"
        return sum(busy_s), 0.0, [why]
    work_s: defaultdict[str, float] = defaultdict(float)
    for device, module_s in zip(plan.devices, busy_s, strict=True):
        work_s[device] += module_s
    cores = usable_cores() or 1
    if "cpu" in work_s:
        work_s["cpu"] *= min(1.0, plan.threads / cores)
    busiest = max(work_s, key=lambda device: work_s[device])
    if work_s[busiest] <= step_s or math.isclose(work_s[busiest], step_s):
        return step_s, fill_s, []
    shared = f"the {cores} cores" if busiest == "cpu" else busiest
    return work_s[busiest], fill_s, [f"the modules share {shared}, which sets the pace"]


def measured_on(plan: Plan) -> str:
    """The device that the plan's blocks are measured on, in words."""
    device = plan.devices[0]
    if device == "cpu":
        threads = "1 thread" if plan.threads == 1 else f"{plan.threads} threads"
        return f"{cpu_model()}, {threads}"
    return torch.cuda.get_device_name(device)
