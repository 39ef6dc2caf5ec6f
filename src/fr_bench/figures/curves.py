"""Curves over training: the mean of the seeds that finished, a band around it, and each other run by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from fr_bench.figures.style import END_MARKERS, line_properties
from fr_bench.records.reading import number
from fr_bench.records.runs import Run
from fr_bench.report.groups import Group

LARGEST_NUMBER_OF_POINTS = 150  # of a training curve; more is noise on paper
NUM_MARKERS = 7
LARGEST_VALUE = 1e100  # on an axis: the squares and margins of larger ones, which only fp64 has, may overflow
BAND_WORDS = "mean of n seeds, band: ± 1 standard deviation"
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Curve:
    """Values over training: of one run, or the mean over runs.

    Attributes:
        epoch, seconds: where each value belongs; seconds of training.
        sd: sample standard deviation over the runs; None for one run.
        end: as ``Run.end``.
        num_runs: of which it is the mean.
    """

    epoch: Array
    seconds: Array
    value: Array
    sd: Array | None
    end: str
    num_runs: int = 1


def curves_of(group: Group, kind: str, key: str, module: int | None = None, stride: int = 1) -> list[Curve]:
    """Returns the mean over the group's finished runs first, if any, and then each run that did not finish. Finished
    runs whose records have no step in common, which have no mean, come one by one.

    Args:
        kind, key: of the records that hold the value.
        stride: so many records become one value.
    """
    finished = [run for run in group.finished if _points(run, kind, key, module).size]
    others = [run for run in group.runs if run.end != "finished" and _points(run, kind, key, module).size]
    means = _means([_thinned(_points(run, kind, key, module), stride) for run in finished]) if finished else []
    return means + [_single(_thinned(_points(run, kind, key, module), stride), run.end) for run in others]


def stride_for(groups: Sequence[Group], kind: str, key: str, module: int | None = None) -> int:
    """How many records, of ``module`` if they are by module, a point must stand for; the same for all its curves."""
    longest = max((len(_points(run, kind, key, module)) for group in groups for run in group.runs), default=0)
    return max(1, -(-longest // LARGEST_NUMBER_OF_POINTS))


def thinning_notes(stride: int, kind: str) -> tuple[str, ...]:
    """What is to be said of a figure whose points stand for ``stride`` records."""
    return (f"each point is the mean of {stride} {kind} records",) if stride > 1 else ()


def _points(run: Run, kind: str, key: str, module: int | None) -> Array:
    """A line for each record with a finite value: step, epoch, seconds, value."""
    rows = [
        (record["step"], record["epoch"], record["train_time"], max(-LARGEST_VALUE, min(value, LARGEST_VALUE)))
        for record in run.of(kind, module)
        if (value := number(record, key)) is not None
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def _thinned(points: Array, stride: int) -> Array:
    return np.array([points[at : at + stride].mean(axis=0) for at in range(0, len(points), stride)])


def _single(points: Array, end: str) -> Curve:
    return Curve(points[:, 1], points[:, 2], points[:, 3], None, end)


def _means(runs: list[Array]) -> list[Curve]:
    """At every step of any run that lies within all of them; a run without a record there is interpolated."""
    first, last = max(points[0, 0] for points in runs), min(points[-1, 0] for points in runs)
    if len(runs) == 1 or first > last:
        return [_single(points, "finished") for points in runs]
    steps = np.unique(np.concatenate([points[:, 0] for points in runs]))
    steps = steps[(steps >= first) & (steps <= last)]
    stacked = np.array([[np.interp(steps, points[:, 0], points[:, column]) for column in (1, 2, 3)] for points in runs])
    epoch, seconds, value = stacked.mean(axis=0)
    return [Curve(epoch, seconds, value, stacked[:, 2].std(axis=0, ddof=1), "finished", len(runs))]


def draw_curves(
    axes: Axes, drawn: list[tuple[Group, list[Curve]]], across: str, logarithmic_from: float = math.inf
) -> None:
    """Draws all curves of one panel over ``across`` (``epoch`` or ``seconds``) and fits the axis to those that did
    not diverge.

    Args:
        logarithmic_from: largest over smallest value from which the axis is logarithmic. Zeros do not count; if there
            are any, they have a place of their own below the smallest value.
    """
    low, high = _range([curve for _, curves in drawn for curve in curves])
    values = np.concatenate([curve.value for _, curves in drawn for curve in curves])
    smallest = float(values[values > 0].min(initial=math.inf))
    if values.min() >= 0 and smallest < high / logarithmic_from:
        scale_logarithmically(axes, smallest, high, bool((values == 0).any()))
    else:
        margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
    for position, (group, curves) in enumerate(drawn):
        for curve in curves:
            _draw_curve(axes, curve, getattr(curve, across), _properties(group, drawn), position)
    axes.set_xlabel("epoch" if across == "epoch" else "training time (s)")
    axes.set_xlim(0, 1.03 * max(float(getattr(curve, across)[-1]) for _, curves in drawn for curve in curves))


def scale_logarithmically(axes: Axes, smallest: float, high: float, with_zero: bool = False) -> None:
    """An axis from the ``smallest`` value above 0 to the ``high``est, and one tick more for 0 if there is any."""
    top = high * 1.3
    if not with_zero:
        axes.set_yscale("log")
        axes.set_ylim(smallest / 1.3, top)
        _label_decades(axes)
        return
    # Linear up to the smallest value: 0 has no logarithm.
    axes.set_yscale("symlog", linthresh=smallest, linscale=0.3)
    axes.set_ylim(-0.3 * smallest, top)
    decades = LogLocator().tick_values(smallest, top)
    subs = (1.0, 2.0, 5.0) if sum(smallest <= tick <= top for tick in decades) < 3 else (1.0,)
    ticks = LogLocator(subs=subs).tick_values(smallest, top)
    axes.yaxis.set_major_locator(FixedLocator([0, *(tick for tick in ticks if smallest <= tick <= top)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label_decades(axes: Axes) -> None:
    """Powers of ten, or 1, 2 and 5 of each where fewer than three of those would be labelled."""
    bottom, top = np.log10(axes.get_ylim())
    if np.floor(top) - np.ceil(bottom) < 2:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _properties(group: Group, drawn: list[tuple[Group, list[Curve]]]) -> dict[str, Any]:
    return line_properties(group, stands_beside=group.k < max(other.k for other, _ in drawn))


def _range(curves: list[Curve]) -> tuple[float, float]:
    calm = [curve for curve in curves if curve.end != "diverged"] or curves
    spreads = [np.zeros_like(curve.value) if curve.sd is None else curve.sd for curve in calm]
    high = max(float((curve.value + sd).max()) for curve, sd in zip(calm, spreads, strict=True))
    low = min(float((curve.value - sd).min()) for curve, sd in zip(calm, spreads, strict=True))
    return low, high


def _draw_curve(axes: Axes, curve: Curve, x: Array, properties: dict[str, Any], position: int) -> None:
    every = max(1, len(x) // NUM_MARKERS)
    thin = 1.0 if curve.end == "finished" else 0.6
    (line,) = axes.plot(x, curve.value, **properties, markevery=(position % every, every))
    line.set_linewidth(line.get_linewidth() * thin)
    if curve.sd is not None:
        axes.fill_between(
            x, curve.value - curve.sd, curve.value + curve.sd, color=properties["color"], alpha=0.2, linewidth=0
        )
    if curve.end in END_MARKERS:
        bottom, top = axes.get_ylim()
        axes.plot(
            x[-1:], np.clip(curve.value[-1:], bottom, top), marker=END_MARKERS[curve.end], color=properties["color"],
            linestyle="none", markersize=line.get_markersize() * 1.8, markeredgecolor="white", clip_on=False, zorder=5,
            gid=curve.end,
        )  # fmt: skip


def legend_handles(drawn: list[tuple[Group, list[Curve]]], labels: list[str]) -> list[Line2D]:
    """Returns a handle for each group, and one for each way in which a curve ends early."""
    handles = [
        Line2D([], [], label=label, **_properties(group, drawn))
        for (group, _), label in zip(drawn, labels, strict=True)
    ]
    ends = {curve.end for _, curves in drawn for curve in curves}
    for end, marker in END_MARKERS.items():
        if end in ends:
            handles.append(Line2D([], [], label=end, marker=marker, color="#555555", linestyle="none"))
    return handles


def num_finished(curves: Sequence[Curve]) -> int:
    """Of how many finished runs the ``curves`` are."""
    return sum(curve.num_runs for curve in curves if curve.end == "finished")


def band_words(drawn: list[tuple[Group, list[Curve]]]) -> str | None:
    """The legend's title: what the bands are, if there are any."""
    return BAND_WORDS if any(curve.sd is not None for _, curves in drawn for curve in curves) else None
