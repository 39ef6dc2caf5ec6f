"""The figure of a bench: how fast everything was with every K, and how far the methods could go."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fr_bench.bench.rows import Row
from fr_bench.figures.drawing import Drawing
from fr_bench.figures.style import STYLES, Look, look_of, tint
from fr_bench.peers import PEERS
from fr_bench.report.groups import METHOD_NAMES

STYLE = "paper"
ROW_IN = 0.19  # height of a row whose name has one line
ROWS_A_LINE = 0.75  # of a name that has more
BAR = 0.7  # rows
BARS_IN = 1.7  # least width that is left beside the names
LIMIT: dict[str, Any] = {"color": "black", "linewidth": 1.4}
QUARTILES: dict[str, Any] = {"color": "black", "linewidth": 0.8}
ERROR_BAR: dict[str, Any] = {"ecolor": QUARTILES["color"], "elinewidth": QUARTILES["linewidth"]}
LONGEST_LINE = 32  # letters of a name; longer ones are broken
AROUND = 5  # room that title, axis and legend take, in rows


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
        heights = [max(1.0, ROWS_A_LINE * (label.count("\n") + 1)) for label in labels]
        places = [end - height / 2 for end, height in zip(accumulate(heights), heights, strict=True)]
        figure = Figure(figsize=(style.two_panels_in, ROW_IN * (sum(heights) + AROUND)), layout="constrained")
        axes = figure.subplots()
        figure.suptitle(title)
        for at, row in zip(places, shown, strict=True):
            _draw_bar(axes, at, row)
        axes.set_yticks(places, labels)
        axes.set_ylim(sum(heights), 0)
        _make_room(figure, axes)
        axes.grid(False, axis="y")
        axes.axvline(1.0, color="#555555", linewidth=0.6, zorder=0)
        axes.set_xlabel("images/s over BP, K = 1")
        handles = [Line2D([], [], label="quartiles", **QUARTILES)]
        if any(row.limit for row in shown):
            handles.append(Line2D([], [], linestyle="none", marker="|", markersize=8, label="limit", **LIMIT))
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return Drawing("bench", figure, [])


def _make_room(figure: Figure, axes: Axes) -> None:
    """Makes the figure wider, if names leave the bars less than they need."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    names_in = max(label.get_window_extent(renderer).width for label in axes.get_yticklabels()) / figure.dpi
    figure.set_figwidth(max(figure.get_figwidth(), names_in + BARS_IN))


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """Methods as they come, then K, then the settings behind the name; peers last."""
    methods = [row.method for row in rows]
    return sorted(rows, key=lambda row: (row.method in PEERS, methods.index(row.method), row.k, row.words))


def _draw_bar(axes: Axes, at: float, row: Row) -> None:
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
    words = " ".join([METHOD_NAMES.get(name, name), *(word.removeprefix("method.") for word in own)])
    micro = f", M = {row.num_microbatches}" if row.num_microbatches is not None else ""
    label = f"{words}{micro}, K\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{row.k}"
    return textwrap.fill(label, LONGEST_LINE, break_long_words=False).replace("\N{NO-BREAK SPACE}", " ")
