"""summary.json: what one run came to, gathered from its records as they pass by."""

from __future__ import annotations

from collections import defaultdict

from fr_bench.measuring.categories import CATEGORIES, OTHER
from fr_bench.measuring.untimed import UntimedSteps
from fr_bench.records.device_load import load_of
from fr_bench.records.reading import Record, deciding_error, number

TIME_FIELDS = ("play_s", "learn_s", "wait_s", "send_s")
# The memory account of a module in bytes, and what was predicted for all of it.
ACCOUNT = (*CATEGORIES, OTHER, "predicted")


class SummaryBuilder:
    """Takes every record of a run; ``build`` at any time gives the summary of the run until then."""

    def __init__(self, config: Record, cuts: list[int], num_blocks: int, origin: Record | None = None) -> None:
        """
        Args:
            config: resolved, plain.
            cuts: the K-1 block indices at which the network is cut.
            num_blocks: of the whole network.
            origin: where another run's records end, with which this one begins (see origin.py): they do not
                count as this run's speed. None or empty for a run that is its own from the first step on.
        """
        self._own_from = [number(origin or {}, key) or 0 for key in ("step", "epoch", "train_time")]
        self._config = config
        self._cuts = cuts
        self._num_blocks = num_blocks
        self._step, self._epoch, self._train_time = 0, 0.0, 0.0
        self.best: Record | None = None  # the `eval` record of the best evaluation so far
        self._last: Record | None = None
        self._devices: dict[int, str] = {}
        self._peaks: dict[int, int] = {}
        self._accounts: dict[int, Record] = {}
        self._efficiency_sum, self._efficiency_steps = 0.0, 0  # over modules, too, which all have the same
        # By module, over all its `time` records.
        self._timed_steps: defaultdict[int, int] = defaultdict(int)
        self._computing_s: defaultdict[int, float] = defaultdict(float)
        self._busy_s: defaultdict[int, float] = defaultdict(float)
        self._wait_s: defaultdict[int, float] = defaultdict(float)
        self._sees_waiting = True
        self._untimed = UntimedSteps()
        self._profiles: dict[int, Record] = {}  # the last one of each process, by its first module
        # The last `time` record's step, by module.
        self._timed_until: defaultdict[int, int] = defaultdict(lambda: int(self._own_from[0]))

    def add(self, record: Record) -> None:
        """Takes one record."""
        self._step = max(self._step, record["step"])
        self._epoch = max(self._epoch, record["epoch"])
        self._train_time = max(self._train_time, record["train_time"])
        if record["kind"] == "eval":
            self._last = record
            if self.best is None or deciding_error(record) < deciding_error(self.best):
                self.best = record
        elif record["kind"] == "memory":
            module = record["module"]
            self._devices[module] = str(record.get("device"))
            self._peaks[module] = max(self._peaks.get(module, 0), record["peak"])
            self._accounts[module] = {key: record[key] for key in ACCOUNT if key in record}
        elif record["kind"] == "time":
            self._add_time(record)
        elif record["kind"] == "profile":
            self._untimed.add(record)
            self._profiles[record["module"]] = record

    def _add_time(self, record: Record) -> None:
        """Its seconds are means over the iterations since the module's last one, but for those that were profiled."""
        module = record["module"]
        num_iterations = record["step"] - self._timed_until[module]
        if num_iterations <= 0:  # of the run before
            return
        self._timed_until[module] = record["step"]
        num_iterations = record.get("iterations", num_iterations)  # an older version did not say
        self._timed_steps[module] += num_iterations
        self._sees_waiting = self._sees_waiting and "wait_s" in record  # else it counts as computing
        self._computing_s[module] += num_iterations * (record["play_s"] + record["learn_s"])
        self._wait_s[module] += num_iterations * record.get("wait_s", 0.0)
        self._busy_s[module] += num_iterations * sum(record[name] for name in TIME_FIELDS if name != "wait_s")
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
        and the efficiency, are means over the whole run, pipe fill included, but for the steps that another run made;
        lists are by module.

        ``device_busy_s`` is how long an iteration kept a GPU busy while it was profiled: of several GPUs the busiest,
        and of processes that share one their sum, since they take turns. ``num_kernels`` is that of all processes.

        Args:
            state: as in status.json.
        """
        config = self._config
        modules = range(1, config["k"] * config.get("replicas", 1) + 1)
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
            "peak_memory": [self._peaks.get(module) for module in modules],
            "memory": [self._accounts.get(module) for module in modules],
            "devices": [self._devices.get(module) for module in modules],
        }

    def _busy_per_step(self, module: int) -> float | None:
        steps = self._timed_steps[module]
        return self._computing_s[module] / steps if steps and self._sees_waiting else None

    def _waiting_share(self, module: int) -> float | None:
        total_s = self._wait_s[module] + self._busy_s[module]
        return self._wait_s[module] / total_s if total_s and self._sees_waiting else None
