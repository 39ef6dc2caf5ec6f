"""Which modules a run gives no step to learn in, because their first gradient would come after its end, whether any
module is left to learn, and which blocks no gradient reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fr_bench.methods.policy import Policy


def never_learning(
    config: dict[str, Any], policy: Policy, num_modules: int, steps_per_epoch: int, num_steps: int
) -> list[str]:
    """Lines of text, for the user; none where all modules learn, or were told not to (``freeze``), but not all of
    them."""
    if set(config["freeze"]) >= set(range(1, num_modules + 1)):
        return [f"no module ever learns: freeze={config['freeze']} has all of them."]
    starts_anew = policy.starts_anew and steps_per_epoch < num_steps
    stretch = steps_per_epoch if starts_anew else num_steps
    modules = [k for k in range(1, num_modules + 1) if policy.batch_delay(k, num_modules) >= stretch]
    modules = [k for k in modules if k not in config["freeze"]]
    if not modules:
        return []
    ends, remedy = f"the run has {stretch}", "more max_steps or epochs make it longer"
    if starts_anew:
        ends = f"an epoch has {stretch}, after which method.carry_history=false begins anew"
        remedy = "a smaller batch_size makes it longer"
    who = f"module {modules[0]} never learns" if len(modules) == 1 else f"modules {_listed(modules)} never learn"
    return [f"{who}: module k of {num_modules} learns from step {num_modules}-k+1 on, and {ends}; {remedy}."]


def without_gradient(config: dict[str, Any], unreached: Sequence[Sequence[str]]) -> list[str]:
    """A line of text for every module of which some blocks are ``unreached`` (see Network.unreached_blocks), but for
    those that are not to learn."""
    lines = []
    for k, names in enumerate(unreached, start=1):
        if names and k not in config["freeze"]:
            who = f"block '{names[0]}' gets" if len(names) == 1 else f"blocks {_listed([*map(repr, names)])} get"
            lines.append(
                f"module {k}: {who} no gradient and will not learn: what comes behind lets none through "
                "(torch.no_grad(), .detach(), .data or integers), or does not use it."
            )
    return lines


def _listed(items: Sequence[Any]) -> str:
    return f"{', '.join(map(str, items[:-1]))} and {items[-1]}"
