"""Speed-up against K, over BP with K = 1 and over locked BP with the same K, beside what is possible at best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from fr_bench.figures.drawing import SLOWED_WORDS, Drawing, Omission, legend_below, new_figure
from fr_bench.figures.style import Style, line_properties, look_of
from fr_bench.planning.limits import BACKWARD_PER_FORWARD, KEEPING_GRAPHS, WITH_COMPANIONS, balanced_limit
from fr_bench.report.groups import METHOD_NAMES, Group
from fr_bench.report.measures import Spread, baseline, measured_sigma, speedup_over

Measured = list[tuple[Group, Spread]]
LIMIT_WORDS = "limits (dashed): one device a module, free links"
LIMIT_LOOK: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 0.9}


def draw_speedup(groups: list[Group], style: Style) -> Iterator[Drawing | Omission]:
    """One panel for each reference that is among ``groups``; dashed: the limits with balanced modules."""
    over_single = _measured(groups, locked=False)
    over_locked = _measured(groups, locked=True)
    panels = {"over BP, K = 1": over_single, "over locked BP": over_locked}
    panels = {title: found for title, found in panels.items() if any(group.k > 1 for group, _ in found)}
    if not panels:
        reason = "it needs runs with K > 1 and, comparable with them, a run of BP with K = 1 or with the same K"
        yield Omission("speedup", reason)
        return
    figure, axes_list = new_figure(groups, style, 1, len(panels), "")
    series = _series(group for found in panels.values() for group, _ in found)
    drawn = [group for members in series for group in members]
    limits = _limits([group.method for group in drawn], max(group.k for group in drawn))
    for axes, (title, found) in zip(axes_list, panels.items(), strict=True):
        _draw_panel(axes, found, series)
        for label, color, values in limits:
            axes.plot(range(1, len(values) + 1), values, color=color, zorder=1, label=label, **LIMIT_LOOK)
        axes.set_title(title)
    top = max(axes.dataLim.y1 for axes in axes_list)
    for axes in axes_list:
        axes.set_ylim(0, top * 1.08)
    axes_list[0].set_ylabel("speed-up")
    legend_below(figure, _handles(series, limits), style, LIMIT_WORDS if limits else None)
    yield Drawing("speedup", figure, drawn, tuple(_notes(drawn)))


def _measured(groups: list[Group], locked: bool) -> Measured:
    """Groups with their speed-up, where there is something to compare with."""
    found = []
    for group in groups:
        if locked and group.k == 1:
            continue
        speedup = speedup_over(group, baseline(group, groups, group.k if locked else 1))
        if speedup is not None:
            found.append((group, speedup))
    return found


def _series(groups: Iterable[Group]) -> list[list[Group]]:
    """Groups that differ in K alone, as far as their names tell: one line of the figure."""
    found: dict[str, list[Group]] = {}
    for group in dict.fromkeys(groups):
        found.setdefault(group.name, []).append(group)
    return [sorted(members, key=lambda group: group.k) for members in found.values()]


def _draw_panel(axes: Axes, found: Measured, series: list[list[Group]]) -> None:
    speedups = dict(found)
    for members in series:
        known = [group for group in members if group in speedups]
        means = {group.k: speedups[group].mean for group in known}
        deviations = [speedups[group].sd for group in known]
        errors = [deviation or 0.0 for deviation in deviations] if any(deviations) else None
        properties = line_properties(members[0])
        axes.errorbar(list(means), list(means.values()), errors, capsize=2, label=members[0].name, **properties)
        hollow = [group.k for group in known if group.in_one_process]
        properties |= {"markerfacecolor": "white", "linestyle": "none", "zorder": 3}
        axes.plot(hollow, [means[k] for k in hollow], **properties)
    # From 1 on, where the limits begin, and where both panels have something.
    axes.xaxis.set_major_locator(FixedLocator(sorted({1, *(group.k for members in series for group in members)})))
    axes.set_xlabel("number of modules K")


def _limits(methods: list[str], largest_k: int) -> list[tuple[str, str, list[float]]]:
    """Label, colour and values for K = 1, 2, ... of each limit; methods that keep their graphs share one."""
    keeping = [method for method in METHOD_NAMES if method in methods and method in KEEPING_GRAPHS]
    others = [method for method in METHOD_NAMES if method in methods and method not in KEEPING_GRAPHS]
    found = [([method], look_of(method).color) for method in others]
    if keeping:
        found.append((keeping, look_of(keeping[0]).color if len(keeping) == 1 else "#777777"))
    limits = []
    for members, color in found:
        values = [limit for k in range(1, largest_k + 1) if (limit := balanced_limit(members[0], k)) is not None]
        if values:
            limits.append((f"limit of {', '.join(METHOD_NAMES[method] for method in members)}", color, values))
    return limits


def _handles(series: list[list[Group]], limits: list[tuple[str, str, list[float]]]) -> list[Line2D]:
    handles = [Line2D([], [], label=_words(members), **line_properties(members[0])) for members in series]
    handles += [Line2D([], [], label=label, color=color, **LIMIT_LOOK) for label, color, _ in limits]
    if any(group.in_one_process for members in series for group in members):
        look: dict[str, Any] = {"marker": "o", "color": "#555555", "markerfacecolor": "white", "linestyle": "none"}
        handles.append(Line2D([], [], label="hollow: serial", **look))
    return handles


def _words(members: list[Group]) -> str:
    seeds = sorted({group.seeds for group in members})
    return f"{members[0].name} ({seeds[0] if len(seeds) == 1 else 'n differs with K'})"


def _notes(drawn: list[Group]) -> list[str]:
    backward = f"a backward of {BACKWARD_PER_FORWARD:g} forwards"
    notes = [f"limits: one device a module, balanced modules, {backward}, free transport"]
    if any(group.method in WITH_COMPANIONS for group in drawn):
        notes.append("the limit of DNI, cDNI and DGL leaves out what their synthesizers and auxiliary networks compute")
    if any(measured_sigma(group) for group in drawn):
        notes.append(SLOWED_WORDS)
    if any(group.in_one_process for group in drawn):
        notes.append("hollow: transport serial, where the modules share one process and its device")
    return notes
