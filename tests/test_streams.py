"""A CUDA stream for each module that shares its process and a GPU: what is done there, and how messages cross.

That streams change no bit is for a GPU to show: gpu/test_gpu_graphs.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import METHODS, run_serial, tiny_config

from fr_bench.methods.base import Method
from fr_bench.modules.module import Module
from fr_bench.training.lead import Lead
from fr_bench.training.trainer import Player
from fr_bench.transport.channel import LocalChannel


@pytest.mark.parametrize("method", METHODS)
def test_a_module_trains_on_its_stream_and_whatever_else_is_done_is_on_none(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream: list[int | None] = [None]
    seen: list[tuple[str, int, int | None]] = []  # what, of which module, on whose stream

    @contextmanager
    def on_stream(self: Player) -> Iterator[None]:
        assert stream[0] is None
        stream[0] = self.module.k
        yield
        stream[0] = None

    def watch(owner: type, name: str, module_of: Any) -> None:
        original = getattr(owner, name)

        def watched(self: Any, *arguments: Any, **settings: Any) -> Any:
            seen.append((name, module_of(self).k, stream[0]))
            return original(self, *arguments, **settings)

        monkeypatch.setattr(owner, name, watched)

    monkeypatch.setattr(Player, "on_stream", on_stream)
    watch(Module, "step", lambda module: module)
    watch(Module, "backward", lambda module: module)
    watch(Method, "play", lambda method: method.module)
    watch(Method, "learn", lambda method: method.module)
    run_serial(tiny_config(method, 3), tmp_path)
    in_training = [each for each in seen if each[2] is not None]
    assert {name for name, *_ in in_training} == {"step", "backward", "play", "learn"}
    assert all(k == whose for _, k, whose in in_training)
    # The rehearsal's backward, before anything is trained.
    assert [each for each in seen if each[2] is None] == [("backward", k, None) for k in (3, 2, 1)]


def test_who_receives_waits_on_its_stream_for_what_the_sender_queued_and_holds_the_memory_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[tuple[str, str]] = []

    class Event:
        def record(self, stream: Any) -> None:
            done.append(("made on", stream.name))

    def stream_of(name: str) -> Any:
        return SimpleNamespace(name=name, wait_event=lambda event: done.append(("waits", name)))

    class Message:
        is_cuda, device = True, "cuda:0"

        def detach(self) -> Message:
            return self

        def record_stream(self, stream: Any) -> None:
            done.append(("used on", stream.name))

    current = stream_of("sender's")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    spec: Any = SimpleNamespace(conform=lambda message, what: message)
    message: Any = Message()
    channel = LocalChannel(spec, "features from module 1 to 2")
    channel.send(message, 3)
    current = stream_of("receiver's")
    assert channel.receive(3) is message
    assert done == [("made on", "sender's"), ("waits", "receiver's"), ("used on", "receiver's")]


class CountedStream:
    """Notes in which order it is given work, its iterations' ends, and who waits for them."""

    def __init__(self, name: str, done: list[str]) -> None:
        self.name, self._done, self._num_ends = name, done, 0

    def record_event(self, event: Any) -> Any:
        number, self._num_ends = self._num_ends, self._num_ends + 1
        self._done.append(f"{self.name} ends {number}")
        return SimpleNamespace(synchronize=lambda: self._done.append(f"wait for {self.name} {number}"))


def test_the_host_is_at_most_two_iterations_ahead_of_its_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    names = iter(["one", "two"])
    monkeypatch.setattr("fr_bench.workers.worker.own_stream", lambda *_: CountedStream(next(names), done))
    monkeypatch.setattr(Player, "on_stream", lambda self: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: None)
    play = Method.play

    def watched(self: Method, t: int) -> None:
        done.append(f"{self.module.k} plays {t}")
        play(self, t)

    monkeypatch.setattr(Method, "play", watched)
    plain = run_serial(tiny_config("fr", 2, max_steps=4), tmp_path)
    assert len(plain.losses) == 4
    assert done == [
        "1 plays 0", "2 plays 0", "one ends 0", "two ends 0",
        "1 plays 1", "2 plays 1", "one ends 1", "two ends 1",
        "1 plays 2", "2 plays 2", "one ends 2", "two ends 2", "wait for one 0", "wait for two 0",
        "1 plays 3", "2 plays 3", "one ends 3", "two ends 3", "wait for one 1", "wait for two 1",
    ]  # fmt: skip


def test_a_process_without_streams_of_its_own_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    monkeypatch.setattr(torch.cuda, "Event", events.append)
    lead = Lead([])
    for _ in range(5):
        lead.end_iteration()
    assert events == []
