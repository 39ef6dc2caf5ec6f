"""Memory by method and K: bars stacked by what it is for, and the same bars stacked by module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fr_bench.figures.bars import Bars, place_bars
from fr_bench.figures.drawing import Drawing, Omission, legend_below, new_figure
from fr_bench.figures.style import Style, look_of, tint
from fr_bench.records.runs import Run
from fr_bench.report.groups import Group
from fr_bench.report.measures import (
    MEMORY_CATEGORIES,
    memory_by_category,
    missing_categories,
    peak_memory,
    predicted_memory,
    spread,
    unit_of,
)

Measure = Callable[[Run, int], float | None]

# No colour of a method; neighbours differ in grey too, and hatches tell apart what is alike: without horizontal lines,
# which would cut a bar as its parts do.
CATEGORY_LOOKS = {
    "parameters": ("#3B1C5A", ""),
    "gradients": ("#6F559B", ""),
    "optimizer": ("#A994CC", ""),
    "history": ("#1B8A8A", "///"),
    "activations": ("#F0E3A8", ""),
    "stash": ("#6B7F1F", "xxx"),
    "synthesizer": ("#C5D58A", "\\\\\\"),
    "buffers": ("#96523A", "..."),
    "other": ("#E2E2E2", ""),
}


def draw_memory(groups: list[Group], style: Style) -> Iterator[Drawing | Omission]:
    """One figure for all K: bars are the last account of each module, means over seeds."""
    shown = [group for group in groups if _bytes_of_all(group)]
    if not shown:
        yield Omission("memory", "no run has memory records with bytes by category")
        return
    bars = place_bars(shown)
    missing = sorted({name for group in shown for name in missing_categories(group)})
    subject = f"memory without {', '.join(missing)}" if missing else "memory"
    figure, (by_category, by_module) = new_figure(groups, style, 2, 1, subject)
    figure.set_figwidth(max(figure.get_figwidth(), bars.width_in(style)))
    unit, factor = unit_of(max(sum(_bytes_of_all(group).values()) for group in shown))
    categories = _draw_categories(by_category, bars, factor)
    marks = _draw_predictions(by_category, bars, factor, style) + _draw_peaks(by_category, bars, factor, style)
    _draw_modules(by_module, bars, factor)
    for axes in (by_category, by_module):
        axes.set_ylabel(f"memory ({unit})")
        axes.grid(False, axis="x")
        bars.name_bars(axes)
    bars.name_ks(by_category)
    by_category.tick_params(labelbottom=False)
    bars.make_room(figure, by_module)
    _legend(figure, shown, [Patch(label=name, **_patch(name)) for name in categories] + marks, style)
    notes = (f"some runs do not record {', '.join(missing)}: their bars are too low",) if missing else ()
    yield Drawing("memory", figure, shown, notes)


def _legend(figure: Figure, shown: list[Group], of_categories: list[Artist], style: Style) -> None:
    """Two columns: what belongs to the upper panel, and the modules of the lower one, whose bars have many colours."""
    most = max(group.size for group in shown)
    of_modules: list[Artist] = [_words("each bar, dark to light:")] if most > 1 else []
    of_modules += [
        Patch(label=f"module {k}", facecolor=_shade("#000000", k, most), edgecolor="white") for k in range(1, most + 1)
    ]
    for shorter, longer in ((of_categories, of_modules), (of_modules, of_categories)):
        shorter += [_words(" ") for _ in range(len(longer) - len(shorter))]
    legend_below(figure, of_categories + of_modules, replace(style, legend_columns=2), swatches=True)


def _words(words: str) -> Artist:
    """A line of a legend without a handle."""
    return Line2D([], [], linestyle="none", label=words)


def _bytes_of(group: Group, module: int) -> dict[str, float]:
    """Mean bytes by category over the runs that stand for the group."""
    accounts = [memory_by_category(run, module) for run in group.measured]
    means = {name: spread(account.get(name) for account in accounts) for name in MEMORY_CATEGORIES}
    return {name: each.mean for name, each in means.items() if each is not None and each.mean > 0}


def _bytes_of_all(group: Group) -> dict[str, float]:
    """The same of all its modules together."""
    parts = [_bytes_of(group, module) for module in range(1, group.size + 1)]
    sums = {name: sum(part.get(name, 0.0) for part in parts) for name in MEMORY_CATEGORIES}
    return {name: num_bytes for name, num_bytes in sums.items() if num_bytes > 0}


def _patch(category: str) -> dict[str, Any]:
    color, hatch = CATEGORY_LOOKS[category]
    return {"facecolor": color, "hatch": hatch, "edgecolor": "white"}


def _shade(color: str, module: int, num_modules: int) -> tuple[float, float, float]:
    """Module 1 in full colour, the others lighter and lighter."""
    return tint(color, 0.8 * (module - 1) / max(1, num_modules - 1))


def _draw_categories(axes: Axes, bars: Bars, factor: int) -> list[str]:
    """Returns the categories that occur."""
    accounts = [_bytes_of_all(group) for group in bars.groups]
    found = [name for name in MEMORY_CATEGORIES if any(name in account for account in accounts)]
    below = [0.0] * len(accounts)
    for name in found:
        heights = [account.get(name, 0.0) / factor for account in accounts]
        axes.bar(  # without an edge, which would hide a category that has few bytes
            bars.positions, heights, bars.width, bottom=below, linewidth=0, label=name, **_patch(name)
        )
        below = [bottom + height for bottom, height in zip(below, heights, strict=True)]
    return found


def _draw_modules(axes: Axes, bars: Bars, factor: int) -> None:
    most = max(group.size for group in bars.groups)
    for group, position in zip(bars.groups, bars.positions, strict=True):
        below = 0.0
        for module in range(1, group.size + 1):
            height = sum(_bytes_of(group, module).values()) / factor
            axes.bar(
                position, height, bars.width, bottom=below, color=_shade(look_of(group.method).color, module, most),
                edgecolor="white", linewidth=0.8, label=f"{group.label}, module {module}",
            )  # fmt: skip
            below += height


def _draw_predictions(axes: Axes, bars: Bars, factor: int, style: Style) -> list[Artist]:
    """A mark at the predicted total, where every module has a prediction."""
    return _draw_totals(axes, bars, factor, style, predicted_memory, "predicted", "D")


def _draw_peaks(axes: Axes, bars: Bars, factor: int, style: Style) -> list[Artist]:
    """A mark at the sum of the allocators' peaks, where every module has a GPU of its own: elsewhere modules share
    a peak, or it is that of a whole process."""
    alone = [group for group in bars.groups if group.settings.get("num_devices") == group.size and _on_gpu(group)]
    return _draw_totals(axes, bars.only(alone), factor, style, peak_memory, "peak of the GPUs", "_")


def _on_gpu(group: Group) -> bool:
    records = group.measured[0].of("memory")
    return bool(records) and all("cuda" in str(record.get("device")) for record in records)


def _draw_totals(
    axes: Axes, bars: Bars, factor: int, style: Style, measure: Measure, label: str, marker: str
) -> list[Artist]:
    positions, totals = [], []
    for group, position in zip(bars.groups, bars.positions, strict=True):
        parts = [spread(measure(run, k) for run in group.measured) for k in range(1, group.size + 1)]
        if all(part is not None for part in parts):
            positions.append(position)
            totals.append(sum(part.mean for part in parts if part is not None) / factor)
    if not totals:
        return []
    look: dict[str, Any] = {
        "marker": marker,
        "linestyle": "none",
        "color": "white",
        "markeredgecolor": "black",
        "label": label,
    }
    return [*axes.plot(positions, totals, **look, markersize=style.marker_pt * 1.2, clip_on=False, zorder=4)]
