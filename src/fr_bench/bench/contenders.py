"""Who takes part: every method and peer for every K, planned and checked before anything runs."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fr_bench.bench.settings import BenchSettings, keys_of
from fr_bench.components import check_method
from fr_bench.errors import ConfigError, NoSuchChoice, nearest
from fr_bench.peers import PEERS, PIPELINES
from fr_bench.peers.task import CHUNKS
from fr_bench.planning.balance import Balance
from fr_bench.planning.plan import Plan, make_plan
from fr_bench.planning.tracing import batch_on_meta, blocks_on_meta

ConfigOf = Callable[[Sequence[str]], dict[str, Any]]  # further overrides -> resolved config


@dataclass(frozen=True)
class Contender:
    """Something that is timed.

    Attributes:
        words: as in ``bench.methods``.
        method: the first of them.
        k: modules, or processes of a peer.
        plan: of a method: its own; of a peer: that of BP with one module, for what both need to know.
        cuts: block indices; of a pipeline, one less than it has stages.
        num_microbatches: of a pipeline.
    """

    words: str
    method: str
    k: int
    plan: Plan
    cuts: tuple[int, ...] = ()
    num_microbatches: int | None = None

    @property
    def is_peer(self) -> bool:
        """Whether it is not one of fr-bench's methods."""
        return self.method in PEERS

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on GPUs."""
        return self.plan.devices[0] != "cpu"

    @property
    def shares_gpu(self) -> bool:
        """Whether modules share a GPU: then each one's time depends on what the others do, and limits say nothing."""
        return self.on_gpu and len(set(self.plan.devices)) < len(self.plan.devices)

    @property
    def size(self) -> int:
        """Processes."""
        return self.k if self.is_peer else self.plan.size

    @property
    def num_processes(self) -> int:
        """Fewer than modules where one process has several."""
        return self.k if self.is_peer else len(self.plan.numbers_by_process)

    @property
    def label(self) -> str:
        """For lines of progress and names of folders."""
        micro = "" if self.num_microbatches is None else f" M={self.num_microbatches}"
        return f"{self.words} K={self.k}{micro}"


def make_contenders(settings: BenchSettings, config_of: ConfigOf) -> list[Contender]:
    """All contenders in the order of ``bench.methods``, each for every K that it can have.

    A pipeline appears once for every number of micro-batches that divides the batch and that its schedule can use.

    Raises:
        ConfigError: for anything that could not run.
    """
    found: list[Contender] = []
    # BP, and BP with one module, first of all if nobody asked for it: every speed-up is over it.
    methods = settings.methods if "bp" in settings.methods else ["bp", *settings.methods]
    numbers = settings.k if 1 in settings.k else [1, *settings.k]
    for words in dict.fromkeys(methods):
        method, *own = words.split()
        ks = [1] if method == "plain" else [k for k in numbers if k > 1 or method == "bp"]
        for k in ks:
            found += _make(words, method, k, own, settings, config_of)
    return found


def _make(
    words: str, method: str, k: int, own: list[str], settings: BenchSettings, config_of: ConfigOf
) -> list[Contender]:
    is_peer = method in PEERS
    num_steps = settings.warmup + settings.steps
    modules = 1 if is_peer else k
    num_all = modules - 1 + num_steps + settings.profile  # the pipe fills first
    extent = [f"trace={num_steps}", f"profile={settings.profile}", f"max_steps={num_all}"]
    try:
        if is_peer and "replicas" in keys_of(own):
            raise ConfigError("replicas: are of methods' modules; a peer has as many processes as bench.k says.")
        plan = make_plan(config_of([f"method={'bp' if is_peer else method}", f"k={modules}", *own, *extent]))
        if plan.num_steps < num_all:
            raise ConfigError(
                f"epochs={plan.config['epochs']}: with {plan.steps_per_epoch} steps in each that is less than the "
                f"{num_all} steps of a round; use at least {-(-num_all // plan.steps_per_epoch)}"
            )
        plan = replace(plan, num_evaluation_images={})  # evaluations take no part
        if not is_peer:
            if k > 1 and plan.transport == "serial" and plan.devices[0] == "cpu":
                raise ConfigError("transport=serial: modules that take turns in one process have no speed to compare.")
            return [Contender(words, method, k, plan, tuple(plan.cuts))]
        _check_peer(method, k, plan, own)
        if method not in PIPELINES:
            return [Contender(words, method, k, plan)]
        return _pipelines(words, method, k, plan, settings)
    except ConfigError as error:
        if isinstance(error, NoSuchChoice) and error.group == "method":
            names = sorted({*error.options, *PEERS})
            raise ConfigError(
                f"in bench.methods, '{words}': there is no method or peer '{method}'.{nearest(method, names)} "
                f"Available: {', '.join(names)}."
            ) from error
        raise ConfigError(f"in bench.methods, '{words}' with K={k}: {error}") from error


