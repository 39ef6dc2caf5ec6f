"""``fr-bench plot``: what is drawn (the data of the figures), what is left out, and which files appear."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_files import records_of_a_run, write_run

from fr_bench.cli import main
from fr_bench.figures.drawing import Drawing, Omission
from fr_bench.figures.style import LOOKS, OTHERS, look_of
from fr_bench.figures.write import draw_all
from fr_bench.planning.limits import balanced_limit
from fr_bench.records.reading import POSITION
from fr_bench.records.runs import find_runs
from fr_bench.report.groups import make_groups


def plot(*words: object) -> int:
    return main(["plot", *map(str, words)])


def draw(folder: Path, style: str = "paper") -> dict[str, Drawing | Omission]:
    def ignore(problem: str) -> None: ...

    return {each.name: each for each in draw_all(make_groups(find_runs([str(folder)], ignore), ignore), style)}


def panels(drawing: Drawing | Omission) -> list[Any]:
    assert isinstance(drawing, Drawing), drawing
    return drawing.figure.axes


def curves(axes: Any, color: str) -> list[Any]:
    """The lines of a panel in one colour, without marks and the caps of error bars."""
    lines = [line for line in axes.get_lines() if line.get_linestyle() != "None"]
    return [line for line in lines if line.get_color() == color and len(line.get_xdata()) > 1]


def legend_words(drawing: Drawing | Omission) -> list[str]:
    assert isinstance(drawing, Drawing)
    (legend,) = drawing.figure.legends
    return [text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in legend.get_texts()]


def legend_title(drawing: Drawing | Omission) -> str:
    assert isinstance(drawing, Drawing)
    return drawing.figure.legends[0].get_title().get_text()


# --- curves


def test_loss_is_drawn_against_epochs_and_against_seconds(tmp_path):
    write_run(tmp_path / "0", step_s=0.1, loss=lambda epoch: 3 - epoch / 2)
    by_epoch, by_time = panels(draw(tmp_path)["loss-k2"])
    (over_epoch,), (over_time,) = (curves(axes, LOOKS["fr"].color) for axes in (by_epoch, by_time))
    assert list(over_epoch.get_xdata()) == [0.5, 1, 1.5, 2, 2.5, 3]
    assert list(over_time.get_xdata()) == pytest.approx([0.5, 1, 1.5, 2, 2.5, 3])
    assert list(over_epoch.get_ydata()) == list(over_time.get_ydata()) == [2.75, 2.5, 2.25, 2, 1.75, 1.5]
    assert (by_epoch.get_xlabel(), by_time.get_xlabel()) == ("epoch", "training time (s)")


def test_seeds_become_a_mean_with_a_band(tmp_path):
    for seed, loss in enumerate((1.0, 2.0, 6.0)):
        write_run(tmp_path / str(seed), seed=seed, step_s=0.1 * (1 + seed), loss=lambda _, loss=loss: loss)
    drawing = draw(tmp_path)["loss-k2"]
    for axes, last_x in zip(panels(drawing), (3, 30 * 0.2), strict=True):
        (line,) = curves(axes, LOOKS["fr"].color)
        assert line.get_xdata()[-1] == pytest.approx(last_x) and set(line.get_ydata()) == {3.0}
        (band,) = axes.collections
        heights = band.get_paths()[0].vertices[:, 1]
        sd = math.sqrt((4 + 1 + 9) / 2)
        assert (heights.min(), heights.max()) == pytest.approx((3 - sd, 3 + sd))
    assert legend_words(drawing) == ["FR (n = 3)"]
    assert "band: ± 1 standard deviation" in legend_title(drawing)


def test_seeds_with_other_logging_steps_are_averaged_where_both_have_values(tmp_path):
    write_run(tmp_path / "0", seed=0, loss=lambda epoch: epoch)
    records = records_of_a_run(2, loss=lambda epoch: epoch + 2)
    sparse = [r for r in records if r["kind"] != "train" or r["step"] in (10, 20)]
    write_run(tmp_path / "1", seed=1, records=sparse)
    (line,) = curves(panels(draw(tmp_path)["loss-k2"])[0], LOOKS["fr"].color)
    assert list(line.get_xdata()) == [1, 1.5, 2]
    assert list(line.get_ydata()) == pytest.approx([2, 2.5, 3])


def test_seeds_whose_records_have_no_step_in_common_are_drawn_one_by_one(tmp_path):
    records = records_of_a_run(2, epochs=150, kinds=("train",))  # 300, so that a point is the mean of two
    write_run(tmp_path / "0", seed=0, records=records)
    write_run(tmp_path / "1", seed=1, records=records[-1:])  # behind the last mean
    axes = panels(draw(tmp_path)["loss-k2"])[0]
    assert [len(line.get_xdata()) for line in axes.get_lines()] == [150, 1]
    assert not axes.collections, "no band"


def test_a_long_run_is_thinned_to_means_and_says_so(tmp_path):
    write_run(tmp_path / "0", k=1, epochs=200, loss=lambda epoch: epoch, kinds=("train",))
    drawing = draw(tmp_path)["loss-k1"]
    (line,) = curves(panels(drawing)[0], LOOKS["fr"].color)
    assert len(line.get_xdata()) == 134 and list(line.get_xdata()) == pytest.approx(list(line.get_ydata()))
    assert line.get_xdata()[0] == pytest.approx(1.0), "the mean of 0.5, 1 and 1.5"
    assert drawing.notes == ("each point is the mean of 3 train records",)


def test_runs_that_ended_early_are_drawn_by_themselves_and_marked(tmp_path):
    write_run(tmp_path / "0", seed=0)
    write_run(tmp_path / "1", seed=1, epochs=2, state="running")
    huge = {"loss": lambda epoch: 2.0 if epoch < 1 else 1e12}
    write_run(tmp_path / "2", seed=2, epochs=2, state="failed", error="diverged at step 20 in module 1", **huge)
    drawing = draw(tmp_path)["loss-k2"]
    axes = panels(drawing)[0]
    assert sorted(line.get_xdata()[-1] for line in curves(axes, LOOKS["fr"].color)) == [2, 2, 3]
    marks = {line.get_gid(): line for line in axes.get_lines() if line.get_gid() in ("diverged", "unfinished")}
    assert [marks[end].get_xdata()[0] for end in ("diverged", "unfinished")] == [2, 2]
    top = axes.get_ylim()[1]
    assert top < 3, "a run that diverged must not set the scale"
    assert marks["diverged"].get_ydata()[0] <= top, "its mark stays in the panel"
    assert legend_words(drawing) == ["FR (n = 1, 1 diverged, 1 unfinished)", "diverged", "unfinished"]


def test_losses_whose_squares_overflow_are_drawn(tmp_path):
    """In float64 a loss may be so large and the run go on."""
    for seed in (0, 1):
        huge = {"loss": lambda epoch, seed=seed: 1.0 if seed or epoch < 1 else 1.7e308}
        write_run(tmp_path / str(seed), seed=seed, kinds=("train",), **huge)
    assert np.isfinite(panels(draw(tmp_path)["loss-k2"])[0].get_ylim()).all()


def test_runs_of_which_none_finished_have_no_mean(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed, state="running", loss=lambda _, seed=seed: 1.0 + seed)
    axes = panels(draw(tmp_path)["loss-k2"])[0]
    assert sorted(line.get_ydata()[-1] for line in curves(axes, LOOKS["fr"].color)) == [1, 2]
    assert not axes.collections, "no band"


def test_runs_that_diverged_before_their_first_record_are_counted(tmp_path, capsys):
    early = {"records": [], "state": "failed", "error": "diverged at step 1 in module 1: its loss is nan"}
    runs = tmp_path / "runs"
    write_run(runs / "0", seed=0, kinds=("train",))
    for seed in (1, 2):
        write_run(runs / str(seed), seed=seed, **early)
    write_run(runs / "alone", "ddg", **early)
    assert legend_words(draw(runs)["loss-k2"]) == ["FR (n = 1, 2 diverged)"]
    assert plot(runs, "--out", tmp_path / "figures") == 0
    text = capsys.readouterr().out
    assert "  FR, K = 2: n = 1, 2 diverged" in text and "  DDG, K = 2: 1 diverged" in text
    assert plot(runs / "alone", "--out", tmp_path / "figures") == 2
    assert "nothing to draw" in capsys.readouterr().err


def test_variants_are_told_apart_and_never_averaged(tmp_path):
    write_run(tmp_path / "0", settings={"method": {"bn_stats": "replay"}}, loss=lambda _: 1.0)
    write_run(tmp_path / "1", seed=1, settings={"method": {"bn_stats": "play"}}, loss=lambda _: 2.0)
    drawing = draw(tmp_path)["loss-k2"]
    lines = curves(panels(drawing)[0], LOOKS["fr"].color)
    assert [set(line.get_ydata()) for line in lines] == [{2.0}, {1.0}]
    assert len({line.get_marker() for line in lines}) == 2
    assert legend_words(drawing) == ["FR (bn_stats=play) (n = 1)", "FR (bn_stats=replay) (n = 1)"]


def test_every_k_has_a_figure_with_ordinary_training_beside_it(tmp_path):
    def losses() -> dict[str, list[str]]:
        return {name: legend_words(each) for name, each in draw(tmp_path).items() if name.startswith("loss")}

    write_run(tmp_path / "bp1", "bp", k=1)
    assert losses() == {"loss-k1": ["BP (n = 1)"]}
    for k in (2, 4):
        write_run(tmp_path / f"fr{k}", "fr", k=k)
    both = ["FR (n = 1)", "BP, K = 1 (n = 1)"]
    assert losses() == {"loss-k2": both, "loss-k4": both}
    write_run(tmp_path / "fr1", "fr", k=1)
    assert losses() == {"loss-k1": ["BP (n = 1)", "FR (n = 1)"], "loss-k2": both, "loss-k4": both}


def test_test_error_is_in_per_cent(tmp_path):
    write_run(tmp_path / "0", test_error=lambda epoch: 0.5 / epoch)
    (axes,) = panels(draw(tmp_path)["test-error-k2"])
    (line,) = curves(axes, LOOKS["fr"].color)
    assert list(line.get_ydata()) == pytest.approx([0.5, 0.25, 0.5 / 3])
    assert axes.get_ylabel() == "test error (%)" and axes.yaxis.get_major_formatter()(0.25, 0) == "25"


def labels_by_place(drawing: Drawing | Omission) -> dict[float, str]:
    """The labels of the vertical axis of a figure's first panel that are in view."""
    axes = panels(drawing)[0]
    drawing.figure.draw_without_rendering()
    bottom, top = axes.get_ylim()
    ticks = [*axes.yaxis.get_major_ticks(), *axes.yaxis.get_minor_ticks()]
    found = {round(tick.get_loc(), 9): tick.label1.get_text() for tick in ticks if bottom <= tick.get_loc() <= top}
    return {place: text for place, text in sorted(found.items()) if text}


