"""In what the configs of two runs differ, and which of that makes another run."""

from __future__ import annotations

import json
from typing import Any

from fr_bench.errors import ConfigError
from fr_bench.records.run_files import strict_json
from fr_bench.settings.comparison import LOGGING, SINCE_LATER, flat, wherever_data_lie

# A run that goes on in a new directory may also change these; and with another k, or method, what goes with k.
MOVABLE = (
    "method", "epochs", "max_steps", "k", "replicas", "transport", "device", "devices", "threads", "cuda_graphs",
    "streams", "diagnostics",
)  # fmt: skip
BOUND_TO_K = ("partition", "module_lr", "freeze", "memory_limit_gb")
MOST_SHOWN = 6  # of the differences, in a message


def refuse_differences(
    before: dict[str, Any],
    now: dict[str, Any],
    where: str,
    may_change: tuple[str, ...] = (),
    cuts: list[int] | None = None,
) -> None:
    """Raises ConfigError where ``where`` holds another run than ``now``; see :func:`differences`."""
    found = differences(before, now, may_change, cuts)
    if not found:
        return
    advice = "use its settings, or choose another run_dir"
    if not {each.partition(" is ")[0].partition(".")[0] for each in found} - {*MOVABLE}:
        advice += ", in which resume=RUN_DIR, with this one, goes on from its last checkpoint"
    if may_change:
        advice = f"only {', '.join(may_change)} and what is logged may change"
    raise ConfigError(f"{where}: holds a run with other settings: {in_short(found)}; {advice}.")


def in_short(found: list[str]) -> str:
    """The first of several differences, and how many more there are."""
    rest = [f"and {len(found) - MOST_SHOWN} more"] if len(found) > MOST_SHOWN else []
    return "; ".join([*found[:MOST_SHOWN], *rest])


def differences(
    before: dict[str, Any], now: dict[str, Any], may_change: tuple[str, ...] = (), cuts: list[int] | None = None
) -> list[str]:
    """In what ``now`` is another run than ``before``: ``optimizer.lr is 0.1 there and 0.2 here``.

    Args:
        before, now: configs, resolved and plain. A key that an older config does not have is the same as a null, or as
            what SINCE_LATER says. Where the data of our own loaders lie is no difference.
        may_change: top-level keys beside LOGGING.
        cuts: that ``before`` came to: asking for them is no difference.
    """
    ignored = {*LOGGING, *may_change}
    has_other_k = "k" in may_change and before.get("k") != now["k"]
    if has_other_k or ("method" in may_change and not have_one_method(before, now)):
        ignored |= set(BOUND_TO_K)
    if cuts is not None and now["partition"] == cuts:
        ignored.add("partition")
    before, now = map(wherever_data_lie, (before, now))
    before, now = ({key: value for key, value in each.items() if key not in ignored} for each in (before, now))
    return plain_differences(before, now)


def have_one_method(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two configs have the same method with the same settings."""
    return not plain_differences(before["method"], now["method"])


def plain_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """All of them, one a setting, in words."""
    flat_before, flat_now = (flat(json.loads(strict_json(each))) for each in (before, now))
    found = []
    for key in dict.fromkeys([*flat_now, *flat_before]):
        there, here = (each.get(key, SINCE_LATER.get(key)) for each in (flat_before, flat_now))
        if there != here:
            found.append(f"{key} is {json.dumps(there)} there and {json.dumps(here)} here")
    return found
