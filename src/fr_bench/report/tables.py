"""The rows of the report: one a group of seeds, with what was measured and, apart from it, what was published."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fr_bench.planning.limits import balanced_limit
from fr_bench.records.runs import Run
from fr_bench.report.groups import Group
from fr_bench.report.measures import (
    Spread,
    baseline,
    best_test_error,
    best_validation_error,
    efficiency,
    epoch_time_s,
    last_test_error,
    memory_by_category,
    over_seeds,
    peak_memory,
    predicted_memory,
    seconds_to,
    speedup_over,
    spread,
    step_time_s,
)
from fr_bench.report.paired import Paired, difference_to_bp
from fr_bench.report.published import Published, published_about


@dataclass(frozen=True)
class Reached:
    """How soon runs reached a test error, those that did.

    Attributes:
        test_error: asked for, a fraction.
        seconds: of training.
        num_runs: of the group, also those that diverged or did not finish.
    """

    test_error: float
    seconds: Spread | None
    num_reached: int
    num_runs: int


@dataclass(frozen=True)
class Row:
    """One group. Errors are fractions, times seconds, memory bytes; None is what no record tells.

    Attributes:
        difference_to_bp: of the best test error, seed by seed.
        seconds_to_target: None if nobody asked, or if the first seconds are those of another run.
        speedup_vs_single: over BP with K = 1.
        speedup_vs_locked: over locked BP with the same K.
        limit: of the method's speed-up with balanced modules (see fr_bench.planning.limits).
        peak_memory: by module.
        accounted_memory, predicted_memory: all categories of all modules.
        published_error, published_speedup: of others, for the same network and settings.
        withheld_error, withheld_speedup: of others, for the same network, method and K, but with other settings.
    """

    group: Group
    best_test_error: Spread | None
    best_validation_error: Spread | None
    last_test_error: Spread | None
    difference_to_bp: Paired | None
    seconds_to_target: Reached | None
    epoch_time_s: Spread | None
    step_time_s: Spread | None
    speedup_vs_single: Spread | None
    speedup_vs_locked: Spread | None
    limit: float | None
    efficiency: Spread | None
    peak_memory: list[Spread | None]
    accounted_memory: Spread | None
    predicted_memory: Spread | None
    published_error: list[Published]
    published_speedup: list[Published]
    withheld_error: list[Published]
    withheld_speedup: list[Published]


def make_rows(groups: list[Group], target: float | None = None) -> list[Row]:
    """Returns a row for each group; speed-ups are over those BP runs among ``groups`` that are comparable.

    Args:
        target: a test error, as a fraction, of which to tell how soon it was reached.
    """
    return [_row(group, groups, target) for group in groups]


def _row(group: Group, groups: list[Group], target: float | None) -> Row:
    errors = published_about("test_error", group.settings, group.k)
    speedups = published_about("speedup", group.settings, group.k)
    return Row(
        group=group,
        best_test_error=over_seeds(group, best_test_error),
        best_validation_error=over_seeds(group, best_validation_error),
        last_test_error=over_seeds(group, last_test_error),
        difference_to_bp=difference_to_bp(group, groups),
        seconds_to_target=None if target is None else _reached(group, target),
        epoch_time_s=over_seeds(group, epoch_time_s),
        step_time_s=over_seeds(group, step_time_s),
        speedup_vs_single=speedup_over(group, baseline(group, groups, 1)),
        speedup_vs_locked=speedup_over(group, baseline(group, groups, group.k)) if group.k > 1 else None,
        limit=balanced_limit(group.method, group.k) if group.size == group.k > 1 else None,
        efficiency=over_seeds(group, efficiency) if group.k > 1 else None,
        peak_memory=[spread(peak_memory(run, k) for run in group.measured) for k in range(1, group.size + 1)],
        accounted_memory=over_seeds(group, _accounted),
        predicted_memory=over_seeds(group, _predicted),
        published_error=[each for each in errors if not each.differences(group.settings)],
        published_speedup=[each for each in speedups if not each.differences(group.settings)],
        withheld_error=[each for each in errors if each.differences(group.settings)],
        withheld_speedup=[each for each in speedups if each.differences(group.settings)],
    )


def _reached(group: Group, target: float) -> Reached | None:
    if any(run.takes_over for run in group.runs):
        return None
    seconds = [found for run in group.runs if (found := seconds_to(run, target)) is not None]
    return Reached(target, spread(seconds), len(seconds), len(group.runs))


def _accounted(run: Run) -> float | None:
    parts = [memory_by_category(run, module) for module in run.modules("memory")]
    return sum(sum(part.values()) for part in parts) if any(parts) else None


def _predicted(run: Run) -> float | None:
    parts = [predicted_memory(run, module) for module in range(1, run.size + 1)]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == run.size else None


def as_csv(rows: Iterable[Row]) -> str:
    """Returns the rows as CSV: a header, one line a group, numbers in full and without units."""
    records = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(column for record in records for column in record))
    # Modules last: the columns of the group with the largest K, in order.
    columns.sort(key=lambda column: column.startswith("peak_memory_bytes_"))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _flat(row: Row) -> dict[str, Any]:
    """By column; CSV has nothing for None."""
    group = row.group
    record: dict[str, Any] = {
        "dataset": group.dataset,
        "model": group.model,
        "method": group.method,
        "variant": group.variant,
        "k": group.k,
        "transport": group.settings.get("transport"),
        "threads": group.settings.get("threads"),
        "seeds": len(group.measured),
    }
    for end in ("finished", "diverged", "unfinished"):
        record[f"runs_{end}"] = sum(run.end == end for run in group.runs)
    for name in (
        "best_test_error", "best_validation_error", "last_test_error", "epoch_time_s", "step_time_s",
        "speedup_vs_single", "speedup_vs_locked", "efficiency",
    ):  # fmt: skip
        record |= _columns(name, getattr(row, name))
    paired, reached = row.difference_to_bp, row.seconds_to_target
    record |= {
        "difference_to_bp_mean": None if paired is None else paired.mean,
        "difference_to_bp_standard_error": None if paired is None else paired.standard_error,
        "difference_to_bp_seeds": None if paired is None else paired.num_seeds,
    }
    if reached is not None:
        record |= {"target_test_error": reached.test_error, "runs_that_reached_target": reached.num_reached}
        record |= _columns("seconds_to_target", reached.seconds)
    record["limit"] = row.limit
    record |= _published_columns("published_test_error", row.published_error)
    record |= _published_columns("published_speedup", row.published_speedup)
    record |= _columns("accounted_memory_bytes", row.accounted_memory)
    record |= _columns("predicted_memory_bytes", row.predicted_memory)
    for module, peak in enumerate(row.peak_memory, start=1):
        record[f"peak_memory_bytes_module_{module}"] = None if peak is None else peak.mean
    return record


def _columns(name: str, value: Spread | None) -> dict[str, Any]:
    mean, sd = (None, None) if value is None else (value.mean, value.sd)
    return {f"{name}_mean": mean, f"{name}_sd": sd}


def _published_columns(name: str, numbers: list[Published]) -> dict[str, str]:
    """Several sources of one number stand side by side, separated by semicolons, in the same order."""
    return {
        name: "; ".join(f"{each.value:.4g}" for each in numbers),
        f"{name}_source": "; ".join(each.source for each in numbers),
        f"{name}_certainty": "; ".join(each.certainty for each in numbers),
        f"{name}_doubt": "; ".join(each.doubt for each in numbers),
    }