@pytest.mark.parametrize(("last", "scale"), [(0.02, "log"), (0.2, "linear")])
def test_test_errors_that_span_a_wide_range_have_a_logarithmic_axis_in_per_cent(last, scale, tmp_path):
    write_run(tmp_path / "0", test_error=lambda epoch: 0.8 if epoch < 3 else last)
    (axes,) = panels(drawing := draw(tmp_path)["test-error-k2"])
    assert axes.get_yscale() == scale
    if scale == "log":
        assert labels_by_place(drawing) == {0.02: "2", 0.05: "5", 0.1: "10", 0.2: "20", 0.5: "50", 1.0: "100"}


def test_an_error_of_zero_has_a_place_on_the_logarithmic_axis(tmp_path):
    errors = {1: 0.4, 2: 0.01, 3: 0.0}
    write_run(tmp_path / "0", test_error=lambda epoch: errors[epoch])
    (axes,) = panels(drawing := draw(tmp_path)["test-error-k2"])
    (line,) = curves(axes, LOOKS["fr"].color)
    assert list(line.get_ydata()) == [0.4, 0.01, 0.0]
    expected = {0.0: "0", 0.01: "1", 0.02: "2", 0.05: "5", 0.1: "10", 0.2: "20", 0.5: "50"}
    assert labels_by_place(drawing) == expected
    heights = [axes.transAxes.inverted().transform(axes.transData.transform((1, error)))[1] for error in expected]
    assert heights[0] > 0 and heights[-1] < 1, "all of them inside the panel"
    gaps = [above - below for below, above in itertools.pairwise(heights)]
    assert max(gaps) < 3 * min(gaps), "neither a gulf above 0 nor all of them at the top"


