"""When modules may pause together, and when a signal means haste."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harness import ListConnection

from fr_bench.checkpoints.checkpointer import Checkpointer, DeviceQueue, Interval
from fr_bench.errors import Interrupted
from fr_bench.launching.signal_watch import SignalWatch, watch_signals
from fr_bench.processes.board import Board
from fr_bench.processes.reporter import Reporter
from fr_bench.processes.signals import held_back


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


def test_a_wish_to_stop_in_the_last_iteration_is_granted_by_the_end(tmp_path: Path) -> None:
    board, reporter = Board(), Reporter(ListConnection(), [-1])  # type: ignore[arg-type]
    module_1 = Checkpointer(board, Interval(None, None, num_steps=10), tmp_path, reporter, 0, True)
    board.request_stop()
    module_1.begin(9)
    assert board.stop_step is None
    module_1.begin(8)
    assert board.stop_step == 9


def test_a_signal_sent_twice_at_once_is_one_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `timeout` sends it, to its child and to the group."""
    now_s = [1000.0]
    monkeypatch.setattr("fr_bench.launching.signal_watch.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    watch = SignalWatch()
    for later_s, is_impatient in ((0.0, False), (0.5, False), (1.0, True)):
        now_s[0] += later_s
        watch.handle(signal.SIGTERM, None)
        assert watch.is_impatient is is_impatient


def test_signals_that_are_held_back_arrive_afterwards() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: received.append(number))
    try:
        with held_back([signal.SIGUSR2]):
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
            assert received == []
        assert received == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(("number", "within_s"), [(signal.SIGTERM, 25), (signal.SIGUSR2, 110), (None, math.inf)])
def test_a_run_has_as_long_to_save_its_step_as_whoever_stops_it_waits(
    number: int | None, within_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    monkeypatch.setattr("fr_bench.launching.signal_watch.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    watch = SignalWatch(max_time_s=60)
    assert not watch.is_asked_to_stop
    if number is None:
        now_s[0] += 60
    else:
        watch.handle(number, None)
    for later_s, is_impatient in ((20, False), (80, within_s < 100), (20, within_s < 120), (1e6, within_s < math.inf)):
        now_s[0] += later_s
        assert watch.is_asked_to_stop and watch.is_impatient is is_impatient
    if number is None:  # who sends this one waits for 25 s from here
        watch.handle(signal.SIGTERM, None)
        assert not watch.is_impatient
        now_s[0] += 26
        assert watch.is_impatient


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
