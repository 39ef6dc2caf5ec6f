"""The jobs of a sweep on Slurm: what hydra-submitit-launcher does, for jobs that differ and sweeps that last.

    submit: one job array for all jobs that ask for the same (GPUs from their own k, say)
    follow: jobs.jsonl tells how a job ended, squeue whether one that said nothing, or was interrupted, runs again
    end:    when every job has ended, however it did

The plugin by itself asks for the same for all jobs, gives up at the first job that Slurm ended, says nothing until
then, and where there is no sacct it waits for ever.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import DictConfig, OmegaConf, open_dict

from fr_bench.errors import ConfigError
from fr_bench.launching.resume import check_resume
from fr_bench.records.run_directory import RunDirectory
from fr_bench.settings.cluster import SLURM_LAUNCHER
from fr_bench.settings.compose import plain_config, register
from fr_bench.sweeps.outcomes import Outcome, OutcomeLog
from fr_bench.sweeps.slurm_queue import ENDED, check_commands, job_states, try_submission

POLL_S = 0.5
ASK_SLURM_S = 5.0
# A job's last word may take some time through a network file system.
LAST_WORD_S = 20.0
FORGOTTEN = "gone"  # of a job that Slurm knows no more
RESUMABLE = ("CANCELLED", "NODE_FAIL", "PREEMPTED", "TIMEOUT")


def install() -> None:
    """Has Hydra take our launcher where the config names the plugin's."""
    Plugins.instance().class_name_to_class[SLURM_LAUNCHER] = SweepLauncher


def check_submission(launchers: Sequence[dict[str, Any]], sweep_dir: Path) -> None:
    """Asks Slurm whether it would take the jobs.

    Args:
        launchers: of the jobs, each the resolved ``hydra.launcher``.
        sweep_dir: of the sweep.

    Raises:
        ConfigError: there is no Slurm here, it refuses a job, or jobs of an earlier start are still in its queue.
    """
    check_commands()
    states = job_states() or {}
    submitted = {path.name for path in (sweep_dir / ".submitit").glob("*")}
    queued = sorted(name for name in submitted & states.keys() if states[name] not in ENDED)
    if queued:
        raise ConfigError(
            f"{sweep_dir}: jobs of an earlier start of this sweep are still in Slurm's queue ({', '.join(queued)}); "
            "wait for them, or end them with scancel."
        )
    for parameters in {repr(launcher): launcher for launcher in launchers}.values():
        # What submitit would submit, but for the command. Not in its documented interface, hence the narrow extra.
        problem = try_submission(_executor(parameters)._executor._make_submission_file_text("true", "check"))
        if problem:
            asked = {key: parameters[key] for key in ("partition", "account", "qos", "gpus_per_node", "cpus_per_task")}
            asked |= {"mem_gb": parameters["mem_gb"], "timeout_min": parameters["timeout_min"]}
            words = ", ".join(f"{key}={value}" for key, value in asked.items() if value is not None)
            raise ConfigError(
                f"Slurm does not take these jobs: {problem}. Asked for: {words}. See cluster.partition, cluster.gpus "
                "(device=cpu asks for none), cluster.cpus, cluster.memory_gb, cluster.time."
            )


def _executor(parameters: dict[str, Any]) -> Any:
    """A submitit executor with the ``parameters`` of the plugin's config."""
    given = {key: value for key, value in parameters.items() if value is not None and key != "_target_"}
    folder, requeues = given.pop("submitit_folder"), given.pop("max_num_timeout")
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=requeues)
    shared = OmegaConf.structured(BaseQueueConf)
    try:
        executor.update_parameters(**{key if key in shared else f"slurm_{key}": given[key] for key in given})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"hydra.launcher: {error}") from error
    return executor


@dataclass
class Submitted:
    """A job in Slurm's hands.

    Attributes:
        outcome: what will be said of it if it says nothing itself.
        name: Slurm's, such as 12_3.
        log: what it prints.
        ended_at_s: when Slurm was first seen to have ended it (monotonic); None while it has not.
    """

    outcome: Outcome
    name: str
    log: Path
    ended_at_s: float | None = None


