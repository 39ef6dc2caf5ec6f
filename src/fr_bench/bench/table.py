"""The rows of a bench as a Markdown table, for the terminal and for a README."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fr_bench.bench.rows import CheckpointCosts, Row
from fr_bench.records.console import rate
from fr_bench.report.markdown import align, table


def as_table(rows: Sequence[Row]) -> str:
    """One line a row, in the order given; cells of what is not known stay empty."""
    columns: dict[str, Callable[[Row], str]] = {
        "method": _name,
        "K": lambda row: str(row.k),
        "threads": lambda row: str(row.threads),
        "step, s": lambda row: f"{row.step_time_s.median:.3g}",
        "quartiles": lambda row: f"{row.step_time_s.q1:.3g} to {row.step_time_s.q3:.3g}",
        "simulated, s": lambda row: "" if row.simulated_step_time_s is None else f"{row.simulated_step_time_s:.3g}",
        "images/s": lambda row: rate(row.images_per_s),
        "over plain": lambda row: ratio(row.speedup_vs_plain),
        "over BP, K = 1": lambda row: ratio(row.speedup_vs_single),
        "over locked BP": lambda row: ratio(row.speedup_vs_locked),
        "limit": lambda row: ratio(row.limit),
        "limit, uncontended": lambda row: ratio(row.limit_uncontended),
        "efficiency": lambda row: ratio(row.efficiency),
        "waiting": lambda row: ", ".join(f"{100 * share:.0f} %" for share in row.waiting_share or []),
        "GPU idle": lambda row: "" if row.idle_share is None else f"{100 * row.idle_share:.0f} %",
        "peak, MiB": lambda row: ", ".join(f"{peak / 2**20:.0f}" for peak in _by_process(row)),
    }
    return table(columns, rows, leave_out_empty=True)


def as_checkpoint_table(rows: Sequence[Row]) -> str:
    """What checkpoints cost, one line for each row that knows; empty if none does."""
    columns: dict[str, Callable[[Row, CheckpointCosts], str]] = {
        "method": lambda row, _: row.words,
        "K": lambda row, _: str(row.k),
        "a checkpoint costs, s": lambda _, cost: f"{cost.extra_s.median:.3g}",
        "quartiles": lambda _, cost: f"{cost.extra_s.q1:.3g} to {cost.extra_s.q3:.3g}",
        "at one a minute": lambda _, cost: f"{100 * cost.share_at_one_a_minute:.2f} %",
        "pause, s": lambda _, cost: f"{cost.pause_s:.3g}",
        "whole after, s": lambda _, cost: f"{cost.whole_after_s:.3g}",
        "MiB": lambda _, cost: f"{cost.num_bytes / 2**20:.1f}",
    }
    known = [(row, row.checkpoint) for row in rows if row.checkpoint is not None]
    lines = [[text(row, cost) for text in columns.values()] for row, cost in known]
    return align([list(columns), *lines]) if lines else ""


def _name(row: Row) -> str:
    return row.words if row.num_microbatches is None else f"{row.words}, M = {row.num_microbatches}"


def _by_process(row: Row) -> list[int]:
    return row.peak_memory[:1] if row.num_processes == 1 else row.peak_memory


def ratio(value: float | None) -> str:
    """With two decimals; nothing for None."""
    return "" if value is None else f"{value:.2f}"
