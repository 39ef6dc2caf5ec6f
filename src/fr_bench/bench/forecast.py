"""``simulate.k=[8,16,64]`` of fr-bench bench: what more devices than there are would give, as rows of simulate.json."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fr_bench.bench.contenders import ConfigOf
from fr_bench.bench.json_file import write_json
from fr_bench.bench.table import ratio
from fr_bench.bench.time_prediction import SCHEDULES, as_long_as, costs_of_plan, made_from, measured_on
from fr_bench.components import check_method
from fr_bench.errors import ConfigError, NoSuchChoice, nearest
from fr_bench.methods.base import Method
from fr_bench.models import Blocks
from fr_bench.modules.network import Network
from fr_bench.planning.balance import Balance
from fr_bench.planning.checks import check_labels
from fr_bench.planning.environment import describe_environment
from fr_bench.planning.limits import WITH_COMPANIONS
from fr_bench.planning.memory_model import unpredictable
from fr_bench.planning.plan import Plan, make_plan, predict_modules
from fr_bench.planning.tracing import batch_on_meta, blocks_on_meta, trace_modules
from fr_bench.records.console import rate
from fr_bench.report.markdown import table
from fr_bench.simulation import METHODS, PEERS, PIPELINES
from fr_bench.simulation.settings import NAMES, SimulateSettings
from fr_bench.simulation.what_if import MeasuredNetwork, MemoryOf, WhatIf, what_if

ASKED_BY = "simulate.k"


@dataclass(frozen=True)
class Forecast:
    """Rows, and what they rest on.

    Attributes:
        settings: of the simulation.
        plan: of BP on one device, for what all rows share.
        measured_on: the device that the blocks were timed on, in words.
        notes: what the simulation takes for granted.
        rows: by method and number of devices.
    """

    settings: SimulateSettings
    plan: Plan
    measured_on: str
    notes: list[str]
    rows: list[WhatIf]

    def write(self, folder: Path) -> Path:
        """Writes simulate.json; returns where it is."""
        config = self.plan.config
        shared = ("model", "dataset", "batch_size", "precision", "channels_last", "optimizer", "seed")
        content = {
            "env": describe_environment(sys.argv, {**config, "threads": self.plan.threads}),
            "config": {key: config[key] for key in shared},
            "simulate": asdict(self.settings),
            "measured_on": self.measured_on,
            "notes": self.notes,
            "rows": [asdict(row) for row in self.rows],
        }
        path = folder / "simulate.json"
        write_json(path, content)
        return path

    def text(self) -> str:
        """The table and its notes, for the terminal."""
        heading = f"simulated, from costs of every block measured on {self.measured_on}:"
        return "\n".join([heading, as_table(self.rows), *(f"- {note}" for note in self.notes)])


def make_forecast(settings: SimulateSettings, microbatches: Sequence[int], config_of: ConfigOf) -> Forecast:
    """Times the blocks, unless that was done before, and simulates.

    Args:
        settings: with ``k``.
        microbatches: that the pipelines try, in multiples of K.
        config_of: further overrides -> resolved config.

    Raises:
        ConfigError: a mistake in the config, or a measurement that failed.
    """
    assert settings.k is not None, "there is something to simulate"
    # On one device each: K may exceed what the machine, or the model, has.
    plans = {name: _plan_of(name, config_of) for name in dict.fromkeys(("bp", *settings.methods)) if name not in PEERS}
    own = {name: _own_method(name, each) for name, each in plans.items() if name not in METHODS}
    schedules = {name: SCHEDULES[own[name]] if name in own else name for name in plans}
    plan = plans["bp"]
    blocks, x = blocks_on_meta(plan.config, plan.sample), batch_on_meta(plan.config, plan.sample)
    with_companions = [name for name, schedule in schedules.items() if schedule in WITH_COMPANIONS]
    for name in with_companions:
        _check_companions(name, plans[name], blocks, x)
    rows = what_if(
        _measured_network(plans, blocks, x, with_companions, schedules),
        settings.k,
        settings.methods,
        settings.link(),
        settings.straggler or (),
        microbatches,
        _memory_of(plans, blocks, x),
    )
    notes = _notes(settings, plan, [schedules.get(name, name) for name in settings.methods], with_companions)
    notes += [as_long_as(name, known) for name, known in own.items()]
    return Forecast(settings, plan, measured_on(plan), notes, rows)


def _plan_of(name: str, config_of: ConfigOf) -> Plan:
    try:
        return make_plan(config_of([f"method={name}", "k=1"]))
    except NoSuchChoice as error:
        known = dict.fromkeys([*NAMES, *error.options])
        raise ConfigError(
            f"simulate.methods={name}: must be one of {', '.join(known)}.{nearest(name, known)}"
        ) from error


def _own_method(name: str, plan: Plan) -> type[Method]:
    """The method of ours whose schedule a user's own has.

    Raises:
        ConfigError: there is none.
    """
    method, _ = check_method(plan.config["method"])
    known = made_from(method)
    if known is None or SCHEDULES[known] not in METHODS:
        raise ConfigError(
            f"simulate.methods={name}: how long {method.__name__} takes is not known; of your own methods only those "
            "can be simulated that are made from one of ours (not from a pipeline) and have its policy."
        )
    return known


def _check_companions(name: str, plan: Plan, blocks: Blocks, x: Tensor) -> None:
    """Raises ConfigError where the method's companions cannot learn from these features or labels, whatever is cut."""
    method, hyper_parameters = check_method(plan.config["method"])
    devices, threads, transport = plan.devices, plan.threads, plan.transport
    balance = Balance(plan.config, method, hyper_parameters, blocks, x, plan.sample, devices, threads, transport)
    try:
        check_labels(plan.config, method, hyper_parameters, plan.sample)
        _ = balance.costs  # it builds one behind every block
    except ConfigError as error:
        raise ConfigError(f"simulate.methods: leave {name} out, with simulate.methods=[...]: {error}") from error


