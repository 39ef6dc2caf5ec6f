"""What the leading process of a run makes of the events of all modules: their order, and the first cause of an end."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import Any

from fr_bench.errors import ConfigError, FrBenchError, RunFailed

Event = dict[str, Any]


class InOrder:
    """Events from several pipes, handed on in the order in which they happened: a cause before its effects.

    While one pipe is drained, another may get a cause, and a third its effect. So what happened since a drain began
    waits for the next one: of all else the causes are there.
    """

    def __init__(self) -> None:
        self._held_back: list[Event] = []

    def __bool__(self) -> bool:
        return bool(self._held_back)

    def add(self, event: Event) -> None:
        """Takes an event that was found in a drain."""
        self._held_back.append(event)

    def take(self, until_ns: int) -> list[Event]:
        """Hands on what happened until ``until_ns``, when the drain began."""
        self._held_back.sort(key=_time_ns)
        num_ready = bisect_right(self._held_back, until_ns, key=_time_ns)
        ready, self._held_back = self._held_back[:num_ready], self._held_back[num_ready:]
        return ready


def _time_ns(event: Event) -> int:
    return int(event["time_ns"])


def first_of_own(errors: list[Event]) -> Event | None:
    """The first error that is a module's own, not the loss of a neighbour; None without one."""
    own = sorted((event for event in errors if not event["peer_lost"]), key=_time_ns)
    if not own:
        return None
    diverged = [event for event in own if event["diverged_order"] is not None]
    if own[0] in diverged:  # what is not finite spreads: the earliest step counts, not who told first
        return min(diverged, key=lambda event: event["diverged_order"])
    return own[0]


def as_exception(event: Event, log: Path, when: str) -> FrBenchError:
    """The error that ``event`` tells of.

    Args:
        log: where its traceback is.
        when: in which step it happened, in words.
    """
    if event["is_config"]:
        return ConfigError(event["message"])
    module = event["module"]
    if event["is_expected"]:
        return RunFailed(event["message"], module)
    return RunFailed(f"module {module} failed {when}: {event['message']}; see {log}", module)