def test_errors_that_are_all_zero_are_drawn(tmp_path):
    write_run(tmp_path / "0", test_error=lambda _: 0.0)
    (axes,) = panels(draw(tmp_path)["test-error-k2"])
    assert axes.get_yscale() == "linear"


def test_test_error_is_drawn_against_seconds_too(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed, step_s=0.2 * (1 + seed), kinds=("eval",))
    drawing = draw(tmp_path)["test-error-seconds-k2"]
    (axes,) = panels(drawing)
    (line,) = curves(axes, LOOKS["fr"].color)
    assert list(line.get_xdata()) == pytest.approx([3, 6, 9])
    assert list(line.get_ydata()) == pytest.approx([0.5, 0.25, 0.5 / 3])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training time (s)", "test error (%)") and not drawing.notes


def test_seconds_that_are_not_a_pipelines_own_are_said_to_be(tmp_path):
    write_run(tmp_path / "serial", transport="serial")
    write_run(tmp_path / "moved", settings={"resume": "/runs/a"}, kinds=("train", "eval"))
    found = draw(tmp_path)
    for name in ("loss-k2", "test-error-seconds-k2"):
        assert [note.partition(":")[0] for note in found[name].notes] == [
            "transport serial",
            "a run that took over from another begins with that one's seconds",
        ]


@pytest.mark.parametrize("settings", [{"dataset": {"validation": 100}}, {}], ids=["held out", "of the data set"])
def test_validation_error_is_drawn_where_there_is_one(settings, tmp_path):
    write_run(tmp_path / "without", "bp")
    assert not [name for name in draw(tmp_path) if "validation" in name]
    records = records_of_a_run(2)
    for record in records:
        if record["kind"] == "eval":
            record["validation_error"] = 0.3 / record["epoch"]
    write_run(tmp_path / "with", records=records, settings=settings)
    drawing = draw(tmp_path)["validation-error-k2"]
    (axes,) = panels(drawing)
    (line,) = curves(axes, LOOKS["fr"].color)
    assert list(line.get_ydata()) == pytest.approx([0.3, 0.15, 0.1]) and len(drawing.groups) == 1
    assert axes.get_ylabel() == "validation error (%)"


def test_sigma_has_a_panel_for_the_network_and_for_each_module(tmp_path):
    records = records_of_a_run(2)
    for record in records:
        if record["kind"] == "sigma":
            record["sigma"] = 0.5 + record["module"] / 10
    write_run(tmp_path / "0", records=records)
    found = panels(draw(tmp_path)["sigma-k2"])
    assert [axes.get_title() for axes in found] == ["whole network", "module 1", "module 2"]
    assert [axes.get_xlabel() for axes in found] == ["", "epoch", "epoch"]  # of the lowest of each column
    for module, axes in enumerate(found):
        assert set(curves(axes, LOOKS["fr"].color)[0].get_ydata()) == {0.5 + module / 10}
        assert axes.get_ylim()[0] < 0, "the constant means something beside 0"


def method_records(k: int, epochs: int, fields: Any) -> list[dict[str, Any]]:
    """Of modules 1 to k-1, with each train record; ``fields`` are of the module and the epoch."""
    at = [{key: record[key] for key in POSITION} for record in records_of_a_run(k, epochs, kinds=("train",))]
    return [{"kind": "method", "module": j, **where, **fields(j, where["epoch"])} for where in at for j in range(1, k)]


def test_a_sigma_that_some_seeds_measured_is_not_passed_off_as_the_mean_of_all(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / str(seed), seed=seed, kinds=("train", "sigma") if seed == 1 else ("train",))
    write_run(tmp_path / "3", seed=3, state="running")
    found = draw(tmp_path)
    assert legend_words(found["sigma-k2"])[0] == "FR (n = 1 of 3, 1 unfinished)"
    assert legend_words(found["loss-k2"])[0] == "FR (n = 3, 1 unfinished)"


def test_what_a_method_measures_has_a_figure_a_field_with_a_panel_for_each_module(tmp_path):
    measured = method_records(3, 3, lambda k, epoch: {"gain": k + epoch, "own_loss": 5.0 if k == 1 else None})
    write_run(tmp_path / "0", k=3, records=[*records_of_a_run(3), *measured])
    write_run(tmp_path / "1", "bp", k=3)
    found = draw(tmp_path)
    assert [name for name in found if name.startswith("method")] == ["method-gain-k3", "method-own_loss-k3"]
    for module, axes in enumerate(panels(found["method-gain-k3"]), start=1):
        assert axes.get_title() == f"module {module}"
        (line,) = curves(axes, LOOKS["fr"].color)
        assert list(line.get_ydata()) == [module + 0.5 * step for step in range(1, 7)]
    assert panels(found["method-gain-k3"])[0].get_ylabel() == "gain"
    (axes,) = panels(found["method-own_loss-k3"])  # of module 2 there was no number
    assert axes.get_title() == "module 1" and axes.get_ylabel() == "own loss"
    assert legend_words(found["method-own_loss-k3"]) == ["FR (n = 1)"]