class SweepLauncher(SlurmLauncher):
    """See the top of the file. Blocks until every job has ended; the jobs do not need it while they run."""

    def __call__(self, *arguments: Any) -> JobReturn:
        """Runs a job, on the machine that Slurm chose."""
        register()  # a new process, and the names of folders are made with our resolvers
        return super().__call__(*arguments)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits the jobs, but not what is finished from an earlier start, and follows them to their ends."""
        assert self.config is not None
        log: OutcomeLog = self.task_function.outcomes
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        outcomes, groups = [], defaultdict(list)
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config.hydra.job):
                config.hydra.job.num = number
            run_dir = os.path.join(config.hydra.sweep.dir, config.hydra.sweep.subdir)
            outcomes.append(Outcome(number, list(overrides), run_dir))
            if (finished := finished_run(config, run_dir)) is not None:
                outcomes[-1].finish(finished.get("best_test_error"))
                log.add(outcomes[-1])
            else:
                asked = OmegaConf.to_container(config.hydra.launcher, resolve=True)
                groups[json.dumps(asked, sort_keys=True)].append(outcomes[-1])
        jobs = [job for asked, members in groups.items() for job in self._submit(json.loads(asked), members)]
        if jobs:
            arrays = sorted({job.name.partition("_")[0] for job in jobs}, key=int)
            print(
                f"In Slurm's queue: {len(jobs)} of {len(outcomes)} jobs, as {', '.join(arrays)}. They go on without "
                f"this command, which tells how they end; `scancel {' '.join(arrays)}` ends them. What they print: "
                f"{jobs[0].log.parent.parent}",
                flush=True,
            )
        follow(jobs, log)
        best = {outcome.number: outcome.best_test_error for outcome in log.read()}
        return [
            JobReturn(overrides=outcome.overrides, status=JobStatus.COMPLETED, _return_value=best[outcome.number])
            for outcome in outcomes
        ]

    def _submit(self, asked: dict[str, Any], outcomes: Sequence[Outcome]) -> list[Submitted]:
        """Submits jobs that ask for the same, as one array."""
        arguments = [
            (outcome.overrides, "hydra.sweep.dir", outcome.number, str(outcome.number), Singleton.get_state())
            for outcome in outcomes
        ]
        jobs = _executor(asked).map_array(self, *zip(*arguments, strict=True))
        return [Submitted(outcome, job.job_id, job.paths.stdout) for outcome, job in zip(outcomes, jobs, strict=True)]


def finished_run(config: DictConfig, run_dir: str) -> dict[str, Any] | None:
    """The summary of the run that ``config``, Hydra's part included, describes, if ``run_dir`` holds it finished."""
    found = RunDirectory(Path(run_dir)).find()
    if found is None or found.state != "finished" or config.resume == "never":
        return None
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)  # values may refer to ${hydra:...}
    try:
        check_resume(plain_config(config, run_dir))
    except ConfigError:  # of a run with another config: the job says so
        return None
    finally:
        HydraConfig.instance().cfg = before
    return found.summary


def follow(jobs: Sequence[Submitted], outcomes: OutcomeLog) -> None:
    """Prints a line for every job that ends, and returns when all have."""
    waiting = {job.outcome.number: job for job in jobs}
    last: dict[int | None, Outcome] = {}
    ask_at_s = time.monotonic() + ASK_SLURM_S
    while True:
        for outcome in outcomes.news():
            print(outcomes.line(outcome), flush=True)
            last[outcome.number] = outcome
            if outcome.state != "interrupted":
                waiting.pop(outcome.number, None)
        if not waiting:
            return
        time.sleep(POLL_S)
        if time.monotonic() < ask_at_s:
            continue
        states = job_states()
        ask_at_s = time.monotonic() + ASK_SLURM_S
        if states is None:
            continue
        for number, job in list(waiting.items()):
            state = states.get(job.name, FORGOTTEN)
            if state not in (*ENDED, FORGOTTEN):
                job.ended_at_s = None
                if state == "PENDING":  # it was requeued: what it said before is not its last word
                    last.pop(number, None)
                continue
            job.ended_at_s = job.ended_at_s or time.monotonic()
            if number in last:  # interrupted, and Slurm will not run it again
                waiting.pop(number)
            elif time.monotonic() > job.ended_at_s + LAST_WORD_S:
                code = 75 if state in RESUMABLE else 1
                job.outcome.fail(f"ended by Slurm ({state}); see {job.log}", code)
                outcomes.add(job.outcome)
