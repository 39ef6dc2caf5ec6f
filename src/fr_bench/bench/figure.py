"""The figure of a bench: how fast everything was with every K, and how far the methods could go."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fr_bench.bench.rows import Row
from fr_bench.figures.drawing import Drawing
from fr_bench.figures.style import STYLES, Look, look_of, tint
from fr_bench.peers import PEERS
from fr_bench.report.groups import METHOD_NAMES

STYLE = "paper"
BAR = 0.7  # of the room that a bar has
LIMIT: dict[str, Any] = {"color": "black", "linewidth": 1.4}
QUARTILES: dict[str, Any] = {"color": "black", "linewidth": 0.8}
ERROR_BAR: dict[str, Any] = {"ecolor": QUARTILES["color"], "elinewidth": QUARTILES["linewidth"]}
LONGEST_LINE = 32  # letters of a name; longer ones are broken, which leaves room for the bars
AROUND = 6  # room that title, axis and legend take, in rows


def draw_bench(rows: Sequence[Row], title: str) -> Drawing:
    """A bar a row: images/s over BP with one module, its quartiles as a thin line, the limit as a tick.

    Rows of a method stand together, by K; the peers come last.

    Args:
        rows: of a bench, with speed-ups; one without, for want of a BP under its settings, is left out.
        title: of the figure.
    """
    style = STYLES[STYLE]
    with matplotlib.rc_context(style.settings()):
        shown = _ordered([row for row in rows if row.speedup_vs_single is not None])
        labels = [_label(row) for row in shown]
        num_lines = max((label.count("\n") + 1 for label in labels), default=1)
        height_in = 0.19 * style.font_pt / 8 * (len(shown) * num_lines**0.75 + AROUND)
        figure = Figure(figsize=(style.two_panels_in, height_in), layout="constrained")
        axes = figure.subplots()
        figure.suptitle(title)
        for at, row in enumerate(shown):
            _draw_bar(axes, at, row)
        axes.set_yticks(range(len(shown)), labels)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.axvline(1.0, color="#555555", linewidth=0.6, zorder=0)
        axes.set_xlabel("images/s over BP, K = 1")
        handles = [Line2D([], [], label="quartiles", **QUARTILES)]
        if any(row.limit for row in shown):
            handles.append(Line2D([], [], linestyle="none", marker="|", markersize=8, label="limit", **LIMIT))
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return Drawing("bench", figure, [])


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """Methods as they come, then K, then the settings behind the name; peers last."""
    methods = [row.method for row in rows]
    return sorted(rows, key=lambda row: (row.method in PEERS, methods.index(row.method), row.k, row.words))


def _draw_bar(axes: Axes, at: int, row: Row) -> None:
    assert row.speedup_vs_single is not None
    look: Look = look_of(row.method)
    single_s = row.speedup_vs_single * row.step_time_s.median
    below, above = single_s / row.step_time_s.q3, single_s / row.step_time_s.q1
    speedup = row.speedup_vs_single
    axes.barh(
        at, speedup, BAR, color=tint(look.color, 0.35), hatch=look.hatch, edgecolor="white", linewidth=0.4,
        xerr=[[max(0.0, speedup - below)], [max(0.0, above - speedup)]], error_kw=ERROR_BAR,
    )  # fmt: skip
    if row.limit is not None and row.speedup_vs_locked:
        limit = row.limit / row.speedup_vs_locked * speedup
        axes.vlines(limit, at - BAR / 2, at + BAR / 2, zorder=3, **LIMIT)


def _label(row: Row) -> str:
    name, *own = row.words.split()
    words = " ".join([METHOD_NAMES.get(name, name), *own])
    micro = f", M = {row.num_microbatches}" if row.num_microbatches is not None else ""
    label = f"{words}{micro}, K\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{row.k}"
    return textwrap.fill(label, LONGEST_LINE, break_long_words=False).replace("\N{NO-BREAK SPACE}", " ")
