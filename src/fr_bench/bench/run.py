"""The comparison itself: rounds over all contenders, and what is left of them."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fr_bench.bench.checkpoints import CheckpointCost, measure_checkpoints
from fr_bench.bench.contenders import ConfigOf, Contender, crowded, make_contenders
from fr_bench.bench.forecast import make_forecast
from fr_bench.bench.json_file import write_json
from fr_bench.bench.measurement import Measurement, measure
from fr_bench.bench.rows import CheckpointCosts, Row, compare, make_row
from fr_bench.bench.settings import BenchSettings
from fr_bench.bench.simulated import simulated_step_s
from fr_bench.bench.table import as_checkpoint_table, as_table
from fr_bench.components import check_method
from fr_bench.errors import ConfigError, Interrupted, RunFailed
from fr_bench.launching.signal_watch import SignalWatch, watch_signals
from fr_bench.planning.balance import Balance
from fr_bench.planning.costs import ModuleCosts
from fr_bench.planning.environment import describe_environment
from fr_bench.planning.partition import module_slices
from fr_bench.planning.plan import Plan
from fr_bench.planning.tracing import batch_on_meta, blocks_on_meta
from fr_bench.settings.folder_names import folder_name
from fr_bench.simulation.settings import SimulateSettings
from fr_bench.unread import heard_or_not, say


def run_bench(settings: BenchSettings, simulated: SimulateSettings, config_of: ConfigOf, folder: Path) -> int:
    """Measures, simulates, prints the tables and fills ``folder``; returns the exit code.

    Args:
        settings: what is measured; bench.json and the figure tell of it.
        simulated: what is simulated; simulate.json tells of it.
        config_of: further overrides -> resolved config.
        folder: to be made.

    Raises:
        ConfigError: a contender that cannot run, or a folder that holds something.
        RunFailed: a file of its folder cannot be written.
        Interrupted: a signal came; complete rounds are in bench.json, and of the first what there is.
    """
    contenders = make_contenders(settings, config_of) if settings.methods else []
    # First: a mistake ends it before anything starts, and blocks are timed while nothing else of ours runs.
    forecast = make_forecast(simulated, settings.microbatches, config_of) if simulated.k else None
    entries = [Entry(each, limit_uncontended(each) if has_limit(each) else None) for each in contenders]
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"run_dir={folder}: cannot be made: {error.strerror}; choose another.") from error
    forecast_path = forecast.write(folder) if forecast is not None else None
    code = _compare(Bench(settings, entries, folder), contenders) if contenders else 0
    if forecast is not None:
        _show(f"{forecast.text()}\nsimulation: {forecast_path}")
    return code


def _compare(bench: Bench, contenders: Sequence[Contender]) -> int:
    """Runs it, prints its table and draws its figure; returns the exit code."""
    with watch_signals() as signals:
        try:
            bench.run(signals)
        except Interrupted as interruption:
            raise Interrupted(f"{interruption}; {bench.so_far}", interruption.exit_code) from interruption
    rows = bench.rows()
    if rows:
        _show(as_table(rows))
    if checkpoints := as_checkpoint_table(rows):
        _show(f"\n{checkpoints}\n")
    if crowding := crowded(contenders):
        _show(crowding)
    if left_out := [f"'{row.words}' with K = {row.k}" for row in rows if row.speedup_vs_single is None]:
        _show(f"{', '.join(left_out)}: not in the figure, for want of a BP with K = 1 under the same settings")
    if len(left_out) < len(rows):
        from fr_bench.bench.figure import STYLE, draw_bench  # matplotlib, which nothing else here needs
        from fr_bench.figures.write import write

        plan = shared_plan(contenders)
        assert plan is not None, "there are contenders"
        title = f"{plan.config['model']['name']}, batch of {plan.config['batch_size']}"
        _show(f"figure: {write(draw_bench(rows, title), STYLE, bench.folder, 'bench')[0]}")
    _show(f"bench: {bench.folder / 'bench.json'}")
    return 1 if bench.failures else 0


def _show(text: str) -> None:
    """Prints it for whoever reads it; hours of measuring are not lost because that one has gone."""
    with heard_or_not("measuring goes on, and its files are written as ever"):
        print(text, flush=True)


@dataclass
class Entry:
    """A contender, and what was measured of it so far.

    Attributes:
        limit: see :func:`limit_uncontended`; None where there is none.
        measurements: one a round; none of one that has failed, or is a pipeline that others have beaten.
        checkpoints: of all rounds.
    """

    contender: Contender
    limit: float | None = None
    measurements: list[Measurement] = field(default_factory=list)
    checkpoints: list[CheckpointCost] = field(default_factory=list)


class Bench:
    """Measurements as they come in."""

    def __init__(self, settings: BenchSettings, entries: list[Entry], folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.failures: list[dict[str, Any]] = []
        self._shared = shared_plan([each.contender for each in entries])
        self._entries = entries
        self._tried: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
        self._complete_rounds = 0

    def run(self, signals: SignalWatch) -> None:
        """All rounds; every other one backwards, so that nobody always runs after the same neighbour."""
        for number in range(1, self.settings.rounds + 1):
            for entry in self._entries if number % 2 else self._entries[::-1]:
                self._run_one(entry, number, signals)
                if number == 1:
                    self.write()  # should it be cut short; in later rounds some would have a sample more than others
            if number == 1:
                self._keep_the_fastest_pipelines()
            self._entries = [each for each in self._entries if each.measurements]
            self._complete_rounds = number
            self.write()

    def _run_one(self, entry: Entry, number: int, signals: SignalWatch) -> None:
        contender = entry.contender
        name = folder_name(contender.label.replace(" ", "-").replace("/", "-"))
        try:
            measurement = measure(contender, self.settings, self.folder / f"round-{number}-{name}", signals)
        except (RunFailed, ConfigError) as error:  # some mistakes are found by a module alone
            entry.measurements.clear()
            self._note_failure(contender, number, error)
            return
        entry.measurements.append(measurement)
        median_s = make_row(contender, [measurement]).step_time_s.median
        if contender.num_microbatches is not None and number == 1:
            self._tried[contender.words, contender.k][contender.num_microbatches] = median_s
        _show(f"round {number} of {self.settings.rounds}: {contender.label}: {median_s:.4g} s a step")
        if self.settings.checkpoints and not contender.is_peer:
            self._run_with_checkpoints(entry, number, median_s, name, signals)

    def _run_with_checkpoints(self, entry: Entry, number: int, step_s: float, name: str, signals: SignalWatch) -> None:
        contender = entry.contender
        folder = self.folder / f"round-{number}-{name}-checkpoints"
        try:
            costs = measure_checkpoints(contender.plan, self.settings, step_s, folder, signals)
        except (RunFailed, ConfigError) as error:
            self._note_failure(contender, number, error)
            return
        entry.checkpoints += costs
        extra_s = CheckpointCosts.of(costs).extra_s.median
        _show(f"round {number} of {self.settings.rounds}: {contender.label}: a checkpoint costs {extra_s:.4g} s")

    def _note_failure(self, contender: Contender, number: int, error: RunFailed | ConfigError) -> None:
        self.failures.append({"method": contender.words, "k": contender.k, "round": number, "error": str(error)})
        say(f"{contender.label}: {error}")

    def _keep_the_fastest_pipelines(self) -> None:
        for (words, k), tried in self._tried.items():
            fastest = min(tried, key=lambda number: tried[number])
            for entry in self._entries:
                each = entry.contender
                if (each.words, each.k) == (words, k) and each.num_microbatches != fastest:
                    entry.measurements.clear()

    def rows(self) -> list[Row]:
        """One for everything that was measured, in the order of ``bench.methods``."""
        rows = []
        for entry in self._entries:
            if not entry.measurements:
                continue
            row = make_row(entry.contender, entry.measurements)
            row.tried_microbatches = self._tried.get((row.words, row.k))
            row.limit_uncontended = entry.limit
            row.simulated_step_time_s = simulated_step_s(row)
            if entry.checkpoints:
                row.checkpoint = CheckpointCosts.of(entry.checkpoints)
            rows.append(row)
        compare(rows)
        return rows

    @property
    def so_far(self) -> str:
        """Where there is what was measured, in words."""
        path = self.folder / "bench.json"
        return f"what was measured is in {path}" if path.exists() else "nothing was measured yet"

    def write(self) -> None:
        """bench.json, with what there is so far."""
        plan = self._shared
        environment = describe_environment(sys.argv, {**plan.config, "threads": plan.threads}) if plan else {}
        shared = (
            "model", "dataset", "batch_size", "device", "precision", "channels_last", "compile", "cuda_graphs",
            "optimizer", "seed",
        )  # fmt: skip
        content = {
            "env": environment,
            "config": {key: plan.config[key] for key in shared} if plan else {},
            "bench": vars(self.settings),
            "complete_rounds": self._complete_rounds,
            "rows": [row.as_json() for row in self.rows()],
            "failures": self.failures,
        }
        write_json(self.folder / "bench.json", content)


def shared_plan(contenders: Sequence[Contender]) -> Plan | None:
    """That of BP as it is, which always takes part: its settings are those that stand behind nobody's name."""
    plans = {contender.words: contender.plan for contender in contenders}
    return plans.get("bp", contenders[0].plan if contenders else None)