def _check_peer(method: str, k: int, plan: Plan, own: Sequence[str]) -> None:
    config = plan.config
    if method != "plain" and plan.devices[0] != "cpu":
        raise ConfigError(
            f"device={config['device']}: {method} needs a GPU for each of its processes, on which bench has no way to "
            "run it; leave it out, or use device=cpu."
        )
    if method != "plain" and config["precision"] not in ("fp32", "fp64"):
        raise ConfigError(f"precision={config['precision']}: this peer runs in fp32 or fp64.")
    for key in ("compile", "cuda_graphs"):
        if config[key]:
            raise ConfigError(f"{key}=true: the peers run as they are; give it to methods alone, as 'fr {key}=true'.")
    of_methods = [key for key in ("clip_norm", "freeze", "module_lr") if config[key]]
    of_methods += [key for key in keys_of(own) if key.startswith("method.")]
    for key in of_methods:
        raise ConfigError(f"{key}: the peers do without, as they are; give it to methods alone, as 'bp {key}=...'.")
    if method == "ddp" and config["batch_size"] % k:
        raise ConfigError(f"batch_size={config['batch_size']}: cannot be shared equally by {k} processes.")


def _pipelines(words: str, method: str, k: int, plan: Plan, settings: BenchSettings) -> list[Contender]:
    batch_size, num_stages = plan.config["batch_size"], k * CHUNKS.get(method, 1)
    if num_stages > len(plan.block_names):
        raise ConfigError(f"{method} needs {num_stages} stages, and the model has {len(plan.block_names)} blocks.")
    numbers = [multiple * k for multiple in settings.microbatches if batch_size % (multiple * k) == 0]
    if not numbers:
        raise ConfigError(
            f"batch_size={batch_size}: none of K times bench.microbatches={settings.microbatches} divides it."
        )
    cuts = tuple(_balanced_cuts(plan, num_stages))
    return [Contender(words, method, k, plan, cuts, number) for number in numbers]


def _balanced_cuts(plan: Plan, num_stages: int) -> list[int]:
    """Cuts that balance forward and backward, as a pipeline's user would choose them."""
    config = {**plan.config, "k": num_stages}
    method, _ = check_method(config["method"])
    blocks, x = blocks_on_meta(config, plan.sample), batch_on_meta(config, plan.sample)
    devices = plan.devices * num_stages
    return Balance(config, method, {}, blocks, x, plan.sample, devices, plan.threads, "gloo").cuts()


def crowded(contenders: Sequence[Contender]) -> str | None:
    """A line that tells how many processes have more threads together than there are cores; None if all fit.

    Processes, not K: replicas multiply them. Those on GPUs have other things to do than to compute.
    """
    cores = len(os.sched_getaffinity(0))
    sizes = defaultdict[int, list[int]](list)  # by the threads of each process, which may stand behind a name
    for each in contenders:
        if not each.on_gpu and each.size * each.plan.threads > cores:
            sizes[each.plan.threads].append(each.size)
    if not sizes:
        return None
    found = [
        f"{min(some)} {'process' if min(some) == 1 else 'processes'} and more with threads={threads}"
        for threads, some in sorted(sizes.items())
    ]
    return f"{', '.join(found)} have more threads than there are cores: they share cores."
