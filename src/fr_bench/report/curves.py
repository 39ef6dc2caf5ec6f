"""The curves of runs in one small file, which can be kept beside a figure: what they are, and where they came from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from fr_bench.records.reading import Record
from fr_bench.records.runs import Run
from fr_bench.report.groups import Group

KINDS = {"evaluations": "eval", "sigma": "sigma"}  # what of metrics.jsonl is kept: its name here -> its kind there
# Of env.json: what can change a number. Neither host nor date nor command, with the paths of somebody's machine.
ORIGINS = ("git", "code_before", "code", "versions", "cpu", "gpus", "platform", "numerics")
NUM_DIGITS = 6  # that are significant


def as_curves(groups: Iterable[Group]) -> str:
    """JSON: ``environments``, and ``runs`` with their settings, evaluations and windows of sigma, one a line.

    A run names its environment by its place in that list, from 0; its ``settings`` are those that set its group apart
    from the others (see :attr:`Group.variant`), empty where method, K and seed do.
    """
    environments: list[Record] = []
    lines = []
    for group in groups:
        for run in group.runs:
            environment = {key: run.environment[key] for key in ORIGINS if key in run.environment}
            if environment not in environments:
                environments.append(environment)
            lines.append(_line(_run(group, run, environments.index(environment))))
    return f'{{\n "environments": {_list(map(_line, environments))},\n "runs": {_list(lines)}\n}}\n'


def _run(group: Group, run: Run, environment: int) -> Record:
    plan = run.config.get("plan")
    return {
        **{key: getattr(run, key) for key in ("method", "model", "dataset", "k", "seed")},
        "settings": group.variant,
        "state": run.end,
        "cuts": plan.get("cuts") if isinstance(plan, dict) else None,
        "environment": environment,
        **{name: [_without_kind(record) for record in run.of(kind)] for name, kind in KINDS.items() if run.of(kind)},
    }


def _without_kind(record: Record) -> Record:
    return {key: _rounded(value) for key, value in record.items() if key != "kind"}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{NUM_DIGITS}g}") if isinstance(value, float) else value


def _list(lines: Iterable[str]) -> str:
    return "[\n" + ",\n".join(lines) + "\n ]"


def _line(found: Record) -> str:
    return f"  {json.dumps(found)}"
