"""What a person sees of a run: a live display on a terminal, greppable lines elsewhere, a table at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fr_bench.records.reading import deciding_error
from fr_bench.records.sinks import Record, Sink, SinkGroup
from fr_bench.unread import heard_or_not

REFRESH_PER_S = 4
BAR_WIDTH = 30


@dataclass(frozen=True)
class RunTitle:
    """What the display must know about a run beside its records.

    Attributes:
        best: of the evaluations before the run went on, the record of the best.
    """

    method: str
    model: str
    dataset: str
    k: int
    replicas: int
    total_steps: int
    steps_per_epoch: int
    best: Record | None = None


def choose_console(mode: str, title: RunTitle) -> Sink:
    """Returns the sink for ``console=mode``: live, plain, off, or auto (live if stdout is a terminal)."""
    if mode == "auto":
        mode = "live" if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else "plain"
    if mode == "off":
        return SinkGroup([])
    return LiveConsole(title) if mode == "live" else PlainConsole()


class PlainConsole:
    """One line for each train, eval and profile record, made for grep."""

    def write(self, record: Record) -> None:
        """Prints the record if it is one of these kinds."""
        with heard_or_not():
            if record["kind"] in ("train", "eval"):
                print(record_line(record), flush=True)
            elif record["kind"] == "profile":
                print(profile_line(record), flush=True)

    def finish(self, summary: Record | None, exit_code: int) -> None:
        """Nothing is left to print."""


class LiveConsole:
    """A display that is redrawn in place, and above it one line for each evaluation, which stays.

    It owns the last lines of the terminal from its construction to ``finish``, which must be called whatever
    happens: it gives the cursor back. What is printed in between appears above the display.
    """

    def __init__(self, title: RunTitle) -> None:
        self._title = title
        self._first: tuple[float, int] | None = None  # time and step of the first train record, for the ETA
        self._train: Record = {}
        self._eval: Record = {}
        self._best = title.best
        self._modules: dict[int, Record] = {k: {} for k in range(1, title.k * title.replicas + 1)}
        self._live = Live(self._render(), refresh_per_second=REFRESH_PER_S, vertical_overflow="crop")
        self._live.start()

    def write(self, record: Record) -> None:
        """Takes the record in; the screen follows within a quarter of a second."""
        with heard_or_not():
            self._show(record)

    def _show(self, record: Record) -> None:
        if record["kind"] == "train":
            self._train = record
            self._first = self._first or (time.monotonic(), record["step"])
        elif record["kind"] == "eval":
            self._eval = record
            if self._best is None or deciding_error(record) < deciding_error(self._best):  # as in summary.json
                self._best = record
            self._live.console.print(record_line(record), highlight=False, soft_wrap=True)
        elif record["kind"] == "profile":
            self._live.console.print(profile_line(record), highlight=False, soft_wrap=True)
        elif record["kind"] in ("memory", "time"):
            self._modules[record["module"]] |= record
        self._live.update(self._render())

    def finish(self, summary: Record | None, exit_code: int) -> None:
        """Draws the last state once more and leaves it there."""
        with heard_or_not():
            self._live.stop()

    def _render(self) -> RenderableType:
        title = self._title
        heading = f"{title.method}, {size_text(title.k, title.replicas)}, {title.model} on {title.dataset}"
        lines = [metrics_text(self._train)]
        if self._eval and self._best:
            last, best = percent(self._eval["test_error"]), percent(self._best["test_error"])
            lines.append(f"test error {last}, best {best}")
        texts = [Text(line, overflow="ellipsis", no_wrap=True) for line in lines if line]
        return Group(Text(heading, style="bold"), self._progress(), *texts, self._module_table())

    def _progress(self) -> RenderableType:
        step, title = self._train.get("step", 0), self._title
        num_epochs = title.total_steps / title.steps_per_epoch
        words = [
            f"epoch {step / title.steps_per_epoch:.1f} of {round(num_epochs, 2):g}",
            f"step {step} of {title.total_steps}",
        ]
        if self._first and step > self._first[1]:
            elapsed_s = time.monotonic() - self._first[0]
            words.append(f"ETA {duration(elapsed_s / (step - self._first[1]) * (title.total_steps - step))}")
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_row(ProgressBar(total=title.total_steps, completed=step, width=BAR_WIDTH), *words)
        return row

    def _module_table(self) -> Table:
        table = _table("module", "device", "waiting", "memory peak")
        for k, record in self._modules.items():
            seconds = [record.get(name) for name in ("wait_s", "play_s", "learn_s", "send_s")]
            total_s = sum(each or 0 for each in seconds)
            waiting = percent(seconds[0] / total_s, 0) if total_s and seconds[0] is not None else ""
            table.add_row(str(k), record.get("device", ""), waiting, num_bytes(record.get("peak")))
        return table


def record_line(record: Record) -> str:
    """One record as a line: ``step 120 epoch 3.4 loss 0.4123 error 12.5 % lr 0.05 1234 images/s 12.3 s``.

    An evaluation starts with ``eval`` and names its sets: ``train loss``, ``test error``. Absent fields are absent.
    """
    prefix = "eval " if record["kind"] == "eval" else ""
    head = f"{prefix}step {record['step']} epoch {round(record['epoch'], 2):g}"
    return f"{head} {metrics_text(record)} {record['train_time']:.1f} s"


def profile_line(record: Record) -> str:
    """As in ``profile step 12 module 1: 3 iterations in profile_1.json, GPU busy 0.0123 s and 812 kernels each``."""
    iterations = record["iterations"]
    line = f"profile step {record['step']} module {record['module']}: {iterations} iterations"
    if record["file"] is None:
        return f"{line}, whose trace cannot be written ({record.get('problem')})"
    line = f"{line} in {record['file']}"
    if record["busy_s"] is None:
        return line
    return f"{line}, GPU busy {record['busy_s']:.4g} s and {record['num_kernels']:.0f} kernels each"


def metrics_text(record: Record) -> str:
    """The losses, errors, learning rate and speed in ``record``, each with its name or unit."""
    parts = []
    for prefix in ("", "train_", "validation_", "test_"):
        name = prefix.replace("_", " ")
        if f"{prefix}loss" in record:
            parts.append(f"{name}loss {record[f'{prefix}loss']:.4f}")
        if f"{prefix}error" in record:
            parts.append(f"{name}error {percent(record[f'{prefix}error'])}")
    if "lr" in record:
        parts.append(f"lr {record['lr']:.4g}")
    if "images_per_s" in record:
        parts.append(f"{rate(record['images_per_s'])} images/s")
    return " ".join(parts)


def print_summary(summary: Record, run_dir: Path, expected_share: Sequence[float]) -> None:
    """Prints the table at the end of a run; the last line names the run directory.

    Args:
        summary: as ``SummaryBuilder.build`` makes it.
        run_dir: where everything is.
        expected_share: by module, how long it should be busy with a mini-batch, over the slowest module.
    """
    console = Console(highlight=False, markup=False)
    print(flush=True)  # where nobody reads that, rich would end the process
    console.print(_result_table(summary))
    console.print()
    console.print(_summary_module_table(summary, expected_share))
    accounts = [account for account in summary["memory"] if account]
    if accounts:
        console.print()
        console.print(_account_table(accounts))
    print(f"\nrun directory: {run_dir}", flush=True)


def _result_table(summary: Record) -> Table:
    epoch = summary["best_epoch"]
    validation_error = summary.get("best_validation_error")  # one that an older version wrote lacks it
    chosen = "" if validation_error is None else f", by its validation error of {percent(validation_error, 2)}"
    at_epoch = "" if epoch is None else f" (epoch {round(epoch, 2):g}{chosen})"
    size = size_text(summary["k"], summary["replicas"])
    rows = {
        "run": f"{summary['method']}, {size}, {summary['model']} on {summary['dataset']}",
        "best test error": percent(summary["best_test_error"], 2) + at_epoch,
        "last test error": percent(summary["last_test_error"], 2),
        "steps": f"{summary['steps']} in {duration(summary['train_time'])} of training",
        "time an epoch": duration(summary["epoch_time_s"]),
        "images/s": rate(summary["images_per_s"]),
        "pipeline efficiency": percent(summary["efficiency"], 0),
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def _summary_module_table(summary: Record, expected_share: Sequence[float]) -> Table:
    """Expected and measured busy time stand side by side, as shares of the slowest module: were the cuts good?"""
    table = _table("module", "device", "blocks", "busy: expected", "measured", "waiting", "process peak")
    edges = [0, *summary["cuts"], summary["num_blocks"]]
    slowest_s = max((busy_s for busy_s in summary["busy_s"] if busy_s is not None), default=0.0)
    for index, busy_s in enumerate(summary["busy_s"]):
        at = index % (len(edges) - 1)  # replicas are cut alike
        first, last = edges[at] + 1, edges[at + 1]
        table.add_row(
            str(index + 1),
            summary["devices"][index] or "",
            str(first) if first == last else f"{first} to {last}",
            percent(expected_share[index], 0),
            percent(None if busy_s is None or not slowest_s else busy_s / slowest_s, 0),
            percent(summary["waiting_share"][index], 0),
            num_bytes(summary["peak_memory"][index]),
        )
    return table


# The columns of the memory account, and which of its categories each sums.
ACCOUNT_COLUMNS = {
    "weights": ("parameters", "gradients", "optimizer"),
    "activations": ("activations",),
    "history": ("history",),
    "stash": ("stash",),
    "synthesizer": ("synthesizer",),
    "buffers": ("buffers",),
}


def _account_table(accounts: list[Record]) -> Table:
    """Memory by module and category; a category that no module has is left out."""
    columns = {
        name: categories
        for name, categories in ACCOUNT_COLUMNS.items()
        if any(account[category] for account in accounts for category in categories)
    }
    table = _table("module", *columns, "sum", "predicted")
    for k, account in enumerate(accounts, start=1):
        sums = [sum(account[category] for category in categories) for categories in columns.values()]
        table.add_row(str(k), *map(num_bytes, sums), num_bytes(sum(sums)), num_bytes(account.get("predicted")))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=True, justify="left" if column in ("device", "blocks") else "right")
    return table


def size_text(k: int, replicas: int) -> str:
    """``K = 4``, or ``K = 4, 2 replicas``."""
    return f"K = {k}" + (f", {replicas} replicas" if replicas > 1 else "")


def percent(fraction: float | None, digits: int = 1) -> str:
    """``0.125`` as ``12.5 %``; nothing for None."""
    return "" if fraction is None else f"{100 * fraction:.{digits}f} %"


def rate(per_s: float | None) -> str:
    """Three digits of a speed, and all of those before the point: ``12.3``, ``12345``; nothing for None."""
    if per_s is None:
        return ""
    return f"{per_s:.0f}" if per_s >= 100 else f"{per_s:.3g}"


def num_bytes(count: float | None) -> str:
    """Bytes as ``12 KiB``, ``512 MiB`` or ``1.50 GiB``; nothing for None."""
    if count is None:
        return ""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def duration(seconds: float | None) -> str:
    """Seconds as ``4.21 s``, ``3 min 20 s`` or ``2 h 13 min``; nothing for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
