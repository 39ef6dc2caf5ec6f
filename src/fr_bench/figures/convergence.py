"""Training loss and test error against epoch and against seconds, and validation error: a figure for each K."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from fr_bench.figures.curves import (
    Curve,
    band_words,
    curves_of,
    draw_curves,
    legend_handles,
    num_finished,
    stride_for,
    thinning_notes,
)
from fr_bench.figures.drawing import (
    SLOWED_WORDS,
    Drawing,
    Omission,
    by_k,
    in_percent,
    label_in,
    legend_below,
    new_figure,
)
from fr_bench.figures.style import Style
from fr_bench.report.groups import Group
from fr_bench.report.measures import best_validation_error, measured_sigma

LOGARITHMIC_FROM = {"loss": 20.0, "error": 10.0}  # largest over smallest value


def draw_loss(groups: list[Group], style: Style) -> Iterator[Drawing | Omission]:
    """Training loss: one panel against epoch, one against seconds of training."""
    for k, side_by_side in by_k(groups).items():
        name = f"loss-k{k}"
        stride = stride_for(side_by_side, "train", "loss")
        drawn = _with_curves(side_by_side, "train", "loss", stride)
        if not drawn:
            yield Omission(name, "no run has train records with a loss")
            continue
        figure, (by_epoch, by_time) = new_figure(groups, style, 1, 2, f"K = {k}")
        for axes, across in ((by_epoch, "epoch"), (by_time, "seconds")):
            draw_curves(axes, drawn, across, logarithmic_from=LOGARITHMIC_FROM["loss"])
        by_epoch.set_ylabel("training loss")
        by_time.tick_params(labelleft=False, which="both")
        _legend(figure, drawn, k, style)
        notes = (*thinning_notes(stride, "train"), *_notes_on_seconds(drawn))
        yield Drawing(name, figure, [group for group, _ in drawn], notes)


def draw_test_error(groups: list[Group], style: Style) -> Iterator[Drawing | Omission]:
    """Test error against epoch, and in a figure of its own against seconds of training."""
    for k in by_k(groups):
        for across, name in (("epoch", f"test-error-k{k}"), ("seconds", f"test-error-seconds-k{k}")):
            yield _draw_error(groups, style, k, "test", across, name)


def draw_validation_error(groups: list[Group], style: Style) -> Iterator[Drawing | Omission]:
    """Validation error against epoch, for runs that hold images out of their training set, or whose data set brings
    some; else nothing is missing."""
    held_out = [group for group in groups if any(best_validation_error(run) is not None for run in group.runs)]
    for k in by_k(held_out):
        yield _draw_error(held_out, style, k, "validation", "epoch", f"validation-error-k{k}")


def _draw_error(groups: list[Group], style: Style, k: int, which: str, across: str, name: str) -> Drawing | Omission:
    drawn = _with_curves(by_k(groups)[k], "eval", f"{which}_error", 1)
    if not drawn:
        return Omission(name, f"no run has eval records with a {which} error")
    figure, (axes,) = new_figure(groups, style, 1, 1, f"K = {k}")
    draw_curves(axes, drawn, across, logarithmic_from=LOGARITHMIC_FROM["error"])
    axes.set_ylabel(f"{which} error (%)")
    in_percent(axes)
    _legend(figure, drawn, k, style)
    notes = _notes_on_seconds(drawn) if across == "seconds" else ()
    return Drawing(name, figure, [group for group, _ in drawn], notes)


def _notes_on_seconds(drawn: list[tuple[Group, list[Curve]]]) -> tuple[str, ...]:
    notes = []
    if any(group.in_one_process for group, _ in drawn):
        notes.append("transport serial: the modules shared one process and its device, which is no pipeline's time")
    if any(measured_sigma(group) for group, _ in drawn):
        notes.append(SLOWED_WORDS)
    if any(run.takes_over for group, _ in drawn for run in group.runs):
        notes.append("a run that took over from another begins with that one's seconds")
    return tuple(notes)


def _with_curves(groups: list[Group], kind: str, key: str, stride: int) -> list[tuple[Group, list[Curve]]]:
    found = [(group, curves_of(group, kind, key, stride=stride)) for group in groups]
    return [(group, curves) for group, curves in found if curves]


def _legend(figure: Figure, drawn: list[tuple[Group, list[Curve]]], k: int, style: Style) -> None:
    handles = legend_handles(drawn, [label_in(group, k, num_finished(curves)) for group, curves in drawn])
    legend_below(figure, handles, style, band_words(drawn))
