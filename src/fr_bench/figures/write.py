"""Draws all figures of one data set and model, and writes those that show something as PNG and PDF."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fr_bench.errors import ConfigError
from fr_bench.figures.by_module import draw_measured, draw_sigma
from fr_bench.figures.convergence import draw_loss, draw_test_error, draw_validation_error
from fr_bench.figures.drawing import Draw, Drawing, Omission
from fr_bench.figures.memory import draw_memory
from fr_bench.figures.speed import draw_speedup
from fr_bench.figures.style import STYLES
from fr_bench.figures.waiting import draw_waiting
from fr_bench.report.groups import Group

FIGURES: tuple[Draw, ...] = (
    draw_loss, draw_test_error, draw_validation_error, draw_memory, draw_sigma, draw_measured, draw_speedup,
    draw_waiting,
)  # fmt: skip
SUFFIXES = ("png", "pdf")


def draw_all(groups: list[Group], style_name: str) -> Iterator[Drawing | Omission]:
    """Returns every figure of ``groups``, which share data set and model, or why it is left out."""
    style = STYLES[style_name]
    for draw in FIGURES:
        with matplotlib.rc_context(style.settings()):
            yield from draw(groups, style)


def write(drawing: Drawing, style_name: str, folder: Path, stem: str) -> list[Path]:
    """Writes ``folder/stem.png`` and ``.pdf``, and returns them.

    Raises:
        ConfigError: the folder cannot be made or written to.
    """
    paths = [folder / f"{stem}.{suffix}" for suffix in SUFFIXES]
    FigureCanvasAgg(drawing.figure)
    with matplotlib.rc_context(STYLES[style_name].settings()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in paths:
                drawing.figure.savefig(path)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written ({error.strerror}); choose another folder.") from error
    return paths
