"""Checkpoints from the parent's side: a checkpoint is whole when every module has written its part of it."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fr_bench.checkpoints.files import folder_of, keep_newest, remove, write_manifest
from fr_bench.planning.own_code import Code
from fr_bench.planning.plan import Plan
from fr_bench.processes.board import Board
from fr_bench.records.collector import TrainingClock
from fr_bench.records.run_files import strict_json


class CheckpointBook:
    """Takes the modules' events.

    Args:
        plan: of the run.
        checkpoints: the folder.
        metrics: metrics.jsonl, which must be on disk before a checkpoint that builds on it.
        board: where module 1 learns that the next checkpoint may come.
        clock: the training clock.
        complain: prints a line.
        last_step: of the checkpoint that the run went on from, if it is one of this run's own.
        code: the user's own that makes the run's steps, the oldest first.
    """

    def __init__(
        self,
        plan: Plan,
        checkpoints: Path,
        metrics: Path,
        board: Board,
        clock: TrainingClock,
        complain: Callable[[str], None],
        last_step: int | None = None,
        code: Sequence[Code] = (),
    ) -> None:
        self.last_step = last_step
        self._code = list(code)
        self._plan = plan
        self._checkpoints = checkpoints
        self._metrics = metrics
        self._board = board
        self._clock = clock
        self._complain = complain
        self._has_complained = False
        self._num_taken: defaultdict[int, int] = defaultdict(int)
        self._train_time_s: dict[int, float] = {}
        self._written: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        self._failed: defaultdict[int, list[int]] = defaultdict(list)

    def add(self, event: dict[str, Any]) -> None:
        """Takes an event; those about something else too."""
        kind = event["event"]
        if kind == "checkpoint_taken":
            step = event["step"]
            self._num_taken[step] += len(event["modules"])
            if self._num_taken[step] == self._plan.size:
                # All modules have ended the stretch before it and none has ended the next.
                self._train_time_s[step] = self._clock.closed_s
        elif kind == "checkpoint_written":
            self._written[event["step"]] += event["written"]
            self._settle(event["step"])
        elif kind == "checkpoint_failed":
            self._failed[event["step"]] += event["modules"]
            self._say_failed(event["step"], event["message"])
            self._settle(event["step"])

    def _settle(self, step: int) -> None:
        """Once all modules have told: makes the checkpoint whole, or removes what there is of it."""
        if len(self._written[step]) + len(self._failed[step]) < self._plan.size:
            return
        if not self._failed[step]:
            try:
                self._complete(step)
            except OSError as error:
                self._failed[step] = [0]
                self._say_failed(step, str(error))
        if self._failed[step]:
            remove([folder_of(self._checkpoints, step)])
        self._board.settle(step)

    def _complete(self, step: int) -> None:
        with self._metrics.open("rb") as stream:
            os.fsync(stream.fileno())
        plan = self._plan
        manifest = {
            "step": step,
            "k": plan.k,
            "replicas": plan.config["replicas"],
            "cuts": plan.cuts,
            "blocks": plan.block_names,
            "train_time": self._train_time_s[step],
            "config": plan.config,
            "code": self._code,
            "modules": sorted(self._written[step], key=lambda written: written["module"]),
        }
        write_manifest(self._checkpoints, json.loads(strict_json(manifest)))
        self.last_step = step
        keep = plan.config["checkpoint"]["keep"]
        if keep is not None:  # a finished run needs but the one at its end
            keep_newest(self._checkpoints, 1 if step == plan.num_steps else keep)

    def _say_failed(self, step: int, message: str) -> None:
        if not self._has_complained:
            self._complain(
                f"the checkpoint after step {step} could not be written ({message}); training goes on, "
                "and this is not said again"
            )
        self._has_complained = True
