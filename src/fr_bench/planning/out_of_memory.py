"""A device that is full: what the user is told, with the plan's own numbers."""

from __future__ import annotations

from collections.abc import Sequence

from fr_bench.errors import RunFailed
from fr_bench.planning.memory_table import memory_table
from fr_bench.planning.plan import Plan


def explain(plan: Plan, modules: Sequence[int], when: str, error: BaseException) -> RunFailed:
    """What to tell instead of ``error``.

    Args:
        modules: of the process that has no memory left.
        when: "in step 3", say.
    """
    first, last = modules[0], modules[-1]
    who = f"module {first}" if first == last else f"modules {first} to {last}, in one process,"
    reason = " ".join(str(error).split()) or type(error).__name__
    table = memory_table(plan)
    lines = [
        f"{who} ran out of memory {when}, on {plan.devices[first - 1]}: {reason}",
        *(["predicted with a full pipe, MiB:", *table] if len(table) > 1 else [f"the memory of this run {table[0]}"]),
        f"What lowers it: {'; '.join(_remedies(plan))}. dry_run=true predicts without training.",
    ]
    return RunFailed("\n".join(lines), first)


def _remedies(plan: Plan) -> list[str]:
    config = plan.config
    found = [f"a batch_size below {config['batch_size']}"]
    is_cut = plan.num_modules == plan.k  # or every process has the whole network
    if is_cut and plan.k < len(plan.block_names):
        found.append(f"more modules than k={plan.k}, each on a device of its own")
    if config["cuda_graphs"]:
        found.append("cuda_graphs=false, which lets passes use the same memory one after the other")
    if config["method"].get("checkpoint_activations") is False:
        found.append("method.checkpoint_activations=true, which computes every block twice")
    elif config["method"]["name"] == "ddg":
        found.append("method=fr, which keeps inputs instead of graphs")
    if plan.k > 1 and is_cut:
        found.append("partition=auto with memory_limit_gb set to what a device holds, which cuts accordingly")
    return found
