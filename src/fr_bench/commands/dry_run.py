"""``dry_run=true``: tells what a run would be, where it is cut, what it needs and how long it takes; trains nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fr_bench.bench.time_prediction import TimePrediction, predict_time
from fr_bench.planning.measured_costs import cache_folder
from fr_bench.planning.memory_table import memory_table
from fr_bench.planning.plan import Plan, make_plan
from fr_bench.records.console import duration


def report(config: dict[str, Any]) -> str:
    """The report on the run that ``config`` (resolved, plain) describes, as text.

    Blocks that were never measured on this device under these settings are measured first, which takes a while.

    Raises:
        ConfigError: a mistake in the config, or a block that fails when it runs.
    """
    plan = make_plan(config)
    names = {group: config[group]["name"] for group in ("method", "model", "dataset")}
    heading = "dry run of {method}, K = {k}, {model} on {dataset}: nothing is trained".format(k=plan.k, **names)
    paragraphs = [
        [heading, *plan.headlines(), *plan.warnings],
        ["predicted memory with a full pipe, MiB", *memory_table(plan)],
        time_lines(plan, predict_time(plan), names["method"]),
    ]
    return "\n\n".join("\n".join(lines) for lines in paragraphs)


def time_lines(plan: Plan, time: TimePrediction | None, method: str) -> list[str]:
    """Lines of text: how long a step, an epoch and the run take, and what these figures are worth."""
    if time is None:
        which = f"of method '{method}'" if plan.config["replicas"] == 1 else "with replicas"
        return [f"time is not predicted: the schedule {which} is not known to the simulation"]
    when = datetime.fromtimestamp(time.measured_at)
    return [
        f"predicted time: {duration(time.step_s)} a step, {duration(plan.steps_per_epoch * time.step_s)} an epoch, "
        f"{duration(time.training_time_s(plan.num_steps))} for the run's {plan.num_steps} steps",
        f"from costs of every block, measured on {time.measured_on}, on {when:%Y-%m-%d %H:%M}; kept in "
        f"{cache_folder()} until you delete them",
        "- these are uncontended costs, of a process alone on the machine: modules that compute side by side slow each "
        "other down",
        *(f"- {note}" for note in time.notes),
        "- evaluation, logging and start-up are not counted",
    ]
