"""When modules may pause together, and when a signal means haste."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from harness import ListConnection

from fr_bench.checkpoints.checkpointer import Checkpointer, DeviceQueue, Interval
from fr_bench.errors import Interrupted
from fr_bench.launching.signal_watch import watch_signals
from fr_bench.processes.board import Board
from fr_bench.processes.reporter import Reporter


def checkpointer(board: Board, folder: Path, queue: DeviceQueue | None, leads: bool) -> Checkpointer:
    reporter = Reporter(ListConnection(), [-1])  # type: ignore[arg-type]
    return Checkpointer(board, Interval(every=3, minutes=None, num_steps=25), folder, reporter, 0, leads, queue=queue)


def test_where_the_host_runs_ahead_modules_pause_only_where_they_wait_for_the_device(tmp_path: Path) -> None:
    """Under nccl. What is due in between comes at the next such step, the end of the run among them."""
    board = Board()
    queue = DeviceQueue(torch.device("cpu"), lambda step: step % 10 == 0 or step == 25)
    module_1, another = (checkpointer(board, tmp_path, queue, leads) for leads in (True, False))
    board.request_stop()
    for t in range(9):
        module_1.begin(t)
        assert board.stop_step is None
        assert not another.pauses_at(t + 1)
    module_1.begin(9)
    assert board.stop_step == 10


def test_a_launchers_handler_is_called_for_a_signal_and_when_the_time_is_up() -> None:
    """As submitit's: it requeues the job and exits, or raises what it has against that."""
    received: list[int] = []
    answer: list[BaseException] = [SystemExit(-1), RuntimeError("timed-out too many times")]

    def handler(number: int, _frame: object) -> None:
        received.append(number)
        raise answer[len(received) - 1]

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        with watch_signals(max_time_s=60) as signals:
            requeued = signals.hand_on(Interrupted("stopped by max_time=1 (minutes)", 75))
            os.kill(os.getpid(), signal.SIGUSR2)
            refused = signals.hand_on(Interrupted("stopped by SIGUSR2", 75))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert received == [signal.SIGUSR2, signal.SIGUSR2]
    assert str(requeued) == "stopped by max_time=1 (minutes); its job is back in the queue"
    assert str(refused) == "stopped by SIGUSR2; timed-out too many times"
    assert (requeued.exit_code, refused.exit_code) == (75, 75)