@pytest.mark.parametrize(("lowest", "scale"), [(0.01, "log"), (1.0, "linear"), (0.0, "linear"), (-0.01, "linear")])
def test_what_a_method_measures_has_one_axis_logarithmic_for_modules_that_are_far_apart(tmp_path, lowest, scale):
    records = method_records(3, 3, lambda k, epoch: {"own_loss": lowest if k == 1 else epoch})
    write_run(tmp_path / "0", k=3, records=records)
    one, other = panels(draw(tmp_path)["method-own_loss-k3"])
    assert one.get_yscale() == other.get_yscale() == scale and one.get_ylim() == other.get_ylim()
    assert one.get_ylim()[0] < lowest < 3 < one.get_ylim()[1]


def test_what_a_method_measures_often_is_thinned_by_module(tmp_path):
    write_run(tmp_path / "0", k=3, records=method_records(3, 100, lambda _, epoch: {"gain": epoch}))
    drawing = draw(tmp_path)["method-gain-k3"]
    (line,) = curves(panels(drawing)[1], LOOKS["fr"].color)
    assert len(line.get_xdata()) == 100 and list(line.get_xdata()) == list(line.get_ydata())
    assert drawing.notes == ("each point is the mean of 2 method records",)


# --- bars


def bars(axes: Any) -> list[tuple[float, float, float]]:
    """Middle, bottom and height of every bar."""
    return [(p.get_x() + p.get_width() / 2, p.get_y(), p.get_height()) for p in axes.patches if p.get_height()]


def test_memory_is_stacked_by_category_and_by_module(tmp_path):
    write_run(tmp_path / "bp", "bp", k=1, category_bytes=3 * 2**20)
    records = records_of_a_run(2, category_bytes=2**20)
    for record in records:
        if record["kind"] == "memory":
            record |= {"history": record["module"] * 2**20, "predicted": 8 * 2**20, "mystery": 2**30}
    write_run(tmp_path / "fr", records=records)
    drawing = draw(tmp_path)["memory"]
    by_category, by_module = panels(drawing)
    fr = max(middle for middle, _, _ in bars(by_module))
    assert [height for middle, _, height in bars(by_category) if middle == fr] == [2, 2, 2, 3, 2]
    assert [(bottom, height) for middle, bottom, height in bars(by_module) if middle == fr] == [(0, 5), (5, 6)]
    assert sum(height for middle, _, height in bars(by_category) if middle != fr) == 12
    (predicted,) = (line for line in by_category.get_lines() if line.get_label() == "predicted")
    assert (list(predicted.get_xdata()), list(predicted.get_ydata())) == ([fr], [16])
    assert by_category.get_ylabel() == "memory (MiB)"
    assert [text.get_text() for text in by_category.texts] == ["K = 1", "K = 2"]


def test_memory_is_the_mean_over_seeds(tmp_path):
    for seed, num_mib in enumerate((1, 3)):
        write_run(tmp_path / str(seed), seed=seed, category_bytes=num_mib * 2**20)
    by_category, by_module = panels(draw(tmp_path)["memory"])
    assert [height for _, _, height in bars(by_category)] == [4, 4, 4, 4]  # two modules
    assert [height for _, _, height in bars(by_module)] == [8, 8]


def test_peaks_are_added_up_only_where_every_module_has_a_gpu_of_its_own(tmp_path):
    for name, devices in (("fr", ["cuda:0", "cuda:1"]), ("ddg", ["cuda:0", "cuda:0"])):
        records = records_of_a_run(2, category_bytes=2**30)
        for record in records:
            if record["kind"] == "memory":
                record |= {"device": devices[record["module"] - 1], "peak": 8 * 2**30}
        write_run(tmp_path / name, name, records=records, settings={"plan": {"devices": devices}})
    drawing = draw(tmp_path)["memory"]
    (peaks,) = (line for line in panels(drawing)[0].get_lines() if line.get_label() == "peak of the GPUs")
    (fr,) = (at for at, group in enumerate(drawing.groups) if group.method == "fr")
    assert (list(peaks.get_xdata()), list(peaks.get_ydata())) == ([fr], [16])


def test_the_legend_of_memory_has_what_the_bars_have(tmp_path):
    records = records_of_a_run(2, category_bytes=2**30)
    for record in records:
        if record["kind"] == "memory":
            record |= {"history": 1, "stash": 0, "synthesizer": 0}
    write_run(tmp_path / "0", records=records)
    drawing = draw(tmp_path)["memory"]
    words = [text for text in legend_words(drawing) if text.strip()]
    categories = ["parameters", "gradients", "optimizer", "history", "activations"]
    assert words == [*categories, "each bar, dark to light:", "module 1", "module 2"]
    assert not any(patch.get_linewidth() for patch in panels(drawing)[0].patches), "an edge would hide a few bytes"


def test_shades_are_explained_where_there_are_several(tmp_path):
    write_run(tmp_path / "0", "bp", k=1)
    assert not any("dark to light" in text for text in legend_words(draw(tmp_path)["memory"]))


@pytest.mark.parametrize("style", ["paper", "poster"])
def test_hatches_of_memory_do_not_look_like_parts_of_a_bar_and_are_seen_in_the_legend(style, tmp_path):
    records = records_of_a_run(2)
    for record in records:
        if record["kind"] == "memory":
            record |= dict.fromkeys(("history", "stash", "synthesizer", "buffers", "other"), 2**20)
    write_run(tmp_path / "0", records=records)
    drawing = draw(tmp_path, style)["memory"]
    hatches = {patch.get_hatch() for patch in panels(drawing)[0].patches}
    assert len(hatches - {"", None}) == 4 and not any(set("-+") & set(hatch or "") for hatch in hatches)
    (legend,) = drawing.figure.legends
    in_legend = {patch.get_hatch(): patch for patch in legend.get_patches()}
    assert hatches <= set(in_legend)
    assert all(patch.get_height() > legend.get_texts()[0].get_size() for patch in in_legend.values())


