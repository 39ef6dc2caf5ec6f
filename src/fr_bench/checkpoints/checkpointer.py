"""Checkpoints from a process's side: when they are due, the copy that training waits for, the thread that writes."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from fr_bench.checkpoints import snapshot
from fr_bench.checkpoints.files import folder_of, make_folder, state_file, sync_folder, weights_file, write_file
from fr_bench.methods.base import Method
from fr_bench.modules.meter import LossMeter
from fr_bench.modules.module import Module
from fr_bench.processes.board import Board
from fr_bench.processes.reporter import Reporter
from fr_bench.transport.link import ModuleLink
from fr_bench.transport.relay import GO_ON, PAUSE, STOP, Relay

# How often module 1 looks, before it ends, whether the parent has done with the last checkpoint.
POLL_S = 0.002


@dataclass(frozen=True)
class Interval:
    """When checkpoints are due: whichever of the two comes first. With neither there is one only when a run stops.

    Attributes:
        every: iterations; training waits where the last one is still being written.
        minutes: of wall-clock time; one that is due while the last is still being written comes after that.
        num_steps: of the run, at whose end there is one too, so that it can be made longer.
    """

    every: int | None
    minutes: float | None
    num_steps: int

    def is_due(self, step: int, last_step: int, seconds_since: float, is_writing: bool = False) -> bool:
        """Whether one is due after ``step`` iterations.

        Args:
            step: those of a pause; not every iteration has one to ask for, see :class:`DeviceQueue`.
            last_step, seconds_since: where, and how long ago, the last one was taken.
            is_writing: whether that is still being written.
        """
        if step == self.num_steps:
            return self.every is not None or self.minutes is not None
        if self.every is not None and step // self.every > last_step // self.every:
            return True
        return self.minutes is not None and seconds_since >= 60 * self.minutes and not is_writing


@dataclass(frozen=True)
class DeviceQueue:
    """Where receives are queued on the device (nccl) and the host runs ahead of them: having received features, as
    :class:`Board` asks for, then means to have waited for the device. That is done where the loop waits anyway.

    Attributes:
        device: to wait for.
        waits_after: whether the loop waits for the device after so many iterations.
    """

    device: torch.device
    waits_after: Callable[[int], bool]


def write(
    folder: Path, step: int, snapshots: dict[int, snapshot.Snapshot], facts: dict[int, Any], reporter: Reporter
) -> None:
    """Writes what was copied after ``step`` iterations, beside training, and tells the parent how that went.

    Never raises: a checkpoint that fails does not end training.
    """
    try:
        make_folder(folder)
        written = [
            {"module": number, **facts[number], "files": _write_module(folder, number, taken)}
            for number, taken in snapshots.items()
        ]
        sync_folder(folder)
    except Exception as error:
        kind = "checkpoint_failed"
        told: dict[str, Any] = {"modules": list(snapshots), "message": f"{type(error).__name__}: {error}"}
    else:
        kind, told = "checkpoint_written", {"written": written}
    with contextlib.suppress(OSError):  # the parent is gone, which training finds out by itself
        reporter.send(kind, step=step, **told)


def _write_module(folder: Path, number: int, taken: snapshot.Snapshot) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(taken.state, buffer)
    contents: dict[str, bytes | memoryview] = {
        weights_file(number): save(taken.weights),
        state_file(number): buffer.getbuffer(),
    }
    return {name: write_file(folder / name, content) for name, content in contents.items()}


class Checkpointer:
    """The modules of one process.

    Args:
        board: shared with the others.
        interval: when they are due; module 1 alone looks.
        checkpoints: the folder.
        reporter: to the parent.
        start: iterations that were completed before.
        leads: whether module 1 (of replica 1) is in this process.
        relay: how its decisions come here, or go from here; None where all modules see the board.
        queue: None where the host itself waits for a message, or there is a relay.
    """

    def __init__(
        self,
        board: Board,
        interval: Interval,
        checkpoints: Path,
        reporter: Reporter,
        start: int,
        leads: bool,
        relay: Relay | None = None,
        queue: DeviceQueue | None = None,
    ) -> None:
        self._leads = leads
        self._relay = relay
        self._queue = queue
        self._board = board
        self._interval = interval
        self._checkpoints = checkpoints
        self._reporter = reporter
        self._last_step = start
        self._last_s = time.monotonic()
        self._unsettled: int | None = None  # the step whose checkpoint is on its way
        self._writer: threading.Thread | None = None

    def begin(self, t: int) -> None:
        """Before iteration ``t`` is played: has the word on the board whether all modules pause after it."""
        if self._leads:
            self._decide(t)
        if self._relay is None:
            return
        if self._leads:
            word = STOP if self.stops_at(t + 1) else PAUSE if self.pauses_at(t + 1) else GO_ON
        else:
            word = self._relay.receive()
            if word != GO_ON:
                self._board.pause_at(t + 1, stop=word == STOP)
        self._relay.pass_on(word)

    def _decide(self, t: int) -> None:
        step = t + 1
        if self._queue is not None and not self._queue.waits_after(step):
            return
        at_end = step == self._interval.num_steps
        stop = self._board.stop_is_requested and not at_end  # there it stops anyway
        is_writing = self._unsettled is not None and not self._board.is_settled(self._unsettled)
        if stop or self._interval.is_due(step, self._last_step, time.monotonic() - self._last_s, is_writing):
            self._board.pause_at(step, stop)
            self._unsettled = self._last_step = step
            self._last_s = time.monotonic()

    def pauses_at(self, step: int) -> bool:
        """Whether there is a checkpoint after ``step`` iterations. See :class:`Board` for when this may be asked."""
        if self._queue is not None:
            if not self._queue.waits_after(step):
                return False
            torch.cuda.current_stream(self._queue.device).synchronize()
        return self._board.pauses_at(step)

    def stops_at(self, step: int) -> bool:
        """Whether all modules end after ``step`` iterations, their checkpoint taken."""
        return self._board.stops_at(step)

    def save(
        self,
        step: int,
        parts: Sequence[tuple[Module, Method, ModuleLink]],
        meter: LossMeter | None,
        loop: Sequence[Mapping[str, Any]],
    ) -> None:
        """Copies the modules of this process after ``step`` iterations; a thread writes the copies. What cannot be
        copied, such as an optimizer's state that is no plain data, makes no checkpoint, and does not end training.

        Args:
            parts: by module.
            meter: of module K, if it is here.
            loop: the training loop's own numbers, by module.
        """
        self.wait()  # at most one is being written
        snapshots, facts, failure = {}, {}, None
        for (module, method, link), numbers in zip(parts, loop, strict=True):
            try:
                taken = snapshot.take(module, method, link, meter if module.is_top else None, numbers)
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
            else:
                snapshots[module.number] = taken
                gradients, losses = taken.state["gradients"], taken.state["meter"]
                facts[module.number] = {
                    "is_exact": method.resumes_exactly,
                    "gradients_sent": gradients["num_sent"],
                    "gradients_received": gradients["num_received"],
                    "gradients_kept": len(gradients["kept"]),
                }
                if losses is not None:
                    facts[module.number]["steps_since_record"] = losses["num_batches"]["interval"]
            link.forget_gradients()
        if failure is not None:
            numbers_here = [module.number for module, _, _ in parts]
            self._reporter.send("checkpoint_failed", step=step, modules=numbers_here, message=failure)
            return
        self._reporter.send("checkpoint_taken", step=step, modules=list(snapshots))
        arguments = (folder_of(self._checkpoints, step), step, snapshots, facts, self._reporter)
        writer = threading.Thread(target=write, args=arguments, name=f"checkpoint after step {step}")
        try:
            writer.start()
            self._writer = writer
        except RuntimeError:  # the system gives no more threads: training waits for this one
            write(*arguments)

    def wait(self) -> None:
        """Waits for what is being written here."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def wait_settled(self) -> None:
        """As :meth:`wait`, and in the process of module 1 for all others: behind it, the parent has made the last
        checkpoint whole, or has removed what there was of it."""
        self.wait()
        while self._unsettled is not None and not self._board.is_settled(self._unsettled):
            time.sleep(POLL_S)
