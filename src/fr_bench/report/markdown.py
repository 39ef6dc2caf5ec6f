"""The report for reading: Markdown tables of one data set and model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from fr_bench.planning.limits import WITH_COMPANIONS
from fr_bench.report.measures import Spread, measured_sigma, missing_categories, step_time_s, unit_of
from fr_bench.report.paired import Paired
from fr_bench.report.published import Published, footnotes
from fr_bench.report.tables import Reached, Row

UNEVEN = 1.5  # where a note is due: seeds alone change a step's time by some hundredths


def as_markdown(rows: list[Row]) -> str:
    """Returns the tables of ``rows``, which share data set and model: test error, speed, memory."""
    group = rows[0].group
    parts = [f"## {group.model} on {group.dataset}", *_errors(rows), *_speed(rows), *_memory(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _errors(rows: list[Row]) -> list[str]:
    columns = {
        **_head(),
        "best test error": lambda row: _percent(row.best_test_error),
        "last test error": lambda row: _percent(row.last_test_error),
    }
    best = "best: of any evaluation"
    notes = []
    if any(row.best_validation_error for row in rows):
        columns["lowest validation error"] = lambda row: _percent(row.best_validation_error)
        best = "best: with a validation set, of the evaluation with the lowest validation error, else of any"
    notes.append(f"Mean ± sample standard deviation over the seeds that finished; {best}.")
    if any(row.difference_to_bp for row in rows):
        columns["paired difference to BP"] = lambda row: _paired(row.difference_to_bp)
        notes.append(
            "Paired difference to BP: of the best test error, in percentage points, mean ± standard error over the "
            "seeds that finished with both: runs with one seed share initial weights and data order."
        )
    published = [each for row in rows for each in row.published_error]
    if published:
        columns["published"] = lambda row: _published(row.published_error, lambda each: f"{100 * each.value:.2f} %")
    notes += _several_versions(rows)
    notes += _withheld((row, row.withheld_error) for row in rows)
    return ["### Test error", table(columns, rows), _list(notes + footnotes(published))]


def _speed(rows: list[Row]) -> list[str]:
    columns = {
        **_head(),
        "transport": lambda row: str(row.group.settings.get("transport", "")),
        "threads a module": lambda row: str(row.group.settings.get("threads", "")),
        "seconds an epoch": lambda row: _number(row.epoch_time_s, 3),
        "speed-up over BP, K = 1": lambda row: _number(row.speedup_vs_single, 3),
        "over locked BP, same K": lambda row: _number(row.speedup_vs_locked, 3),
        "ideal limit": lambda row: "" if row.limit is None else f"{row.limit:.2f}",
        "efficiency": lambda row: _percent(row.efficiency, 0),
    }
    targets = [row.seconds_to_target.test_error for row in rows if row.seconds_to_target]
    if targets:
        columns[f"seconds to {100 * targets[0]:.6g} %"] = lambda row: _reached(row.seconds_to_target)
    published = [each for row in rows for each in row.published_speedup]
    if published:
        columns["published speed-up"] = lambda row: _published(row.published_speedup, lambda each: f"{each.value:.2f}")
    notes = [
        "Times are training alone: no evaluation, no logging. Ideal limit: balanced modules, a backward of two "
        "forwards, a transport that costs nothing. Efficiency: computing time of the busiest module over the "
        "step time, mean over the run. Mean ± sample standard deviation over the seeds; a speed-up is the ratio of two "
        "means, and its deviation follows from those of both."
    ]
    uneven = [f"{row.group.label}, {ratio:.2g}-fold" for row in rows if (ratio := _unevenness(row)) >= UNEVEN]
    if uneven:
        notes.append(
            f"Times of runs that differ in the seed alone are far apart ({'; '.join(uneven)}), as where other work "
            "had a part of the machine: their means say little."
        )
    if slowed := [row.group.label for row in rows if measured_sigma(row.group)]:
        notes.append(
            f"Times of runs that measured sigma ({'; '.join(slowed)}) are longer than without: the pipe runs empty for "
            "each iteration of a window."
        )
    if targets:
        notes.append(
            f"Seconds to {100 * targets[0]:.6g} %: of training, until the first evaluation with at most that test "
            "error, over those of the row's runs that came so far; diverged and unfinished ones count among all."
        )
    if any(row.limit is not None and row.group.method in WITH_COMPANIONS for row in rows):
        notes.append(
            "The limit of DNI, cDNI and DGL leaves out what their synthesizers and auxiliary networks compute."
        )
    if not any(row.speedup_vs_single for row in rows):
        notes.append(
            "No speed-up over BP with K = 1: no such run with the same model, data, batch size, precision, "
            "hardware and code of your own is among those given."
        )
    if any(row.group.in_one_process for row in rows):
        notes.append(
            "Transport serial with K > 1: the modules shared one process and its device, so that the speed says "
            "nothing about a pipeline over devices of their own."
        )
    notes += _withheld((row, row.withheld_speedup) for row in rows)
    return ["### Speed", table(columns, rows), _list(notes + footnotes(published))]


def _memory(rows: list[Row]) -> list[str]:
    known = [row for row in rows if any(row.peak_memory) or row.accounted_memory]
    if not known:
        return []
    columns = _head()
    for index in range(max(row.group.size for row in known)):
        columns[f"peak, module {index + 1}"] = partial(_peak, index)
    columns["accounted, all modules"] = lambda row: _bytes(row.accounted_memory)
    if any(row.predicted_memory for row in known):
        columns["predicted"] = lambda row: _bytes(row.predicted_memory)
    notes = [
        "Peak: of the allocator on a GPU, of the whole process on the CPU; modules that share either share its peak. "
        "Accounted: the tensors of a module by category, in its last record."
    ]
    missing = sorted({name for row in known for name in missing_categories(row.group)})
    if missing:
        notes.append(f"Missing from what is accounted, because not every run records it: {', '.join(missing)}.")
    return ["### Memory", table(columns, known), _list(notes)]


def _head() -> dict[str, Callable[[Row], str]]:
    return {
        "method": lambda row: row.group.name,
        "K": lambda row: str(row.group.k),
        "seeds": lambda row: row.group.seeds,
    }


def table(columns: Mapping[str, Callable[[Any], str]], rows: Sequence[Any], leave_out_empty: bool = False) -> str:
    """Returns a Markdown table of ``columns``, by title what stands there of a row; if asked, without empty ones."""
    if leave_out_empty:
        columns = {title: text for title, text in columns.items() if any(text(row) for row in rows)}
    return align([list(columns), *([text(row) for text in columns.values()] for row in rows)])


def align(cells: list[list[str]]) -> str:
    """Returns a Markdown table whose columns are aligned; the first line of ``cells`` is its head."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _percent(value: Spread | None, digits: int = 2) -> str:
    if value is None:
        return ""
    sd = "" if value.sd is None else f" ± {100 * value.sd:.{digits}f}"
    return f"{100 * value.mean:.{digits}f}{sd} %"


