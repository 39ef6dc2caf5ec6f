"""Spans of a simulation, to look at: drawn in characters, or as spans of fr_bench.records.trace."""

from __future__ import annotations

from collections.abc import Iterable

from fr_bench.measuring.stopwatch import Span as MeasuredSpan
from fr_bench.simulation.engine import Span


def draw_timeline(spans: Iterable[Span], unit_s: float, numbered: bool = False) -> str:
    """A row a device and a character for every ``unit_s``: the first letter of what it did, ``.`` for waiting.

    Args:
        spans: of a prediction.
        unit_s: seconds of a character.
        numbered: whether the character is the last digit of the iteration instead.
    """
    spans = [span for span in spans if not span.name.startswith("wait")]
    origin_s = min(span.start_s for span in spans)
    num_columns = round((max(span.end_s for span in spans) - origin_s) / unit_s)
    rows = [["."] * num_columns for _ in range(1 + max(span.device for span in spans))]
    for span in spans:
        start, end = round((span.start_s - origin_s) / unit_s), round((span.end_s - origin_s) / unit_s)
        character = str(span.iteration % 10) if numbered else span.name[0].upper()
        rows[span.device][start:end] = character * (end - start)
    return "\n".join(f"device {device}  {''.join(row)}" for device, row in enumerate(rows, start=1))


def measured_spans(spans: Iterable[Span]) -> dict[int, list[MeasuredSpan]]:
    """By device, from 1: what :func:`fr_bench.records.trace.write_trace` takes."""
    by_device: dict[int, list[MeasuredSpan]] = {}
    for span in spans:
        start_ns, end_ns = round(span.start_s * 1e9), round(span.end_s * 1e9)
        measured = MeasuredSpan(span.name, start_ns, end_ns, span.iteration)
        by_device.setdefault(span.device + 1, []).append(measured)
    return by_device