def test_memory_of_a_run_that_did_not_finish_counts_where_none_did(tmp_path):
    write_run(tmp_path / "0", state="failed", category_bytes=3 * 2**20)
    assert [height for _, _, height in bars(panels(draw(tmp_path)["memory"])[1])] == [12, 12]
    write_run(tmp_path / "1", seed=1, category_bytes=2**20)
    assert [height for _, _, height in bars(panels(draw(tmp_path)["memory"])[1])] == [4, 4]


def test_memory_of_replicas_is_that_of_all_their_modules(tmp_path):
    write_run(tmp_path / "0", settings={"replicas": 2}, records=records_of_a_run(4))
    drawing = draw(tmp_path)["memory"]
    assert len(bars(panels(drawing)[1])) == 4
    assert [words for words in legend_words(drawing) if words.startswith("module")] == [
        f"module {number}" for number in (1, 2, 3, 4)
    ]


def test_a_module_has_the_shade_that_the_legend_shows_whatever_k_is(tmp_path):
    for k in (2, 4):
        write_run(tmp_path / str(k), k=k)
    colors = [patch.get_facecolor() for patch in panels(draw(tmp_path)["memory"])[1].patches]
    assert colors[:2] == colors[2:4] and len(set(colors)) == 4


def test_runs_without_memory_records_have_no_place_among_bars(tmp_path):
    write_run(tmp_path / "without", "ddg", kinds=("train", "eval"))
    assert isinstance(draw(tmp_path)["memory"], Omission)
    write_run(tmp_path / "with")
    assert [group.method for group in draw(tmp_path)["memory"].groups] == ["fr"]


def test_the_unit_of_memory_is_that_of_the_highest_bar(tmp_path):
    write_run(tmp_path / "small", "bp", k=1, category_bytes=2**10)
    write_run(tmp_path / "large", category_bytes=2**20)
    by_category, by_module = panels(draw(tmp_path)["memory"])
    assert {axes.get_ylabel() for axes in (by_category, by_module)} == {"memory (MiB)"}
    assert max(height for _, _, height in bars(by_module)) == 4


def test_memory_of_many_variants_has_a_figure_as_wide_as_their_names(tmp_path):
    for number in range(24):
        write_run(tmp_path / str(number), settings={"optimizer": {"lr": 0.125 * number, "weight_decay": 0.25 * number}})
    figure = draw(tmp_path)["memory"].figure
    figure.draw_without_rendering()
    names = [label.get_window_extent() for label in figure.axes[1].get_xticklabels()]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(names))


def test_memory_without_a_category_that_every_run_has_says_so_in_the_figure(tmp_path):
    records = records_of_a_run(2)
    for record in records:
        record.pop("activations", None)
    write_run(tmp_path / "0", records=records)
    drawing = draw(tmp_path)["memory"]
    assert "memory without activations" in drawing.figure.get_suptitle() and "activations" in drawing.notes[0]


def test_long_names_take_nothing_from_the_panels_of_memory(tmp_path):
    for k in (1, 4):
        for number, (lr, decay) in enumerate(((0.01, 0.0005), (0.01, 0.001), (0.1, 0.0005), (0.1, 0.001))):
            settings = {"optimizer": {"lr": lr, "weight_decay": decay}}
            write_run(tmp_path / f"{k}-{number}", "bp" if k == 1 else "fr", k, settings=settings)
    figure = draw(tmp_path)["memory"].figure
    figure.draw_without_rendering()
    above, below = figure.axes
    assert min(axes.get_window_extent().height for axes in (above, below)) > 1.2 * figure.dpi
    labels = [axes.yaxis.label.get_window_extent() for axes in (above, below)]
    assert labels[0].y0 > labels[1].y1, "the names of the two axes overlap"
    names = [label.get_window_extent() for label in below.get_xticklabels()]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(names))
    assert figure.legends[0].get_window_extent().y1 < min(name.y0 for name in names)


def test_waiting_is_a_bar_for_each_module(tmp_path):
    records = records_of_a_run(3)
    for record in records:
        if record["kind"] == "time":
            record["wait_s"] = 0.6 * (record["module"] - 1)
    write_run(tmp_path / "0", k=3, records=records)
    (axes,) = panels(draw(tmp_path)["waiting-k3"])
    assert [height for _, _, height in bars(axes)] == pytest.approx([0.5, 2 / 3])


def test_waiting_in_one_process_is_left_out(tmp_path):
    write_run(tmp_path / "0", transport="serial")
    left_out = draw(tmp_path)["waiting-k2"]
    assert isinstance(left_out, Omission) and "one process" in left_out.reason


def test_waiting_that_a_method_cannot_tell_is_left_out_and_not_drawn_as_none(tmp_path):
    records = records_of_a_run(2)
    for record in records:
        record.pop("wait_s", None)
    write_run(tmp_path / "0", "ddp", records=records)
    left_out = draw(tmp_path)["waiting-k2"]
    assert isinstance(left_out, Omission) and "no run records its waiting" in left_out.reason
    write_run(tmp_path / "1", "fr", records=records_of_a_run(2))
    assert [group.method for group in draw(tmp_path)["waiting-k2"].groups] == ["fr"]


# --- speed-up


