"""The share of its time that each module waits for its neighbours: a figure for each K."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.container import BarContainer

from fr_bench.figures.drawing import Drawing, Omission, in_percent, label_in, legend_below, new_figure
from fr_bench.figures.style import Style, look_of, tint
from fr_bench.report.groups import Group
from fr_bench.report.measures import spread, waiting_share


def draw_waiting(groups: list[Group], style: Style) -> Iterator[Drawing | Omission]:
    """Bars by module, side by side for the methods; a thin line is one standard deviation over seeds."""
    ks = sorted({group.k for group in groups if group.k > 1})
    if not ks:
        yield Omission("waiting", "a single module waits for nobody: it needs K > 1")
    for k in ks:
        in_parallel = [group for group in groups if group.k == k and not group.in_one_process]
        shown = [group for group in in_parallel if any(waiting_share(run, 1) is not None for run in group.measured)]
        if not shown:
            in_one = "the modules shared one process and its device (serial)"
            reason = "no run records its waiting" if in_parallel else in_one
            yield Omission(f"waiting-k{k}", reason)
            continue
        figure, (axes,) = new_figure(groups, style, 1, 1, f"K = {k}")
        handles = [_draw_group(axes, group, shown, label_in(group, k)) for group in shown]
        axes.set_xlabel("module")
        axes.set_xticks(range(1, max(group.size for group in shown) + 1))
        axes.grid(False, axis="x")
        axes.set_ylim(0, 1)
        axes.set_ylabel("time spent waiting (%)")
        in_percent(axes)
        legend_below(figure, handles, style, swatches=True)
        yield Drawing(f"waiting-k{k}", figure, shown)


def _draw_group(axes: Axes, group: Group, shown: list[Group], label: str) -> BarContainer:
    width = 0.8 / len(shown)
    offset = (shown.index(group) - (len(shown) - 1) / 2) * width
    found = {
        module: spread(waiting_share(run, module) for run in group.measured) for module in range(1, group.size + 1)
    }
    known = {module: share for module, share in found.items() if share is not None}
    errors = [share.sd or 0.0 for share in known.values()]
    same = [each for each in shown if each.method == group.method]
    look = look_of(group.method)
    lightness = 0.6 * same.index(group) / len(same)
    return axes.bar(
        [module + offset for module in known], [share.mean for share in known.values()], width,
        yerr=errors if any(errors) else None, error_kw={"elinewidth": 0.8, "ecolor": "#555555"},
        color=tint(look.color, lightness), hatch=look.hatch, edgecolor="white", linewidth=0.4, label=label,
    )  # fmt: skip
