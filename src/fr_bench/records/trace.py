"""A timeline of all modules that opens in Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fr_bench.measuring.stopwatch import Span
from fr_bench.records.run_files import write_text


def write_trace(path: Path, spans_by_module: Mapping[int, Sequence[Span]]) -> None:
    """Writes Chrome's trace format: one row a module, all on one clock, in microseconds from the first span."""
    origin_ns = min(span.start_ns for spans in spans_by_module.values() for span in spans)
    events: list[dict[str, Any]] = []
    for module, spans in sorted(spans_by_module.items()):
        row = {"pid": 1, "tid": module}
        events.append({"ph": "M", "name": "thread_name", **row, "args": {"name": f"module {module}"}})
        for span in spans:
            events.append(
                {
                    "ph": "X",
                    "name": span.name,
                    "cat": "wait" if span.name.startswith("wait") else "work",
                    "ts": (span.start_ns - origin_ns) / 1000,
                    "dur": (span.end_ns - span.start_ns) / 1000,
                    **row,
                    "args": {"batch": span.batch},
                }
            )
    write_text(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