def _measured_network(
    plans: dict[str, Plan], blocks: Blocks, x: Tensor, with_companions: Sequence[str], schedules: dict[str, str]
) -> MeasuredNetwork:
    plan = plans["bp"]
    costs = costs_of_plan(plan, ASKED_BY, has_companion=False)
    trained = [[p for p in block.parameters() if p.requires_grad] for _, block in blocks]
    policies = {}
    for name, each in plans.items():
        method, hyper_parameters = check_method(each.config["method"])
        policies[name] = method.policy(**hyper_parameters)
    return MeasuredNetwork(
        blocks=costs.blocks,
        output_bytes=_output_bytes(blocks, x),
        trains=[bool(parameters) for parameters in trained],
        parameter_bytes=sum(p.numel() * p.element_size() for parameters in trained for p in parameters),
        batch_size=plan.config["batch_size"],
        load_s=costs.load,
        policies=policies,
        companions={
            name: costs_of_plan(plans[name], ASKED_BY, has_companion=True).companions for name in with_companions
        },
        schedules=schedules,
    )


def _output_bytes(blocks: Blocks, x: Tensor) -> list[int]:
    found = []
    for block in blocks:
        with torch.no_grad():
            x = Network([block], seed=0)(x, 0)
        found.append(x.numel() * x.element_size())
    return found


def _memory_of(plans: dict[str, Plan], blocks: Blocks, x: Tensor) -> MemoryOf:
    def memory_of(method: str, cuts: Sequence[int]) -> list[int] | None:
        plan = plans[method]
        config = {**plan.config, "k": len(cuts) + 1}
        if unpredictable(config) is not None:
            return None
        method_class, hyper_parameters = check_method(plan.config["method"])
        num_classes = plan.sample.num_classes
        device = plan.devices[0]
        shapes = trace_modules(config, blocks, cuts, x, plan.sample, device, method_class.sends_gradients)
        predicted = predict_modules(config, shapes, method_class, hyper_parameters, _buffers(config), num_classes)
        return [sum(found.values()) for found in predicted]

    return memory_of


def _buffers(config: dict[str, Any]) -> str:
    """The transport whose buffers the predicted memory has."""
    return "ipc" if config["transport"] in ("auto", "serial") else config["transport"]


def _notes(
    settings: SimulateSettings, plan: Plan, schedules: Sequence[str], with_companions: Sequence[str]
) -> list[str]:
    notes = [
        "costs are uncontended: devices are taken to be like the one measured, and not to slow each other down",
        "cuts are balanced under these costs and each method's own work, whatever partition is",
        "sending and receiving take no computing time",
    ]
    methods = set(schedules)
    if settings.bandwidth_gb_s is None:
        notes.append("links are as wide as can be: simulate.bandwidth_gb_s is not set")
    if methods & set(PIPELINES):
        notes.append(
            "pipelines: a micro-batch takes 1/M of the batch's time; small ones take more, so that the best M and the "
            "step time here are better than real ones"
        )
    if "ddp" in methods:
        notes.append("ddp: 1/K of the batch takes 1/K of its time; small shares take more")
    if "ddg" in methods:
        notes.append("ddg: copies of weights for the stash take no time")
    if with_companions:
        notes.append(
            f"{', '.join(with_companions)}: steps of the optimizers of what is trained beside the modules take no time"
        )
    if plan.config["compile"]:
        notes.append("blocks were timed as they are, not compiled")
    if methods & set(METHODS) and unpredictable(plan.config) is None:
        notes.append(f"memory: predicted with a full pipe, buffers as of transport={_buffers(plan.config)}")
    return notes


def as_table(rows: Sequence[WhatIf]) -> str:
    """One line a row; cells of what is not known stay empty."""
    columns: dict[str, Callable[[WhatIf], str]] = {
        "method": _name,
        "K": lambda row: str(row.k),
        "step, s": lambda row: _number(row.step_time_s),
        "images/s": lambda row: rate(row.images_per_s),
        "over BP, K = 1": lambda row: ratio(row.speedup_vs_single),
        "over locked BP": lambda row: ratio(row.speedup_vs_locked),
        "efficiency": lambda row: ratio(row.efficiency),
        "waiting, mean": lambda row: _mean_percent(row.waiting_share),
        "largest module, MiB": lambda row: _mib(max, row.predicted_memory),
        "all modules, MiB": lambda row: _mib(sum, row.predicted_memory),
        "impossible because it": lambda row: row.reason or "",
    }
    return table(columns, rows, leave_out_empty=True)


def _name(row: WhatIf) -> str:
    return row.method if row.num_microbatches is None else f"{row.method}, M = {row.num_microbatches}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _mean_percent(shares: Sequence[float] | None) -> str:
    return "" if not shares else f"{100 * sum(shares) / len(shares):.0f} %"


def _mib(join: Callable[[Sequence[int]], int], sizes: Sequence[int] | None) -> str:
    if sizes is None:
        return ""
    mib = join(sizes) / 2**20
    return f"{mib:.{1 if mib < 10 else 0}f}"
