"""How much worse or better than BP, seed by seed.

Runs with one seed share initial weights and data order, so what a seed does to both cancels in their difference, whose
standard error is smaller than the spread of either over seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from fr_bench.report.groups import Group
from fr_bench.report.measures import best_test_error, differing_settings, is_among

# What may differ between a run and its BP: what makes it another method, and what changes no number of BP's.
FREE_IN_A_PAIR = (
    "method.", "cuts", "partition", "memory_limit_gb", "devices", "num_devices", "hardware", "threads", "transport",
)  # fmt: skip
BY_MODULE = ("clip_norm", "freeze")  # what they do depends on K


@dataclass(frozen=True)
class Paired:
    """Mean over the common seeds, and its standard error (None for one seed)."""

    mean: float
    standard_error: float | None
    num_seeds: int


def difference_to_bp(group: Group, groups: Iterable[Group]) -> Paired | None:
    """Returns by how much the group's best test error is above BP's, over the seeds that finished with both.

    BP computes the same whatever its K, unless gradients are clipped, which every module does by itself, or modules are
    frozen: then its K is the group's. Of several BP groups with the same settings the one with most common seeds
    counts. None if there is none, and for BP itself.
    """
    if group.method == "bp":
        return None
    references = [
        other
        for other in groups
        if (other.method, other.dataset, other.model) == ("bp", group.dataset, group.model)
        and (other.k == group.k or not any(map(group.settings.get, BY_MODULE)))
        and all(is_among(key, FREE_IN_A_PAIR) for key in differing_settings(group, other))
    ]
    found = [_differences(group, other) for other in references]
    differences = max(found, key=len, default=[])
    if not differences:
        return None
    number = len(differences)
    error = statistics.stdev(differences) / number**0.5 if number > 1 else None
    return Paired(statistics.fmean(differences), error, number)


def _differences(group: Group, reference: Group) -> list[float]:
    theirs = {run.seed: best_test_error(run) for run in reference.finished}
    differences = []
    for run in group.finished:
        ours, other = best_test_error(run), theirs.get(run.seed)
        if run.seed is not None and ours is not None and other is not None:
            differences.append(ours - other)
    return differences