def test_speed_up_is_drawn_over_both_references_beside_the_limits(tmp_path):
    write_run(tmp_path / "bp1", "bp", k=1, step_s=0.6)
    for k, step_s in ((2, 0.4), (4, 0.2)):
        write_run(tmp_path / f"fr{k}", "fr", k=k, step_s=step_s)
        write_run(tmp_path / f"bp{k}", "bp", k=k, step_s=0.8)
    drawing = draw(tmp_path)["speedup"]
    over_single, over_locked = panels(drawing)
    for axes, expected in ((over_single, [1.5, 3.0]), (over_locked, [2.0, 4.0])):
        measured, limit = curves(axes, LOOKS["fr"].color)
        assert list(measured.get_xdata()) == [2, 4] and list(measured.get_ydata()) == pytest.approx(expected)
        assert list(limit.get_xdata()) == [1, 2, 3, 4]
        assert list(limit.get_ydata()) == [balanced_limit("fr", k) for k in (1, 2, 3, 4)]
        assert limit.is_dashed()
    (locked,) = curves(over_locked, LOOKS["bp"].color)
    assert list(locked.get_xdata()) == [2, 4]  # of one module there is no locked BP
    assert [axes.get_ylim() for axes in (over_single, over_locked)] == [(0, pytest.approx(1.08 * 4.0))] * 2
    assert legend_words(drawing) == ["BP (n = 1)", "FR (n = 1)", "limit of FR"]
    assert "one device a module" in legend_title(drawing) and "one device a module" in drawing.notes[0]


def test_a_speed_up_has_its_spread_over_seeds(tmp_path):
    write_run(tmp_path / "bp", "bp", k=1, step_s=0.4)
    for seed, step_s in enumerate((0.2, 0.4)):
        write_run(tmp_path / f"fr{seed}", seed=seed, step_s=step_s)
    (axes, *_) = panels(draw(tmp_path)["speedup"])
    (drawn,) = (each for each in axes.containers if each.has_yerr)
    ((low, high),) = ([y for _, y in segment] for segment in drawn.lines[2][0].get_segments())
    ratio, relative = 0.4 / 0.3, 0.02**0.5 / 0.3  # of the means, and the deviation of the one that has one
    assert (low, high) == pytest.approx((ratio * (1 - relative), ratio * (1 + relative)))


@pytest.mark.parametrize(("kinds", "num_figures"), [(("train", "eval"), 0), (("train", "eval", "sigma"), 3)])
def test_times_that_sigma_made_longer_are_said_to_be(kinds, num_figures, tmp_path, capsys):
    for k in (1, 2):
        write_run(tmp_path / f"bp{k}", "bp", k=k)  # with sigma, and always locked
    write_run(tmp_path / "fr", kinds=kinds)
    notes = [" ".join(each.notes) for each in draw(tmp_path).values() if isinstance(each, Drawing)]
    assert sum("runs that measured sigma took longer" in each for each in notes) == num_figures
    assert main(["report", str(tmp_path)]) == 0
    assert ("runs that measured sigma (FR, K = 2) are longer" in capsys.readouterr().out) == (num_figures > 0)


def test_a_speed_up_without_limits_does_not_explain_them(tmp_path):
    for k in (1, 2):
        write_run(tmp_path / f"bp{k}", "bp", k=k)
    drawing = draw(tmp_path)["speedup"]
    assert legend_words(drawing) == ["BP (n = 1)"] and not legend_title(drawing)


def test_speed_up_without_a_reference_is_left_out(tmp_path):
    write_run(tmp_path / "fr")
    write_run(tmp_path / "bp", "bp", k=1, model="another")
    for folder in ("fr", "bp"):  # BP is over itself
        left_out = draw(tmp_path / folder)["speedup"]
        assert isinstance(left_out, Omission) and "BP with K = 1" in left_out.reason


def test_methods_that_keep_their_graphs_share_a_limit(tmp_path):
    def limits() -> list[tuple[str, str]]:
        lines = panels(draw(tmp_path)["speedup"])[0].get_lines()
        return [(line.get_label(), line.get_color()) for line in lines if line.get_label().startswith("limit")]

    write_run(tmp_path / "bp", "bp", k=1)
    write_run(tmp_path / "ddg", "ddg", k=2)
    assert limits() == [("limit of DDG", LOOKS["ddg"].color)]
    write_run(tmp_path / "dgl", "dgl", k=2)
    [(label, color)] = limits()
    assert label == "limit of DDG, DGL" and color not in {look.color for look in LOOKS.values()}


def test_modules_in_one_process_are_drawn_hollow(tmp_path):
    write_run(tmp_path / "bp1", "bp", k=1)
    write_run(tmp_path / "fr2", "fr", k=2, transport="serial")
    drawing = draw(tmp_path)["speedup"]
    hollow = [line for line in panels(drawing)[0].get_lines() if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow if len(line.get_xdata())] == [[2]]
    assert "hollow: serial" in legend_words(drawing)
    assert any("one process and its device" in note for note in drawing.notes)


# --- looks


def test_methods_differ_in_colour_and_in_more_than_colour(monkeypatch):
    looks = list(LOOKS.values())
    assert len({look.color for look in looks}) == len(looks)
    assert len({look.marker for look in looks}) == len(looks) and len({look.hatch for look in looks}) == len(looks)
    assert look_of("mine") == look_of("mine")
    own = [f"mine{number}" for number in range(2 * len(OTHERS))]
    monkeypatch.setattr("fr_bench.figures.style._given", {})
    looks = [look_of(name) for name in own]
    assert len(set(looks[: len(OTHERS)])) == len(OTHERS)  # as many as there are
    assert looks == [look_of(name) for name in own]


def looks_in_legend(drawing: Drawing | Omission) -> dict[str, tuple[Any, Any, Any]]:
    """Colour, line and marker by the words of the legend without the number of seeds."""
    assert isinstance(drawing, Drawing)
    words = [text.rpartition(" (n")[0] for text in legend_words(drawing)]
    lines = drawing.figure.legends[0].get_lines()
    dashes = [line._unscaled_dash_pattern for line in lines]  # `get_linestyle` says "--" for all of them
    return {
        text: (line.get_color(), str(dash), line.get_marker())
        for text, line, dash in zip(words, lines, dashes, strict=True)
        if text
    }


