"""Turns the events of K modules into the records of metrics.jsonl, on one training clock."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from fr_bench.measuring.stopwatch import Span
from fr_bench.measuring.untimed import UntimedSteps
from fr_bench.records.reading import OF_EVERY_MODULE, POSITION, Record
from fr_bench.training.diagnostics import direction


class TrainingClock:
    """Seconds of training: from the start of the first iteration on module 1 to the end of the last step on the
    slowest module, pipe fill and drain included, summed over the stretches between evaluations."""

    def __init__(self, num_modules: int) -> None:
        self._num_modules = num_modules
        self._total_ns = 0
        # Two at most: module 1's next begin may be read before the last end of another module, from another pipe.
        self._begins_ns: deque[int] = deque()
        self._ends_ns: dict[int, int] = {}

    def begin(self, time_ns: int) -> None:
        """Module 1 starts the first iteration of a stretch."""
        self._begins_ns.append(time_ns)

    def end(self, modules: list[int], time_ns: int) -> None:
        """``modules`` finished their last step of the stretch; with the last of them the clock stops."""
        self._ends_ns |= dict.fromkeys(modules, time_ns)
        if len(self._ends_ns) == self._num_modules and self._begins_ns:
            self._total_ns += max(self._ends_ns.values()) - self._begins_ns.popleft()
            self._ends_ns = {}

    def at(self, time_ns: int) -> float:
        """The training time in seconds at ``time_ns``; while the clock stands, its total."""
        running_ns = time_ns - self._begins_ns[0] if self._begins_ns else 0
        return (self._total_ns + running_ns) / 1e9

    @property
    def closed_s(self) -> float:
        """Seconds of all stretches that every module has ended."""
        return self._total_ns / 1e9

    def go_on(self, train_time_s: float) -> None:
        """Starts with the seconds of an earlier run instead of 0."""
        self._total_ns = round(train_time_s * 1e9)


class Collector:
    """Events in, records out. Fields are those of the run directory's contract."""

    def __init__(
        self, num_modules: int, steps_per_epoch: int, batch_size: int, in_parallel: bool, num_replicas: int = 1
    ) -> None:
        """
        Args:
            num_modules: K.
            steps_per_epoch, batch_size: of the run.
            in_parallel: whether modules run side by side, so that pipeline efficiency means something.
            num_replicas: of the K modules.
        """
        size = num_replicas * num_modules
        self.clock = TrainingClock(size)
        self.spans: dict[int, list[Span]] = {}
        # How many modules tell: of the direction only those of one replica, since all have the same.
        self._num_expected = {"time": size, "memory": size, "method": size, "direction": num_modules}
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._in_parallel = in_parallel
        self._untimed = UntimedSteps()
        self._last_train = (0, 0.0)  # step and train_time of the last train record
        self._waiting: defaultdict[tuple[str, int], list[Record]] = defaultdict(list)

    def go_on(self, train_time_s: float, kept: Sequence[Record]) -> None:
        """Goes on where an earlier run was after ``train_time_s``, with the records ``kept``."""
        self.clock.go_on(train_time_s)
        for record in kept:
            if record["kind"] == "profile":
                self._untimed.add(record)
            if record["kind"] == "train":
                self._last_train = record["step"], record["train_time"]

    def add(self, event: Record) -> list[Record]:
        """Returns the records that ``event`` completes."""
        kind = event["event"]
        if kind == "stretch_begin" and 1 in event["modules"]:
            self.clock.begin(event["time_ns"])
        elif kind == "stretch_end":
            self.clock.end(event["modules"], event["time_ns"])
        elif kind == "trace":
            self.spans[event["module"]] = [Span(*span) for span in event["spans"]]
        elif kind == "train":
            return [self._train(event)]
        elif kind == "profile":
            self._untimed.add(event)
            return [self._record(event, event["time_ns"])]
        elif kind == "eval":
            return [self._record(event, event["time_ns"])]
        elif kind in self._num_expected:
            return self._by_module(kind, event)
        return []

    def _record(self, event: Record, time_ns: int) -> Record:
        fields = {key: value for key, value in event.items() if key not in ("event", "time_ns")}
        step = fields.pop("step")
        return {
            "kind": event["event"],
            "step": step,
            "epoch": step / self._steps_per_epoch,
            "train_time": self.clock.at(time_ns),
            **fields,
        }

    def _train(self, event: Record) -> Record:
        record = self._record(event, event["time_ns"])
        # Those that are being profiled: their `profile` event comes too late.
        self._untimed.add({"step": record["step"], "iterations": record.pop("untimed", 0)})
        last_step, last_time = self._last_train
        self._last_train = record["step"], record["train_time"]
        num_timed = record["step"] - last_step - self._untimed.between(last_step, record["step"])
        seconds = record["train_time"] - last_time
        if seconds > 0 and num_timed > 0:
            record["images_per_s"] = num_timed * self._batch_size / seconds
        return record

    def _by_module(self, kind: str, event: Record) -> list[Record]:
        """Holds the event back until all modules have sent theirs for the same step."""
        waiting = self._waiting[kind, event["step"]]
        waiting.append(event)
        if len(waiting) < self._num_expected[kind]:
            return []
        del self._waiting[kind, event["step"]]
        time_ns = max(each["time_ns"] for each in waiting)
        records = [self._record(each, time_ns) for each in sorted(waiting, key=lambda each: each["module"])]
        if kind == "direction":
            return _sigma(records)
        if kind == "method":
            return [record for record in records if record.keys() > OF_EVERY_MODULE]
        if kind == "time":
            busiest_s = max(record["play_s"] + record["learn_s"] for record in records)
            step_s = max(record.pop("wall_s") for record in records)
            if self._in_parallel and all("wait_s" in record for record in records):  # else waiting counts as work
                for record in records:
                    record["efficiency"] = busiest_s / step_s
        return records


def _sigma(records: list[Record]) -> list[Record]:
    """`sigma` records from the products of each module; module 0 is the whole network."""
    common = {key: records[0][key] for key in POSITION}
    products = {record["module"]: {key: record[key] for key in ("dot", "true", "used")} for record in records}
    products[0] = {key: sum(each[key] for each in products.values()) for key in ("dot", "true", "used")}
    return [{"kind": "sigma", **common, "module": module, **direction(products[module])} for module in sorted(products)]
