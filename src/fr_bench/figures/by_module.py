"""What was measured in each module over training, a panel for each: the sufficient-direction constant, and what
methods measure themselves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes

from fr_bench.figures.curves import (
    Array,
    Curve,
    band_words,
    curves_of,
    draw_curves,
    legend_handles,
    num_finished,
    scale_logarithmically,
    stride_for,
    thinning_notes,
)
from fr_bench.figures.drawing import Drawing, Omission, by_k, label_in, legend_below, new_figure
from fr_bench.figures.style import Style
from fr_bench.records.reading import OF_EVERY_MODULE
from fr_bench.report.groups import Group

WHOLE_NETWORK = 0
COLUMNS = 2
LOGARITHMIC_FROM = 20.0  # largest over smallest value


def draw_sigma(groups: list[Group], style: Style) -> Iterator[Drawing | Omission]:
    """One figure for each K. Backpropagation is at 1 by definition; above 0 a step goes downhill."""
    for k, side_by_side in by_k(groups).items():
        drawing = _draw(groups, side_by_side, k, style, "sigma", "sigma", f"sigma-k{k}", with_zero=True)
        yield drawing or Omission(f"sigma-k{k}", "no run has sigma records (diagnostics.sigma.every=N makes them)")


def draw_measured(groups: list[Group], style: Style) -> Iterator[Drawing]:
    """One figure for each K and each field of `method` records; none where no method measures anything."""
    for k, side_by_side in by_k(groups).items():
        records = [record for group in side_by_side for run in group.runs for record in run.of("method")]
        fields = dict.fromkeys(field for record in records for field in record if field not in OF_EVERY_MODULE)
        for field in fields:
            drawing = _draw(groups, side_by_side, k, style, "method", field, f"method-{field}-k{k}")
            if drawing is not None:
                yield drawing


def _draw(
    groups: list[Group],
    side_by_side: list[Group],
    k: int,
    style: Style,
    kind: str,
    field: str,
    name: str,
    with_zero: bool = False,
) -> Drawing | None:
    """Of ``field`` in the records of ``kind`` of runs with ``k`` modules; None if there are none."""
    same_k = [group for group in side_by_side if group.k == k]
    numbers = {module for group in same_k for run in group.runs for module in run.modules(kind)}
    stride = max((stride_for(same_k, kind, field, module) for module in numbers), default=1)
    drawn = [(group, _by_module(group, kind, field, numbers, stride)) for group in same_k]
    drawn = [(group, panels) for group, panels in drawn if panels]
    if not drawn:
        return None
    modules = sorted({module for _, panels in drawn for module in panels})
    figure, all_axes = new_figure(groups, style, -(-len(modules) // COLUMNS), COLUMNS, f"K = {k}", height=0.8)
    for axes, module in zip(all_axes, modules, strict=False):
        draw_curves(axes, [(group, panels[module]) for group, panels in drawn if module in panels], "epoch")
        axes.set_title("whole network" if module == WHOLE_NETWORK else f"module {module}")
    every_curve = [(group, [curve for curves in panels.values() for curve in curves]) for group, panels in drawn]
    values = np.concatenate([curve.value for _, curves in every_curve for curve in curves])
    _share_range(all_axes[: len(modules)], values, with_zero)
    _tidy(all_axes, len(modules), r"$\sigma$" if field == "sigma" else field.replace("_", " "))
    numbers_of_runs = [max(map(num_finished, panels.values())) for _, panels in drawn]
    labels = [label_in(group, k, number) for (group, _), number in zip(drawn, numbers_of_runs, strict=True)]
    handles = legend_handles(every_curve, labels)
    legend_below(figure, handles, style, band_words(every_curve))
    return Drawing(name, figure, [group for group, _ in drawn], thinning_notes(stride, kind))


def _by_module(group: Group, kind: str, field: str, numbers: set[int], stride: int) -> dict[int, list[Curve]]:
    found = {module: curves_of(group, kind, field, module, stride) for module in numbers}
    return {module: curves for module, curves in found.items() if curves}


def _share_range(shown: list[Axes], values: Array, with_zero: bool) -> None:
    """One range for all panels, logarithmic where they are orders of magnitude apart."""
    if not with_zero and values.min() > 0 and values.max() > LOGARITHMIC_FROM * values.min():
        for axes in shown:
            scale_logarithmically(axes, float(values.min()), float(values.max()))
        return
    low = min(axes.get_ylim()[0] for axes in shown)
    high = max(axes.get_ylim()[1] for axes in shown)
    for axes in shown:
        axes.set_ylim(min(low, -0.05) if with_zero else low, high)
        if with_zero:
            axes.axhline(0, color="#555555", linewidth=0.8, gid="zero")


def _tidy(all_axes: list[Axes], num_panels: int, label: str) -> None:
    """Labels at the outer edges; no empty panel."""
    for position, axes in enumerate(all_axes[:num_panels]):
        if position % COLUMNS == 0:
            axes.set_ylabel(label)
        else:
            axes.tick_params(labelleft=False)
        if position + COLUMNS < num_panels:
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)
    for axes in all_axes[num_panels:]:
        axes.remove()