def test_a_variant_looks_the_same_in_all_figures_and_like_no_other(tmp_path):
    for k, lrs in ((1, (0.1, 0.2, 0.3)), (2, (0.2, 0.3, 0.1, 0.4, 0.5)), (4, (0.3, 0.1))):
        for method in ("bp", "fr"):
            for seed, lr in enumerate(lrs):  # more seeds of one variant with one K, of another with another
                for other in range(seed + 1):
                    folder = tmp_path / f"{method}-{k}-{lr}-{other}"
                    write_run(folder, method, k, seed=other, settings={"optimizer": {"lr": lr}}, kinds=("train",))
    found = draw(tmp_path)
    by_figure = {name: looks_in_legend(found[name]) for name in ("loss-k1", "loss-k2", "loss-k4", "speedup")}
    for name, looks in by_figure.items():
        assert len(set(looks.values())) == len(looks), name
        assert len({(line, marker) for _, line, marker in looks.values()}) == len(looks), f"{name}, in grey"
    for text, look in by_figure["loss-k2"].items():
        for name in ("loss-k1", "loss-k4", "speedup"):
            assert by_figure[name].get(text, look) == look, (text, name)
    markers = {marker for looks in by_figure.values() for _, _, marker in looks.values()}
    assert not {"X", ">"} & (markers | {look.marker for look in LOOKS.values()}), "those mark how a run ended"


def test_ten_variants_with_a_single_k_differ_in_their_markers(tmp_path):
    write_run(tmp_path / "bp", "bp", k=2, settings={"method": {"checkpoint_activations": False}})
    for number in range(10):
        write_run(tmp_path / str(number), settings={"method": {"extra": number}}, kinds=("train",))
    drawing = draw(tmp_path)["speedup"]
    (axes,) = panels(drawing)
    looks = {
        (line.get_marker(), line.get_markerfacecolor())
        for line in axes.get_lines()
        if line.get_color() == LOOKS["fr"].color
        and len(line.get_xdata()) == 1
        and line.get_marker() not in ("None", "_")
    }
    assert len(looks) == 10
    assert list(axes.get_xticks()) == [1, 2]


def test_a_logarithmic_axis_has_three_labels_or_more(tmp_path):
    write_run(tmp_path / "0", loss=lambda epoch: 2.5 if epoch < 1 else 0.12)
    (axes, _) = panels(drawing := draw(tmp_path)["loss-k2"])
    drawing.figure.draw_without_rendering()
    bottom, top = axes.get_ylim()
    inside = [tick for tick in axes.yaxis.get_major_ticks() if bottom <= tick.get_loc() <= top]
    assert axes.get_yscale() == "log" and [tick.label1.get_text() for tick in inside] == ["0.1", "0.2", "0.5", "1", "2"]


@pytest.mark.parametrize("style", ["paper", "poster"])
def test_legends_lie_under_the_panels_and_inside_the_figure(style, tmp_path):
    for seed, method in enumerate(("bp", "dni", "cdni", "ddg", "fr")):
        settings = {"optimizer": {"lr": 0.1 + seed / 7}, "freeze": [1], "batch_size": 3 + seed}
        write_run(tmp_path / method, method, k=2, settings=settings)
    drawings = [drawing for drawing in draw(tmp_path, style).values() if not isinstance(drawing, Omission)]
    assert len(drawings) >= 6
    for drawing in drawings:
        drawing.figure.draw_without_rendering()
        box = drawing.figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= drawing.figure.bbox.width and box.y0 >= 0, drawing.name
        lowest = min(axes.get_tightbbox().y0 for axes in drawing.figure.axes)
        assert box.y1 <= lowest + 1, drawing.name
        assert min(axes.get_window_extent().height for axes in drawing.figure.axes) > 50, drawing.name


# --- the command


def test_png_and_pdf_are_written_and_named_with_the_number_of_seeds(tmp_path, capsys):
    for seed in (0, 1):
        write_run(tmp_path / "runs" / str(seed), seed=seed)
    out = tmp_path / "out" / "deep"
    assert plot(tmp_path / "runs", "--out", out) == 0
    text = capsys.readouterr().out
    names = ("loss-k2", "test-error-k2", "test-error-seconds-k2", "memory", "sigma-k2", "waiting-k2")
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{name}-digits-tiny.{suffix}" for name in names for suffix in ("png", "pdf")
    )
    assert all(f"{name}-digits-tiny.png" in text for name in names) and "FR, K = 2: n = 2" in text
    assert "left out: speedup-digits-tiny: " in text
    pdf = (out / "loss-k2-digits-tiny.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf  # fonts that publishers refuse


def test_figures_is_the_default_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", kinds=("train",))
    assert plot("run") == 0
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".png", ".pdf"}
    text = capsys.readouterr().out
    assert all(f"left out: {name}" in text for name in ("test-error-k2", "memory", "sigma-k2", "waiting-k2"))