def has_limit(contender: Contender) -> bool:
    """Whether something limits it that can be measured while nothing else runs: not where modules share a GPU."""
    return not contender.is_peer and contender.k > 1 and not contender.shares_gpu


def limit_uncontended(contender: Contender) -> float | None:
    """The speed-up over locked BP, which has no replicas, from block costs that were measured while nothing else ran;
    None for BP, and for compiled blocks, which were not measured."""
    plan = contender.plan
    if plan.config["compile"]:
        return None
    method, hyper_parameters = check_method(plan.config["method"])
    if method.policy(**hyper_parameters).gradient == "true":
        return None
    blocks = blocks_on_meta(plan.config, plan.sample)

    def costs_of(batch_size: int) -> ModuleCosts:
        config = {**plan.config, "partition": "measured", "batch_size": batch_size}
        x = batch_on_meta(config, plan.sample)
        return Balance(
            config, method, hyper_parameters, blocks, x, plan.sample, plan.devices, plan.threads, plan.transport,
            asked_by="limit, uncontended",
        ).costs  # fmt: skip

    whole, share = plan.config["batch_size"], plan.config["batch_size"] // plan.num_replicas
    costs = costs_of(share)
    parts = module_slices(plan.cuts, len(blocks))
    busiest_s = max(costs(part.start, part.stop, k) for k, part in enumerate(parts, start=1))
    locked = costs if share == whole else costs_of(whole)
    return locked(0, len(blocks), plan.k) / busiest_s  # module K pays a forward and a backward, as locked BP does
