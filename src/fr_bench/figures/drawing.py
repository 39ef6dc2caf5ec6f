"""What every figure has in common: a name, a title, a legend beside the panels, words for what is left out."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from fr_bench.figures.style import Style
from fr_bench.report.groups import Group

LETTER_WIDTH = 0.55  # of a letter of the legend's font, in heights of the figure's font
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
HANDLE_LETTERS = 8  # room that a legend's handle and its margins take
SWATCH_SIZE = {"handlelength": 3.0, "handleheight": 1.6}  # of an area in a legend, in heights of its font
SLOWED_WORDS = "runs that measured sigma took longer: the pipe runs empty for each iteration of a window"


@dataclass(frozen=True)
class Drawing:
    """A figure that is ready.

    Attributes:
        name: of its files, without data set, model and suffix.
        groups: those drawn in it.
        notes: what a reader of the figure must know beside it.
    """

    name: str
    figure: Figure
    groups: list[Group]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Omission:
    """A figure that would be empty, and why."""

    name: str
    reason: str


Draw = Callable[[list[Group], Style], Iterator[Drawing | Omission]]


def new_figure(
    groups: Sequence[Group], style: Style, rows: int, columns: int, subject: str, height: float = 1.0
) -> tuple[Figure, list[Axes]]:
    """Returns a figure and its panels, row by row. The title names data set and model, and ``subject``.

    Args:
        height: of a panel, in the style's usual height.
    """
    width_in = style.one_panel_in if columns == 1 else style.two_panels_in
    figure = Figure(figsize=(width_in, rows * height * style.panel_height_in), layout="constrained")
    title = f"{groups[0].model} on {groups[0].dataset}"
    figure.suptitle(f"{title}, {subject}" if subject else title)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def legend_below(
    figure: Figure, handles: Sequence[Any], style: Style, title: str | None = None, swatches: bool = False
) -> None:
    """Puts a legend under the panels, where it hides nothing, and makes the figure that much higher.

    It has as many columns as fit; a label that is too long even for one is broken into lines.

    Args:
        swatches: handles are areas, large enough to show their hatches.
    """
    width_pt = figure.get_figwidth() * 72
    letters = int(width_pt / (style.font_pt * LETTER_WIDTH)) - HANDLE_LETTERS
    for handle in handles:
        handle.set_label("\n".join(textwrap.wrap(handle.get_label(), letters)) or " ")
    size: dict[str, Any] = SWATCH_SIZE if swatches else {}
    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in range(min(style.legend_columns, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=title, **size)
        extent = legend.get_window_extent(renderer)
        if extent.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def in_percent(axes: Axes) -> None:
    """Writes the fractions of the vertical axis in per cent."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda fraction, _: f"{100 * fraction:.4g}"))


def by_k(groups: list[Group]) -> dict[int, list[Group]]:
    """Returns the groups to draw side by side for each K: those with that K, and BP with K = 1 for comparison.

    K = 1, where all methods are the same, has a figure of its own if nothing else has, or if other methods were run.
    """
    single = [group for group in groups if group.k == 1 and group.method == "bp"]
    found = {k: [group for group in groups if group.k == k] for k in sorted({group.k for group in groups})}
    if len(found) > 1 and found.get(1) == single:
        del found[1]
    return {k: same if k == 1 else same + single for k, same in found.items()}


def label_in(group: Group, k: int, number: int | None = None) -> str:
    """The legend's words for ``group`` in a figure about ``k`` modules: method, seeds, and another K if it has one.

    Args:
        number: of its finished runs, those that are in the figure; None for all.
    """
    name = group.name if group.k == k else group.label
    seeds = (group.seeds if number is None else group.seeds_of(number)).replace(" ", NO_BREAK_SPACE)
    return f"{name} ({seeds})"
