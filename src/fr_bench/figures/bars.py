"""Where the bars of groups stand: side by side for one K, with a gap before the next."""

from __future__ import annotations

from dataclasses import dataclass, replace

from matplotlib.axes import Axes

from fr_bench.figures.style import Style
from fr_bench.groups import Group

GAP = 0.6  # between the bars of one K and those of the next, in bars


@dataclass(frozen=True)
class Bars:
    """Groups and the positions of their bars, one bar a unit."""

    groups: list[Group]
    positions: list[float]
    width: float = 0.8

    def only(self, groups: list[Group]) -> Bars:
        """Those of ``groups``, where they were."""
        kept = [pair for pair in zip(self.groups, self.positions, strict=True) if any(pair[0] is g for g in groups)]
        return replace(self, groups=[group for group, _ in kept], positions=[position for _, position in kept])

    def width_in(self, style: Style) -> float:
        """Inches that the figure needs so that the names under the bars do not touch."""
        return len(self.groups) * style.font_pt * 1.25 / 72 + style.font_pt * 6 / 72

    def name_bars(self, axes: Axes) -> None:
        """Writes each group's method and variant under its bar; upright where there is no room side by side."""
        names = [group.name for group in self.groups]
        rotation = 90 if len(names) > 6 or max(map(len, names)) * len(names) > 36 else 0
        axes.set_xticks(self.positions, names, rotation=rotation)
        axes.tick_params(axis="x", length=0)

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
