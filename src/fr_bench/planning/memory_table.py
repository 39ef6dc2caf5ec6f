"""The predicted memory of a plan's modules, as text."""

from __future__ import annotations

from fr_bench.measuring.categories import CATEGORIES
from fr_bench.planning.memory_model import unpredictable
from fr_bench.planning.plan import Plan


def memory_table(plan: Plan) -> list[str]:
    """Lines of text: predicted MiB of every module by category, and their sum; empty categories are left out."""
    predicted = plan.predicted_memory
    if not all(predicted):
        if (reason := unpredictable(plan.config)) is not None:
            return [f"is not predicted {reason}"]
        return ["is not predicted: what the method keeps depends on more than its policy tells"]
    columns = [category for category in CATEGORIES if any(found[category] for found in predicted)]
    rows = [["module", "device", *columns, "sum"]]
    for k, found in enumerate(predicted, start=1):
        rows.append([str(k), plan.devices[k - 1], *(_mib(found[name]) for name in columns), _mib(sum(found.values()))])
    if len(predicted) > 1:
        sums = [sum(found[name] for found in predicted) for name in columns]
        rows.append(["all", "", *map(_mib, sums), _mib(sum(sums))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f}"