def test_data_sets_and_models_have_figures_of_their_own(tmp_path, capsys):
    write_run(tmp_path / "0", kinds=("train",))
    write_run(tmp_path / "1", dataset="cifar10", kinds=("train",))
    write_run(tmp_path / "2", model="large", kinds=("train",))
    assert plot(tmp_path, "--out", tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == [f"loss-k2-{pair}.png" for pair in ("cifar10-tiny", "digits-large", "digits-tiny")]


def test_a_poster_is_larger_than_a_column(tmp_path):
    write_run(tmp_path / "0")
    paper, poster = (draw(tmp_path, style)["test-error-k2"].figure for style in ("paper", "poster"))
    sizes = [figure.axes[0].xaxis.label.get_size() for figure in (paper, poster)]
    assert sizes[0] == 8 and sizes[1] == 18 and paper.get_figwidth() == 3.25 < poster.get_figwidth()


def test_bad_runs_are_named_and_the_good_ones_drawn(tmp_path, capsys):
    runs = tmp_path / "runs"
    write_run(runs / "good", kinds=("train",))
    broken = write_run(runs / "broken", "ddg", kinds=("train",))
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step"')
    write_run(runs / "failed", "dni", records=[], state="failed", error="module 1 died")
    assert plot(runs, tmp_path / "nowhere", "--out", tmp_path / "out") == 0
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 3 and all(line.startswith("fr-bench: ") for line in lines), lines
    assert "broken/metrics.jsonl:7: " in captured.err and "module 1 died" in captured.err and "nowhere" in captured.err
    assert (tmp_path / "out" / "loss-k2-digits-tiny.png").exists()


@pytest.mark.parametrize("name", ["missing", "empty", "nothing to draw"])
def test_nothing_at_all_is_a_mistake_and_writes_nothing(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    strange = [{"kind": "note", "step": 1, "epoch": 1, "train_time": 1}]
    write_run(tmp_path / "nothing to draw", records=strange)
    assert plot(tmp_path / name, "--out", tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert name in captured.err.splitlines()[-1] and "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_a_mistake(tmp_path, capsys):
    write_run(tmp_path / "run", kinds=("train",))
    (tmp_path / "file").write_text("")
    assert plot(tmp_path / "run", "--out", tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0), (["x", "--style", "huge"], 2)])
def test_mistakes_in_the_command_line(words, code, capsys):
    assert plot(*words) == code


def test_nothing_is_drawn_from_numbers_that_are_none(tmp_path):
    records = records_of_a_run(2, kinds=("train", "eval"))
    records[3] |= {"loss": None}
    write_run(tmp_path / "0", records=records)
    (line,) = curves(panels(draw(tmp_path)["loss-k2"])[0], LOOKS["fr"].color)
    assert len(line.get_xdata()) == 5 and np.isfinite(line.get_ydata()).all()


def test_all_is_drawn_even_if_nobody_reads_what(tmp_path):
    """As in ``fr-bench plot RUN_DIR | head -1``."""
    write_run(tmp_path / "run", kinds=("train", "eval", "memory"))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "fr_bench", "plot", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    os.close(writer)
    assert {"loss", "memory", "test"} <= {path.name.partition("-")[0] for path in (tmp_path / "out").glob("*.pdf")}


def test_the_variant_with_most_finished_runs_has_the_methods_own_look(tmp_path):
    for lr, seeds in ((0.1, 1), (0.2, 3)):
        for seed in range(seeds):
            write_run(tmp_path / f"{lr}-{seed}", "fr", 2, seed, settings={"optimizer": {"lr": lr}}, kinds=("train",))
    looks = looks_in_legend(draw(tmp_path)["loss-k2"])
    assert {text: marker == LOOKS["fr"].marker for text, (_, _, marker) in looks.items()} == {
        "FR (lr=0.1)": False,
        "FR (lr=0.2)": True,
    }


def test_memory_marks_are_where_all_is_known_and_ks_above_the_middle_of_their_bars(tmp_path):
    write_run(tmp_path / "bp", "bp", k=1)  # on the CPU: its peak is that of a process
    records = records_of_a_run(2)
    for record in records:
        if record["kind"] == "memory" and record["module"] == 1:
            record["predicted"] = 2**20
    write_run(tmp_path / "fr", "fr", records=records)
    write_run(tmp_path / "ddg", "ddg")
    upper, lower = panels(draw(tmp_path)["memory"])
    assert not {line.get_label() for line in upper.get_lines()} & {"predicted", "peak of the GPUs"}
    assert [text.xy[0] for text in upper.texts] == [0.0, pytest.approx(1.6 + 0.5)]
    shades = [sum(bar[0].get_facecolor()[:3]) for bar in lower.containers if bar.get_label().startswith("FR, K = 2")]
    assert len(shades) == 2 and shades[0] < shades[1], "module 1 is the darkest"


def test_the_seeds_of_a_figure_by_module_are_those_of_the_module_that_most_measured(tmp_path):
    for seed in (0, 1):
        records = [r for r in records_of_a_run(2) if seed == 0 or r["kind"] != "sigma" or r["module"] == 0]
        write_run(tmp_path / str(seed), seed=seed, records=records)
    assert legend_words(draw(tmp_path)["sigma-k2"])[0] == "FR (n = 2)"


def test_upright_names_are_broken_into_lines(tmp_path):
    for number in range(8):
        settings = {"optimizer": {"lr": number + 0.125, "weight_decay": number + 0.0625}, "clip_norm": number + 0.5}
        write_run(tmp_path / str(number), settings=settings)
    figure = draw(tmp_path)["memory"].figure
    names = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert all("\n" in name and max(map(len, name.split("\n"))) <= 24 for name in names), names


def test_waiting_is_in_per_cent_of_all_the_time_with_its_spread(tmp_path):
    for seed, wait_s in enumerate((0.2, 0.6)):
        records = records_of_a_run(2)
        for record in records:
            if record["kind"] == "time":
                record["wait_s"] = wait_s
        write_run(tmp_path / str(seed), seed=seed, records=records)
    (axes,) = panels(draw(tmp_path)["waiting-k2"])
    assert axes.get_ylim() == (0, 1)
    assert axes.yaxis.get_major_formatter()(0.25, 0) == "25"
    (bars,) = (each for each in axes.containers if hasattr(each, "errorbar"))
    assert bars.errorbar is not None


@pytest.mark.parametrize(("last", "scale"), [(0.15, "linear"), (0.05, "log")])
def test_a_loss_that_falls_to_a_twentieth_has_a_logarithmic_axis(last, scale, tmp_path):
    write_run(tmp_path / "0", loss=lambda epoch: 2.0 if epoch < 3 else last)
    assert {axes.get_yscale() for axes in panels(draw(tmp_path)["loss-k2"])} == {scale}
