"""``fr-bench plot RUN_DIR...``: the figures of runs, from their local logs alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from fr_bench.commands.report import read_groups
from fr_bench.errors import ConfigError
from fr_bench.report.groups import Group, pairs

DESCRIPTION = """\
Draws the figures of runs: training loss and test error against epoch and seconds, validation error, memory by
method and module, sigma, speed-up against K with its limits, waiting share by module. Seeds become a mean with a band;
runs that differ in anything else are never averaged. Each figure is written as PNG and PDF, those that would be
empty are not."""


def main(argv: list[str]) -> int:
    """Writes the figures and names them; returns 0.

    Raises:
        ConfigError: there is nothing to draw, or the folder cannot be written.
    """
    parser = argparse.ArgumentParser(prog="fr-bench plot", description=DESCRIPTION)
    parser.add_argument("run_dir", nargs="+", help="a run directory, or a folder of runs at any depth")
    parser.add_argument("--out", metavar="DIR", default="figures", help="where the figures go (default: figures)")
    parser.add_argument(
        "--style", choices=("paper", "poster"), default="paper", help="sizes for a paper's column (default) or a slide"
    )
    arguments = parser.parse_args(argv)
    found = pairs(read_groups(arguments.run_dir))
    drawn = [_plot(groups, arguments.style, Path(arguments.out)) for groups in found.values()]
    print("\n".join(line for _, lines in drawn for line in lines))  # last: a reader who leaves costs no figure
    if not any(num_figures for num_figures, _ in drawn):
        raise ConfigError(f"{' '.join(arguments.run_dir)}: nothing to draw in any of these runs.")
    return 0


def _plot(groups: list[Group], style: str, folder: Path) -> tuple[int, list[str]]:
    """Draws the figures of one data set and model; returns how many there are, and lines that say what is in them."""
    from fr_bench.figures.drawing import Omission  # matplotlib takes a second, which --help must not
    from fr_bench.figures.write import draw_all, write

    num_figures = 0
    dataset, model = groups[0].dataset, groups[0].model
    lines = [f"{model} on {dataset}, n seeds each:", *(f"  {group.label}: {group.seeds}" for group in groups)]
    for drawing in draw_all(groups, style):
        stem = f"{drawing.name}-{dataset}-{model}"
        if isinstance(drawing, Omission):
            lines.append(f"left out: {stem}: {drawing.reason}")
            continue
        png, _ = write(drawing, style, folder, stem)
        lines += [f"{png} and .pdf", *(f"  {note}" for note in drawing.notes)]
        num_figures += 1
    return num_figures, lines
