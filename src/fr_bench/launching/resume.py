"""Whether a run goes on from an earlier one, and from where.

resume=auto      an unfinished run of the same config in run_dir goes on; without one it starts there
resume=never     starts anew in a new directory
resume=RUN_DIR   starts in a new directory from the last checkpoint of the run in RUN_DIR; a run in run_dir that
                 did so before and is unfinished goes on, so that the same command can be repeated; one that did
                 not is refused
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fr_bench.checkpoints.files import (
    Checkpoint,
    DamagedCheckpoint,
    newest_good,
    read_manifest,
    whole_folders,
)
from fr_bench.components import bind
from fr_bench.errors import ConfigError
from fr_bench.launching.differences import MOVABLE, differences, have_one_method, refuse_differences
from fr_bench.launching.origin import NAME as ORIGIN
from fr_bench.planning.own_code import Code, changed_since, code_history, describe_code
from fr_bench.planning.plan import Plan, make_plan
from fr_bench.records.run_directory import FoundRun, RunDirectory
from fr_bench.records.run_files import read_json
from fr_bench.workers.resumption import Resumption, has_whole_pipe

Complain = Callable[[str], None]


@dataclass(frozen=True)
class Start:
    """How a run begins.

    Attributes:
        plan: with the cuts of the run it goes on from.
        finished: the summary of the run in its directory, if that is finished; then there is nothing to do.
        found: the unfinished run in its directory, if there is one.
        resumption: None to begin at the beginning.
        source: the run whose records come first, None if there are none.
        code_before: the user's own code that made the steps before, the oldest first; without what is there now.
        notes: for the user, in whole sentences.
    """

    plan: Plan | None = None
    finished: dict[str, Any] | None = None
    found: FoundRun | None = None
    resumption: Resumption | None = None
    source: Path | None = None
    code_before: list[Code] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def description(self) -> dict[str, Any]:
        """What other processes need to begin likewise, as JSON."""
        return {
            "cuts": None if self.plan is None else self.plan.cuts,
            "resumption": None if self.resumption is None else self.resumption.description(),
        }


def check_resume(config: dict[str, Any]) -> None:
    """Finds what of ``resume`` and ``run_dir`` does not go together, without reading more of a checkpoint than its
    manifest.

    Raises:
        ConfigError: naming what differs, or what is missing.
    """
    directory = RunDirectory(Path(config["run_dir"]))
    if config["resume"] == "never":
        directory.refuse_any()
        return
    found = directory.find()
    if found is not None:
        _refuse_other_run(found, config, directory)
    elif _names_a_run(config) and (manifest := _newest_manifest(_find_source(config))):
        _refuse_other_settings(manifest, config)


def is_done(config: dict[str, Any]) -> bool:
    """Whether the run in ``run_dir``, which check_resume has found to be that of ``config``, is finished."""
    found = RunDirectory(Path(config["run_dir"])).find() if config["resume"] != "never" else None
    return found is not None and found.state == "finished"


def check_end(config: dict[str, Any], num_steps: int) -> None:
    """Finds a run of ``num_steps`` that would end before the checkpoint that it is to begin from, as check_resume does.

    Raises:
        ConfigError: it would.
    """
    if not _names_a_run(config) or RunDirectory(Path(config["run_dir"])).find() is not None:
        return
    source = _find_source(config)
    if manifest := _newest_manifest(source):
        _refuse_behind_the_end(source, manifest["step"], num_steps)


def decide(config: dict[str, Any], directory: RunDirectory, complain: Complain) -> Start:
    """Decides how the run that ``config`` (resolved, plain) describes begins; changes nothing.

    Args:
        complain: is told of checkpoints that cannot be used.

    Raises:
        ConfigError: a mistake in the config; a run in its directory that differs, that is alive, or that has
            checkpoints of which none can be used.
    """
    found = directory.find() if config["resume"] != "never" else None
    if found is not None:
        _refuse_other_run(found, config, directory)
        if found.state == "finished":
            return Start(finished=found.summary, notes=_made_by_other_code(config, directory.path))
        directory.refuse_if_alive(found)
        start = _go_on(config, found, directory, complain)
        if start.resumption is not None or config["resume"] == "auto":
            return start
    if not _names_a_run(config):
        return Start(make_plan(config))
    return dataclasses.replace(_take_over(config, complain), found=found)


def _go_on(config: dict[str, Any], found: FoundRun, directory: RunDirectory, complain: Complain) -> Start:
    """With the run in its own directory."""
    cuts = found.plan.get("cuts")
    plan = plan_with_cuts(config, cuts) if cuts is not None else make_plan(config)

    def mismatch(manifest: dict[str, Any]) -> str | None:
        if manifest["cuts"] != plan.cuts or manifest["blocks"] != plan.block_names:
            return "is of another model or other cuts"
        differing = differences(manifest["config"], config)
        return f"is of another config: {'; '.join(differing)}" if differing else None

    folder, mode = directory.checkpoints, os.R_OK | os.X_OK
    if folder.is_dir() and not os.access(folder, mode, effective_ids=True):  # it would seem empty
        raise ConfigError(f"run_dir={directory.path}: {folder} cannot be read: Permission denied.")
    checkpoint = newest_good(folder, complain, mismatch)
    if checkpoint is None and whole_folders(directory.checkpoints):
        raise ConfigError(
            f"run_dir={directory.path}: none of the run's checkpoints can be used. To begin anew choose another "
            f"run_dir, or move {directory.checkpoints} away; the records of the steps before are lost then."
        )
    if checkpoint is None:
        return Start(plan, found=found, notes=["The run there has no checkpoint: it starts anew."])
    where, advice = f"run_dir={directory.path}", "choose another run_dir"
    _refuse_other_length(found.plan, plan, where, advice)
    if _has_other_labels(found.plan, plan):
        raise ConfigError(
            f"{where}: the data set has changed since the run there began: its labels are others, or in another order; "
            f"put back what was there, or {advice}, where resume={directory.path} goes on with what is there now."
        )
    notes = _moved(found.plan, plan)
    return _start(plan, checkpoint, found, directory.path, notes, has_trace=directory.trace.exists())


def _take_over(config: dict[str, Any], complain: Complain) -> Start:
    """From a run in another directory."""
    source = _find_source(config)
    checkpoint = newest_good(source.checkpoints, complain)
    if checkpoint is None:
        raise ConfigError(f"resume={source.path}: has no checkpoint that can be used.")
    _refuse_other_settings(checkpoint.manifest, config)
    same_cuts = have_one_method(checkpoint.manifest["config"], config) and checkpoint.k == config["k"]
    plan = plan_with_cuts(config, checkpoint.manifest["cuts"]) if same_cuts else make_plan(config)
    _refuse_behind_the_end(source, checkpoint.step, plan.num_steps)
    there = source.find()
    plan_there = {} if there is None else there.plan
    _refuse_other_length(plan_there, plan, f"resume={source.path}", "begin anew, with resume=auto")
    notes = []
    if _has_other_labels(plan_there, plan):
        notes.append("The data set has changed since that run began: its labels are others, or in another order.")
    notes += _recast(checkpoint, plan) + _rescheduled(checkpoint, plan)
    return _start(plan, checkpoint, None, source.path, notes)


def _start(
    plan: Plan,
    checkpoint: Checkpoint,
    found: FoundRun | None,
    source: Path,
    notes: list[str],
    has_trace: bool = False,
) -> Start:
    """``notes``: what else to tell of it."""
    notes = [f"Goes on after step {checkpoint.step} of {plan.num_steps}, from {checkpoint.folder}.", *notes]
    has_pipe = has_whole_pipe(checkpoint.manifest["modules"])
    if not has_pipe:
        notes.append(
            f"What method={plan.config['method']['name']} keeps or has in flight cannot be saved with these settings: "
            "it resumes with an empty pipe, weights and optimizer as they were."
        )
    history, now = _code_of(checkpoint, source), describe_code(plan.config)
    if changed := changed_since(history, now):
        began = "that run began: this one goes on" if found is None else "this run began: it goes on"
        notes.append(f"The code of {changed} has changed since {began} with what is there now.")
    code_before = history[:-1] if history[-1:] == [now] else history
    is_exact = has_pipe and has_modules_of(checkpoint, plan)
    resumption = Resumption(checkpoint, is_exact, has_trace, is_own=found is not None)
    return Start(plan, found=found, resumption=resumption, source=source, code_before=code_before, notes=notes)


def _code_of(checkpoint: Checkpoint, source: Path) -> list[Code]:
    """The user's own code that made the steps until ``checkpoint``, the oldest first. env.json, the word of older
    versions, has also that of an attempt which made no step that is left."""
    told = checkpoint.manifest.get("code")
    return code_history(read_json(source / "env.json")) if told is None else told


def _made_by_other_code(config: dict[str, Any], finished: Path) -> list[str]:
    changed = changed_since(code_history(read_json(finished / "env.json")), describe_code(config))
    if changed is None:
        return []
    return [f"{finished} was made by other code of {changed} than is there now; remove {finished} to run it again."]


def has_modules_of(checkpoint: Checkpoint, plan: Plan) -> bool:
    """Whether what the modules kept at ``checkpoint`` is what those of ``plan`` go on with."""
    are_as_many = (checkpoint.k, checkpoint.replicas) == (plan.k, plan.config["replicas"])
    return are_as_many and have_one_method(checkpoint.manifest["config"], plan.config)


def plan_with_cuts(config: dict[str, Any], cuts: list[int]) -> Plan:
    """The plan of ``config`` with ``cuts``, whatever the partition would say today."""
    return dataclasses.replace(make_plan({**config, "partition": cuts}), config=config)


def _moved(before: dict[str, Any], plan: Plan) -> list[str]:
    now = plan.description()
    changed = [
        f"{key} {before[key]} is now {now[key]}"
        for key in ("devices", "transport", "threads")
        if key in before and before[key] != now[key]
    ]
    return [f"The machine differs, and with it the last bits may: {'; '.join(changed)}."] if changed else []


def _refuse_other_length(before: dict[str, Any], plan: Plan, where: str, advice: str) -> None:
    """The settings are the same: where an epoch has another number of steps the data set is another one."""
    there, here = before.get("steps_per_epoch", plan.steps_per_epoch), plan.steps_per_epoch
    if there != here:
        raise ConfigError(
            f"{where}: the data set has changed since the run there began: an epoch had {there} steps, and has {here} "
            f"now; put back what was there, or {advice}."
        )


def _has_other_labels(before: dict[str, Any], plan: Plan) -> bool:
    """Of runs of older versions, which kept nothing of them, it is not known."""
    there, here = before.get("label_digest"), plan.label_digest
    return there is not None and here is not None and there != here


def _recast(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """Says where the modules are not those of the checkpoint, so that what these kept is of no use."""
    if has_modules_of(checkpoint, plan):
        return []
    before, config = checkpoint.manifest["config"], plan.config
    then, now = [f"k={checkpoint.k}"], [f"k={plan.k}"]
    if checkpoint.replicas != config["replicas"]:
        then, now = [*then, f"replicas={checkpoint.replicas}"], [*now, f"replicas={config['replicas']}"]
    if not have_one_method(before, config):
        name_then, name = before["method"]["name"], config["method"]["name"]
        others = " with other settings" if name_then == name else ""
        then, now = [f"method={name_then}{others}", *then], [f"method={name}", *now]
    return [
        f"That run had {', '.join(then)}: weights and optimizer are taken, the method begins anew with "
        f"{', '.join(now)}."
    ]


def _rescheduled(checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """Says where the schedule, which may depend on ``epochs``, goes on with another factor than it had there."""
    there, here, t = checkpoint.manifest["config"]["epochs"], plan.config["epochs"], checkpoint.step
    if there == here or t >= plan.num_steps:
        return []
    schedule = bind(plan.config["schedule"])()  # the same there: settings that may not change were compared
    before, now = (schedule.factor(t, plan.steps_per_epoch, epochs) for epochs in (there, here))
    if before == now:
        return []
    return [
        f"The schedule depends on epochs, {there} there and {here} here: in the next step, {t + 1}, its factor on the "
        f"learning rate is {now:.4g}, where that run's would be {before:.4g}."
    ]


def _names_a_run(config: dict[str, Any]) -> bool:
    """Whether ``resume`` is the directory of another run."""
    return config["resume"] not in ("auto", "never")


def _find_source(config: dict[str, Any]) -> RunDirectory:
    source = RunDirectory(Path(config["resume"]))
    if not os.path.isdir(source.checkpoints):  # which raises for no name, however long
        raise ConfigError(
            f"resume={config['resume']}: must be auto, never or the directory of a run with checkpoints; "
            f"there is no folder {source.checkpoints}."
        )
    return source


def _newest_manifest(source: RunDirectory) -> dict[str, Any] | None:
    """Of the checkpoint that a run would begin from, if its files are whole; None without any."""
    for folder in whole_folders(source.checkpoints):
        with contextlib.suppress(DamagedCheckpoint):
            return read_manifest(folder)
    return None


def _refuse_other_settings(manifest: dict[str, Any], config: dict[str, Any]) -> None:
    where = f"resume={config['resume']}"
    refuse_differences(manifest["config"], config, where, may_change=MOVABLE, cuts=manifest["cuts"])


def _refuse_behind_the_end(source: RunDirectory, step: int, num_steps: int) -> None:
    found = source.find()
    is_done = step == num_steps and found is not None and found.state == "finished"
    if step > num_steps or is_done:
        raise ConfigError(
            f"resume={source.path}: its checkpoint is after step {step}, this run ends after {num_steps}; more epochs "
            "(or max_steps) make it longer."
        )


def _refuse_other_run(found: FoundRun, config: dict[str, Any], directory: RunDirectory) -> None:
    if found.config:
        refuse_differences(found.config, config, f"run_dir={directory.path}")
    elif found.state == "finished":  # another one may have been killed before it wrote its config
        raise ConfigError(
            f"run_dir={directory.path}: holds a finished run without config.yaml, which may be any run; put that file "
            "back, or choose another run_dir."
        )
    _refuse_other_origin(found, config, directory)


def _refuse_other_origin(found: FoundRun, config: dict[str, Any], directory: RunDirectory) -> None:
    """With ``resume=RUN_DIR`` a run that is there already must have taken over from that one."""
    if not _names_a_run(config):
        return
    asked, was = os.path.realpath(config["resume"]), read_json(directory.path / ORIGIN).get("run")
    has_begun = found.state == "finished" or directory.checkpoints.is_dir()
    if has_begun and (was is None or os.path.realpath(was) != asked) and asked != os.path.realpath(directory.path):
        took_over = "began by itself" if was is None else f"took over from {was}"
        raise ConfigError(
            f"resume={config['resume']}: run_dir={directory.path} holds a run that {took_over}; choose another "
            "run_dir, or resume=auto to go on with the one that is there."
        )
