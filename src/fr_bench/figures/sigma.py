"""The sufficient-direction constant over training: a panel for the whole network and one for each module."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.axes import Axes

from fr_bench.figures.curves import Curve, band_words, curves_of, draw_curves, legend_handles
from fr_bench.figures.drawing import Drawing, Omission, by_k, label_in, legend_below, new_figure
from fr_bench.figures.style import Style
from fr_bench.report.groups import Group

WHOLE_NETWORK = 0
COLUMNS = 2


def draw_sigma(groups: list[Group], style: Style) -> Iterator[Drawing | Omission]:
    """One figure for each K. Backpropagation is at 1 by definition; above 0 a step goes downhill."""
    for k, side_by_side in by_k(groups).items():
        same_k = [group for group in side_by_side if group.k == k]
        drawn = [(group, _by_module(group)) for group in same_k]
        drawn = [(group, panels) for group, panels in drawn if panels]
        if not drawn:
            yield Omission(f"sigma-k{k}", "no run has sigma records (diagnostics.sigma.every=N makes them)")
            continue
        modules = sorted({module for _, panels in drawn for module in panels})
        figure, all_axes = new_figure(groups, style, -(-len(modules) // COLUMNS), COLUMNS, f"K = {k}", height=0.8)
        for axes, module in zip(all_axes, modules, strict=False):
            draw_curves(axes, [(group, panels[module]) for group, panels in drawn if module in panels], "epoch")
            axes.set_title("whole network" if module == WHOLE_NETWORK else f"module {module}")
        _tidy(all_axes, len(modules))
        every_curve = [(group, [curve for curves in panels.values() for curve in curves]) for group, panels in drawn]
        handles = legend_handles(every_curve, [label_in(group, k) for group, _ in drawn])
        legend_below(figure, handles, style, band_words(every_curve))
        yield Drawing(f"sigma-k{k}", figure, [group for group, _ in drawn])


def _by_module(group: Group) -> dict[int, list[Curve]]:
    modules = sorted({module for run in group.runs for module in run.modules("sigma")})
    found = {module: curves_of(group, "sigma", "sigma", module) for module in modules}
    return {module: curves for module, curves in found.items() if curves}


def _tidy(all_axes: list[Axes], num_panels: int) -> None:
    """One range for all panels, with 0 in it; labels at the outer edges; no empty panel."""
    shown = all_axes[:num_panels]
    low = min(axes.get_ylim()[0] for axes in shown)
    high = max(axes.get_ylim()[1] for axes in shown)
    for position, axes in enumerate(shown):
        axes.set_ylim(min(low, -0.05), high)
        axes.axhline(0, color="#555555", linewidth=0.8, gid="zero")
        if position % COLUMNS == 0:
            axes.set_ylabel(r"$\sigma$")
        else:
            axes.tick_params(labelleft=False)
        if position + COLUMNS < num_panels:
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)
    for axes in all_axes[num_panels:]:
        axes.remove()
