"""origin.json: the other run from which a run with ``resume=RUN_DIR`` took over, and where.

The steps until then, and the seconds of the training clock, are the other run's. config.yaml does not say where they
end nor with which settings they were made, and the other run may be gone when someone reads this one.

``in_one_piece`` says that they are the steps that this run would have made itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fr_bench.components import bind
from fr_bench.launching.differences import have_one_method
from fr_bench.planning.plan import Plan, count_steps
from fr_bench.records.reading import Record
from fr_bench.records.run_files import read_json, strict_json, write_text
from fr_bench.settings.comparison import flat

if TYPE_CHECKING:
    from fr_bench.launching.resume import Start

NAME = "origin.json"


def settle_origin(start: Start, plan: Plan, folder: Path) -> Record:
    """Writes the run's origin into ``folder`` if it takes over now, and returns it; empty if all of it is its own."""
    path = folder / NAME
    if start.resumption is None:
        path.unlink(missing_ok=True)
    elif start.source is not None and start.source != folder:
        write_text(path, strict_json(_describe(start, plan), indent=2) + "\n")
    return read_json(path)


def _describe(start: Start, plan: Plan) -> Record:
    assert start.resumption is not None and start.source is not None
    checkpoint = start.resumption.checkpoint
    config = checkpoint.manifest["config"]
    origin = read_json(start.source / NAME) or None
    was_alike = start.resumption.is_exact and _same_rates(config["epochs"], plan, checkpoint.step)
    return {
        "run": str(start.source.absolute()),
        "step": checkpoint.step,
        "epoch": checkpoint.step / plan.steps_per_epoch,
        "train_time": checkpoint.manifest["train_time"],
        "method": config["method"]["name"],
        "k": checkpoint.k,
        "replicas": checkpoint.replicas,
        "num_steps": count_steps(config, plan.num_train)[1],
        "is_exact": start.resumption.is_exact,
        "in_one_piece": was_alike and (origin is None or origin.get("in_one_piece") is True),
        # What may have been otherwise there, and decided what the steps until then did.
        "settings": {
            "cuts": checkpoint.manifest["cuts"],
            **{key: config.get(key) for key in ("epochs", "freeze", "module_lr")},
            **({} if have_one_method(config, plan.config) else flat({"method": config["method"]})),
        },
        "origin": origin,
    }


def _same_rates(epochs: int, plan: Plan, num_steps: int) -> bool:
    """Whether a schedule of ``epochs`` has the learning rates of the plan's own in the first ``num_steps``."""
    schedule, own = bind(plan.config["schedule"])(), plan.config["epochs"]
    n = plan.steps_per_epoch
    return epochs == own or all(schedule.factor(t, n, epochs) == schedule.factor(t, n, own) for t in range(num_steps))
