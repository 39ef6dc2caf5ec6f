"""``fr-bench report RUN_DIR...``: the tables of finished, running and failed runs, from their local logs alone."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping
from pathlib import Path

from fr_bench.errors import ConfigError
from fr_bench.records.runs import find_runs
from fr_bench.report.curves import as_curves
from fr_bench.report.groups import Group, make_groups, pairs
from fr_bench.report.markdown import as_markdown
from fr_bench.report.tables import Row, as_csv, make_rows
from fr_bench.unread import say, tell

DESCRIPTION = """\
Prints the tables of runs as Markdown: best and last test error with mean and standard deviation over seeds,
difference to BP seed by seed, seconds an epoch, speed-up over BP, efficiency, peak memory by module; published
numbers beside ours where network, data set, K and the settings that decide the result are the same. Runs that differ in
anything but the seed are never averaged."""

FILES = (("report", "md"), ("report", "csv"), ("curves", "json"))  # of --out


def main(argv: list[str]) -> int:
    """Prints the report, and writes it with ``--out``; returns 0.

    Raises:
        ConfigError: there is no run to report on, or the folder for the files cannot be written.
    """
    parser = argparse.ArgumentParser(prog="fr-bench report", description=DESCRIPTION)
    parser.add_argument("run_dir", nargs="+", help="a run directory, or a folder of runs at any depth")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="also writes report.md, report.csv and, with every evaluation and where the runs were made, curves.json "
        "here; for several models or data sets, report-DATASET-MODEL.md and so on for each",
    )
    parser.add_argument(
        "--target",
        type=_percent,
        metavar="PERCENT",
        help="adds how many seconds of training each row took to that test error, and how many of its runs got there",
    )
    parser.add_argument("--csv", action="store_true", help="prints CSV instead of Markdown")
    arguments = parser.parse_args(argv)
    found = pairs(read_groups(arguments.run_dir))
    rows = {pair: make_rows(groups, arguments.target) for pair, groups in found.items()}
    if arguments.out is not None:  # first: who reads what is printed may stop reading
        texts = {pair: (as_markdown(rows[pair]), as_csv(rows[pair]), as_curves(found[pair])) for pair in found}
        _write(texts, Path(arguments.out))
    print(_text(rows, arguments.csv), end="")
    return 0


def _percent(text: str) -> float:
    """The fraction."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 100:
            return float(text) / 100
    raise argparse.ArgumentTypeError(f"'{text}' is no percentage between 0 and 100")


def read_groups(run_dirs: list[str]) -> list[Group]:
    """Returns the runs below ``run_dirs`` in groups; says on stderr what is wrong with some, one line a problem.

    Raises:
        ConfigError: there is no run that can be used.
    """
    groups = make_groups(find_runs(run_dirs, say), say)
    if not groups:
        raise ConfigError(
            f"{' '.join(run_dirs)}: no run with records is there; name run directories, which the last line of "
            "`fr-bench train` prints, or folders that hold some."
        )
    return groups


def _text(found: dict[tuple[str, str], list[Row]], as_comma_separated: bool) -> str:
    if as_comma_separated:
        return as_csv(row for rows in found.values() for row in rows)
    return "\n".join(as_markdown(rows) for rows in found.values())


def _write(found: Mapping[tuple[str, str], tuple[str, ...]], folder: Path) -> None:
    """Writes, for each data set and model, the texts of FILES."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for (dataset, model), texts in found.items():
            about = "" if len(found) == 1 else f"-{dataset}-{model}"
            for (stem, suffix), text in zip(FILES, texts, strict=True):
                path = folder / f"{stem}{about}.{suffix}"
                path.write_text(text, encoding="utf-8", errors="replace")
                tell(f"written: {path}")
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written: {error.strerror}; choose another folder.") from error
    except UnicodeEncodeError as error:  # in the name of a model, and so of its file
        raise ConfigError(f"--out {folder}: the locale has no letters for {path.name}; LC_ALL=C.UTF-8 has.") from error
