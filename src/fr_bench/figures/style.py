"""How figures look: one colour, line, marker and hatch a method, one line and marker a variant of it, the same in all
figures of a command; sizes for a page or a slide.

Colours are those of Okabe and Ito (2008), which the colour-blind can tell apart; in grey, lines, markers and hatches
still can be.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import to_rgb

from fr_bench.report.groups import Group


@dataclass(frozen=True)
class Style:
    """Sizes: of the text in points, of a figure with one or two columns of panels in inches."""

    font_pt: float
    line_pt: float
    marker_pt: float
    one_panel_in: float
    two_panels_in: float
    panel_height_in: float
    legend_columns: int
    dots_per_inch: int

    def settings(self) -> dict[Any, Any]:
        """matplotlib's settings, for ``matplotlib.rc_context``."""
        return {
            "font.size": self.font_pt,
            "axes.titlesize": self.font_pt,
            "figure.titlesize": self.font_pt * 1.1,
            "legend.fontsize": self.font_pt * 0.9,
            "legend.title_fontsize": self.font_pt * 0.9,
            "legend.frameon": False,
            "legend.handlelength": 2.4,
            "legend.columnspacing": 1.0,
            "legend.handletextpad": 0.6,
            "axes.linewidth": self.line_pt * 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": "#DDDDDD",
            "grid.linewidth": self.line_pt * 0.5,
            "lines.linewidth": self.line_pt,
            "lines.markersize": self.marker_pt,
            "lines.markeredgewidth": self.line_pt * 0.7,
            "hatch.linewidth": self.line_pt * 0.5,
            "figure.dpi": self.dots_per_inch,
            "savefig.dpi": self.dots_per_inch,
            "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's default, Type 3
        }


STYLES = {
    # A column of a two-column paper is 3.25 in wide, a page of it 6.75 in.
    "paper": Style(8, 1.2, 3.5, 3.25, 3.25, 1.9, 2, 300),
    "poster": Style(18, 3.0, 9.0, 10.0, 13.0, 6.0, 3, 150),
}


@dataclass(frozen=True)
class Look:
    """What marks a method."""

    color: str
    line: Any
    marker: Any
    hatch: str


LOOKS = {
    "bp": Look("#000000", "-", "o", ""),
    "fr": Look("#D55E00", "-", "D", "///"),
    "ddg": Look("#0072B2", (0, (5, 1.5)), "s", "xxx"),
    "dni": Look("#E69F00", (0, (1, 1)), "v", "..."),
    "cdni": Look("#CC79A7", (0, (4, 1, 1, 1)), "^", "---"),
    "dgl": Look("#661100", (0, (4, 1, 1, 1, 4, 1)), "<", "/."),
    "gpipe": Look("#009E73", (0, (8, 2)), "P", "\\\\\\"),
    "1f1b": Look("#56B4E9", (0, (6, 1, 1, 1, 1, 1)), "p", "+++"),
    # Okabe and Ito have no more: two of Tol's muted colours (2021), light and dark, with a line and hatch of their own.
    "interleaved": Look("#DDCC77", (0, (2, 1, 2, 3)), "8", "**"),
    "zero_bubble": Look("#AA4499", (0, (10, 1, 2, 1)), (4, 1, 0), "OO"),
    "ddp": Look("#999999", (0, (3, 1)), "h", "ooo"),
    "plain": Look("#666666", (0, (2, 2)), "*", "|||"),
}
# For methods of a user's own: chosen by the name, so that one name looks the same in every figure.
OTHERS = (
    Look("#882255", (0, (7, 1, 1, 1)), (3, 1, 0), "//"),
    Look("#44AA99", (0, (2, 1)), (8, 1, 0), "\\\\"),
    Look("#999933", (0, (9, 2, 2, 2)), "d", "xx"),
    Look("#332288", (0, (3, 2, 1, 2)), "H", ".."),
)
# A method's second, third, ... variant keeps its colour and differs in line and marker; in marker alone where a figure
# has a single K and so no lines. As their numbers have no common divisor, 52 pairs differ, and thirteen methods can
# have four such variants each before two look alike in grey. Markers are filled with a lighter colour: solid ones are
# the methods' own, hollow ones mean a serial transport.
VARIANT_LINES = ((0, (3, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (6, 2, 1, 2)), (0, (2, 3)))
VARIANT_MARKERS: tuple[Any, ...] = ("s", "^", "*", "o", "v", "P", "d", "<", "p", (4, 1, 0), (6, 1, 0), "H", "8")
# How a curve ends that ends early: solid, and no marker of a method or a variant.
END_MARKERS = {"diverged": "X", "unfinished": ">"}


_given: dict[str, int] = {}  # methods of the user's own -> their places in OTHERS


def look_of(method: str) -> Look:
    """Returns the look of a method by name. One of the user's own has mostly the same in all figures: which, its name
    decides, unless another one that was drawn before has that."""
    if method not in LOOKS and method not in _given:
        wish = zlib.crc32(method.encode()) % len(OTHERS)
        taken = set(_given.values())
        in_order = [*range(wish, len(OTHERS)), *range(wish)]
        _given[method] = next((index for index in in_order if index not in taken), wish)
    return LOOKS.get(method) or OTHERS[_given[method]]


def line_properties(group: Group, stands_beside: bool = False) -> dict[str, Any]:
    """Returns colour, line, marker and marker fill of ``group``.

    Args:
        stands_beside: for comparison with groups of another K, as BP with K = 1 does: a dot is its marker, because
            a BP with that K may have its own.
    """
    look, number = look_of(group.method), group.variant_number
    properties = {"color": look.color, "linestyle": look.line, "marker": look.marker}
    if number:
        methods = list(LOOKS)
        place = methods.index(group.method) if group.method in methods else len(methods)
        pair = len(VARIANT_LINES) * place + number - 1
        properties["linestyle"] = VARIANT_LINES[pair % len(VARIANT_LINES)]
        properties["marker"] = VARIANT_MARKERS[pair % len(VARIANT_MARKERS)]
        properties["markerfacecolor"] = tint(look.color, 0.6)
    return properties | {"marker": "."} if stands_beside else properties


def tint(color: str, share: float) -> tuple[float, float, float]:
    """Returns ``color`` mixed with white: 0 is the colour itself, 1 is white."""
    red, green, blue = (part + (1 - part) * share for part in to_rgb(color))
    return red, green, blue
