"""Where the bars of groups stand: side by side for one K, with a gap before the next."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fr_bench.figures.style import Style
from fr_bench.report.groups import Group

NAME_LETTERS = 24  # of a line of an upright name
GAP = 0.6  # between the bars of one K and those of the next, in bars


@dataclass(frozen=True)
class Bars:
    """Groups and the positions of their bars, one bar a unit."""

    groups: list[Group]
    positions: list[float]
    width: float = 0.8

    def only(self, groups: list[Group]) -> Bars:
        """Those of ``groups``, where they were."""
        kept = [pair for pair in zip(self.groups, self.positions, strict=True) if pair[0] in groups]
        return replace(self, groups=[group for group, _ in kept], positions=[position for _, position in kept])

    def width_in(self, style: Style) -> float:
        """Inches that the figure needs so that the names under the bars do not touch."""
        num_breaks = max(name.count("\n") for name in self._names())
        bar = 1.25 + 1.6 * num_breaks  # so that lines of one name are nearer to each other than to the next name
        return (len(self.groups) * bar + 6) * style.font_pt / 72

    def name_bars(self, axes: Axes) -> None:
        """Writes each group's method and variant under its bar; upright where there is no room side by side."""
        axes.set_xticks(self.positions, self._names(), rotation=90 if self._are_upright() else 0)
        for label in axes.get_xticklabels():  # all lines of an upright name begin or end at the axis
            label.set_multialignment("right" if self._are_upright() else "center")
        axes.tick_params(axis="x", length=0)

    def make_room(self, figure: Figure, axes: Axes) -> None:
        """Makes the figure as much higher as upright names under ``axes`` take, so that its panels stay as they are."""
        if self._are_upright():
            renderer = FigureCanvasAgg(figure).get_renderer()
            height = max(label.get_window_extent(renderer).height for label in axes.get_xticklabels())
            figure.set_figheight(figure.get_figheight() + height / figure.dpi)

    def _are_upright(self) -> bool:
        letters = [len(group.name) for group in self.groups]
        return len(letters) > 6 or max(letters) * len(letters) > 36

    def _names(self) -> list[str]:
        names = [group.name for group in self.groups]
        return ["\n".join(textwrap.wrap(name, NAME_LETTERS)) for name in names] if self._are_upright() else names

    def name_ks(self, axes: Axes) -> None:
        """Writes each K above its bars."""
        for k in sorted({group.k for group in self.groups}):
            places = [at for group, at in zip(self.groups, self.positions, strict=True) if group.k == k]
            middle = (places[0] + places[-1]) / 2
            axes.annotate(
                f"K = {k}", (middle, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
                ha="center", va="bottom",
            )  # fmt: skip


def place_bars(groups: list[Group]) -> Bars:
    """Returns places for ``groups``, which come in the order of K."""
    positions, at = [], 0.0
    for index, group in enumerate(groups):
        at += GAP if index and group.k != groups[index - 1].k else 0.0
        positions.append(at)
        at += 1.0
    return Bars(groups, positions)
