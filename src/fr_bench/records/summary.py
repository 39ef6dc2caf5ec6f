"""summary.json: what one run came to, gathered from its records as they pass by."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from fr_bench.measuring.categories import CATEGORIES, OTHER
from fr_bench.measuring.untimed import UntimedSteps
from fr_bench.records.device_load import load_of
from fr_bench.records.reading import POSITION, Record, deciding_error, number

# The memory account of a module in bytes, and what was predicted for all of it.
ACCOUNT = (*CATEGORIES, OTHER, "predicted")


@dataclass
class _Module:
    """What the records have told of one module.

    Attributes:
        timed_until: the step of its last `time` record, or where the run's own begin.
        num_timed: iterations that its `time` records are means of; seconds are those of all of them together.
        computing_s: of playing and learning.
        busy_s: of these and of sending.
        wait_s: of waiting for its neighbours.
        peak, account: of its `memory` records the largest, and the last.
    """

    timed_until: int
    num_timed: int = 0
    computing_s: float = 0.0
    busy_s: float = 0.0
    wait_s: float = 0.0
    device: str | None = None
    peak: int | None = None
    account: Record | None = None


class SummaryBuilder:
    """Takes every record of a run; ``build`` at any time gives the summary of the run until then."""

    def __init__(self, config: Record, cuts: list[int], num_blocks: int, origin: Record | None = None) -> None:
        """
        Args:
            config: resolved, plain.
            cuts: the K-1 block indices at which the network is cut.
            num_blocks: of the whole network.
            origin: where another run's records end, with which this one begins (see origin.py): they do not
                count as this run's speed, nor their evaluations as its own unless all is ``in_one_piece``. None or
                empty for a run that is its own from the first step on.
        """
        is_whole = (origin or {}).get("in_one_piece") is True
        self._evaluated_from = 0 if is_whole else number(origin or {}, "step") or 0
        self._own_from = [number(origin or {}, key) or 0 for key in POSITION]
        self._config = config
        self._cuts = cuts
        self._num_blocks = num_blocks
        self._step, self._epoch, self._train_time = 0, 0.0, 0.0
        self.best: Record | None = None  # the `eval` record of the best evaluation so far
        self._last: Record | None = None
        self._modules: defaultdict[int, _Module] = defaultdict(lambda: _Module(timed_until=int(self._own_from[0])))
        self._efficiency_sum, self._efficiency_steps = 0.0, 0  # over modules, too, which all have the same
        self._sees_waiting = True
        self._untimed = UntimedSteps()
        self._profiles: dict[int, Record] = {}  # the last one of each process, by its first module

    def add(self, record: Record) -> None:
        """Takes one record."""
        self._step = max(self._step, record["step"])
        self._epoch = max(self._epoch, record["epoch"])
        self._train_time = max(self._train_time, record["train_time"])
        if record["kind"] == "eval" and record["step"] > self._evaluated_from:
            self._last = record
            if self.best is None or deciding_error(record) < deciding_error(self.best):
                self.best = record
        elif record["kind"] == "memory":
            module = self._modules[record["module"]]
            module.device = str(record.get("device"))
            module.peak = max(module.peak or 0, record["peak"])
            module.account = {key: record[key] for key in ACCOUNT if key in record}
        elif record["kind"] == "time":
            self._add_time(record)
        elif record["kind"] == "profile":
            self._untimed.add(record)
            self._profiles[record["module"]] = record

    def _add_time(self, record: Record) -> None:
        """Its seconds are means over the iterations since the module's last one, but for those that were profiled."""
        module = self._modules[record["module"]]
        num_iterations = record["step"] - module.timed_until
        if num_iterations <= 0:  # of the run before
            return
        module.timed_until = record["step"]
        num_iterations = record.get("iterations", num_iterations)  # an older version did not say
        module.num_timed += num_iterations
        self._sees_waiting = self._sees_waiting and "wait_s" in record  # else it counts as computing
        computing_s = record["play_s"] + record["learn_s"]
        module.computing_s += num_iterations * computing_s
        module.busy_s += num_iterations * (computing_s + record["send_s"])
        module.wait_s += num_iterations * record.get("wait_s", 0.0)
        efficiency = number(record, "efficiency")
        if efficiency is not None:
            self._efficiency_sum += num_iterations * efficiency
            self._efficiency_steps += num_iterations

    def build(self, state: str) -> Record:
        """Returns the summary; what no record has told yet is None.

        ``best_test_error`` is the smallest test error, or, with a validation set, that of the epoch with the smallest
        validation error (the first of equals), which is ``best_validation_error``. ``waiting_share`` is each module's
        share of time spent waiting for its neighbours; ``busy_s`` the seconds that a mini-batch kept it busy; where the
        method cannot tell waiting from computing, both are None. ``memory`` is its last account in bytes. Times,
        and the efficiency, are means over the whole run, pipe fill included, but for the steps that another run made,
        whose errors do not count either; lists are by module.

        ``device_busy_s`` is how long an iteration kept a GPU busy while it was profiled: of several GPUs the busiest,
        and of processes that share one their sum, since they take turns. ``num_kernels`` is that of all processes.

        Args:
            state: as in status.json.
        """
        config = self._config
        modules = [self._modules[number] for number in range(1, config["k"] * config.get("replicas", 1) + 1)]
        reached = (self._step, self._epoch, self._train_time)
        device_busy_s, num_kernels = load_of(self._profiles.values())
        steps, epochs, seconds = (now - before for now, before in zip(reached, self._own_from, strict=True))
        if untimed := self._untimed.between(self._own_from[0], self._step):
            steps, epochs = steps - untimed, epochs * (steps - untimed) / steps
        return {
            "state": state,
            "method": config["method"]["name"],
            "model": config["model"]["name"],
            "dataset": config["dataset"]["name"],
            "k": config["k"],
            "replicas": config.get("replicas", 1),
            "seed": config["seed"],
            "cuts": self._cuts,
            "num_blocks": self._num_blocks,
            "best_test_error": self.best and self.best["test_error"],
            "best_epoch": self.best and self.best["epoch"],
            "best_validation_error": self.best and self.best.get("validation_error"),
            "last_test_error": self._last and self._last["test_error"],
            "steps": self._step,
            "epochs": self._epoch,
            "train_time": self._train_time,
            "images_per_s": steps * config["batch_size"] / seconds if seconds > 0 else None,
            "step_time_s": seconds / steps if steps > 0 else None,
            "epoch_time_s": seconds / epochs if epochs > 0 else None,
            "efficiency": self._efficiency_sum / self._efficiency_steps if self._efficiency_steps else None,
            "busy_s": [self._busy_per_step(module) for module in modules],
            "waiting_share": [self._waiting_share(module) for module in modules],
            "device_busy_s": device_busy_s,
            "num_kernels": num_kernels,
            "peak_memory": [module.peak for module in modules],
            "memory": [module.account for module in modules],
            "devices": [module.device for module in modules],
        }

    def _busy_per_step(self, module: _Module) -> float | None:
        return module.computing_s / module.num_timed if module.num_timed and self._sees_waiting else None

    def _waiting_share(self, module: _Module) -> float | None:
        total_s = module.wait_s + module.busy_s
        return module.wait_s / total_s if total_s and self._sees_waiting else None