def _number(value: Spread | None, digits: int) -> str:
    """With ``digits`` that count, all of those before the point, and no exponent."""
    if value is None:
        return ""
    mean = f"{value.mean:.0f}" if value.mean >= 10 ** (digits - 1) else f"{value.mean:.{digits}g}"
    return mean + ("" if value.sd is None else f" ± {_deviation(value.sd)}")


def _unevenness(row: Row) -> float:
    """How many times as long as the fastest run's a step of the slowest run took."""
    times_s = [time_s for run in row.group.measured if (time_s := step_time_s(run))]
    return max(times_s) / min(times_s) if times_s else 1.0


def _deviation(sd: float) -> str:
    """Two digits that count, and no exponent: ``17``, ``0.71``."""
    decimals = max(0, 1 - math.floor(math.log10(sd))) if sd > 0 else 0
    return f"{sd:.{decimals}f}"


def _paired(value: Paired | None) -> str:
    if value is None:
        return ""
    error = "" if value.standard_error is None else f" ± {100 * value.standard_error:.2f}"
    return f"{100 * value.mean:+z.2f}{error} (n = {value.num_seeds})"


def _reached(value: Reached | None) -> str:
    if value is None:
        return ""
    return f"{_number(value.seconds, 3) or '-'} ({value.num_reached} of {value.num_runs})"


def _published(numbers: list[Published], text: Callable[[Published], str]) -> str:
    return "; ".join(f"{text(each)} ({each.credit})" for each in numbers)


def _several_versions(rows: list[Row]) -> list[str]:
    """A line where not all runs were made by the same program."""
    makers: dict[str, list[str]] = {}
    for row in rows:
        for run in row.group.measured:
            versions = run.environment.get("versions")
            if isinstance(versions, dict):
                labels = makers.setdefault(f"fr-bench {versions.get('fr_bench')} and torch {versions.get('torch')}", [])
                if row.group.label not in labels:
                    labels.append(row.group.label)
    if len(makers) < 2:
        return []
    made = "; ".join(f"{maker} ({'; '.join(labels)})" for maker, labels in sorted(makers.items()))
    return [f"Made by several versions, between which results and times may change: {made}."]


def _withheld(rows: Iterable[tuple[Row, list[Published]]]) -> list[str]:
    """A line for each published number that is about a row, but was had with other settings."""
    lines = []
    for row, numbers in rows:
        for each in numbers:
            differing = each.differences(row.group.settings)
            rest = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
            lines.append(f"Not beside {row.group.label}: {each.source}, which has {'; '.join(differing[:4])}{rest}.")
    return lines


def _peak(index: int, row: Row) -> str:
    return _bytes(row.peak_memory[index] if index < len(row.peak_memory) else None)


def _bytes(value: Spread | None) -> str:
    """Three digits and a binary unit: ``12.3 MiB``."""
    if value is None:
        return ""
    unit, factor = unit_of(value.mean)
    number = value.mean / factor
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"
