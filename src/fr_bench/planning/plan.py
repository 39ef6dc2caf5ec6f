"""Everything about a run that can be decided, or found wrong, before a process is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any

from fr_bench.components import bind, check_callable, check_method, check_optimizer, refusing
from fr_bench.data import COMMON_KEYS, Outline, SampleSpec, build_dataset, outline_dataset, prepare_dataset
from fr_bench.errors import ConfigError
from fr_bench.methods.base import Method
from fr_bench.methods.policy import Policy
from fr_bench.modules.module import Place
from fr_bench.planning.balance import Balance
from fr_bench.planning.checks import check_labels, check_messages, check_replicas, what_it_says
from fr_bench.planning.compilation import check_captured_blocks, check_compile, check_compiler, check_cuda_graphs
from fr_bench.planning.memory_model import MemoryModel, ModuleShapes, unpredictable
from fr_bench.planning.never_learning import never_learning, without_gradient
from fr_bench.planning.partition import check_num_modules, module_slices, module_table
from fr_bench.planning.site import find_site, site_elsewhere
from fr_bench.planning.tracing import batch_on_meta, blocks_on_meta, ring_bytes, trace_modules
from fr_bench.planning.transport_choice import check_precision
from fr_bench.training.extent import Extent


@dataclass(frozen=True)
class Plan:
    """What the parent decided; plain data, handed to every process as it is.

    Attributes:
        config: the resolved config.
        cuts: K-1 block indices; none where every process has the whole network.
        block_names: all blocks in order.
        devices: of modules 1..K, replica by replica (see ``number_of``).
        transport: by name, never ``auto``.
        transport_reason: why this one.
        threads: CPU threads of a module.
        steps_per_epoch: full batches in the training set.
        num_steps: iterations of the whole run.
        sample: what one of the data set is like.
        num_train: training samples.
        num_evaluation_images: by the name of the set: ``test``, and ``validation`` where there is one.
        num_parameters: of modules 1..K, replica by replica, as all that follows by module.
        expected_share: by module, expected busy time a mini-batch over that of the slowest (see costs.py).
        staleness: by module, how old the batch and the weights of a gradient are (see Policy.staleness).
        targets_everywhere: whether modules below the top draw labels too.
        predicted_memory: by module, bytes by category (see categories.py); empty where it is unpredictable, and
            for methods whose policy does not tell.
        uses_link: whether the modules need channels (see Method.uses_link).
        num_parts: of a replica's share of a batch: how many a module sees one after the other.
        recomputes: whether the networks keep block inputs alone, and recompute each block in the backward.
        num_replicas: how often the network is there, each with its share of every batch: ``replicas`` of the config,
            or the processes of a method that cuts nothing.
        warnings: for the user, in whole sentences: what was asked for and can be had, but hardly is what was meant.
        label_digest: of the labels (see Dataset), which all processes that load them compare, and runs that go on; None
            in a dry run.

    With several replicas the modules of all of them are numbered through: module k of replica d is number
    (d - 1) K + k. Records, files and messages say these numbers.
    """

    config: dict[str, Any]
    cuts: list[int]
    block_names: list[str]
    devices: list[str]
    transport: str
    transport_reason: str
    threads: int
    steps_per_epoch: int
    num_steps: int
    sample: SampleSpec
    num_train: int
    num_evaluation_images: dict[str, int]
    num_parameters: list[int]
    expected_share: list[float]
    staleness: list[dict[str, int]]
    targets_everywhere: bool
    predicted_memory: list[dict[str, int]]
    uses_link: bool = True
    num_parts: int = 1
    recomputes: bool = False
    num_replicas: int = 1
    warnings: Sequence[str] = ()
    label_digest: str | None = None

    @property
    def k(self) -> int:
        """The config's: modules of a replica, or processes of a method that cuts nothing."""
        return int(self.config["k"])

    @property
    def size(self) -> int:
        """How many modules there are in all replicas together: the largest number."""
        return len(self.devices)

    @property
    def num_modules(self) -> int:
        """Of a replica."""
        return self.size // self.num_replicas

    def place_of(self, number: int) -> Place:
        """Which module of which replica ``number`` is."""
        replica, index = divmod(number - 1, self.num_modules)
        return Place(index + 1, self.num_modules, number, replica + 1, self.num_replicas)

    @property
    def block_ranges(self) -> list[slice]:
        """The blocks of every module, by number."""
        return module_slices(self.cuts, len(self.block_names)) * self.num_replicas

    @property
    def numbers_by_process(self) -> list[list[int]]:
        """The numbers of each process's modules: all in one under ``serial``, else one each."""
        numbers = list(range(1, self.size + 1))
        return [numbers] if self.transport == "serial" else [[number] for number in numbers]

    def headlines(self) -> list[str]:
        """Lines of text: where the network is cut, into what, how the modules are linked, and what comes first."""
        blocks = f"block{'s' if len(self.cuts) > 1 else ''} {', '.join(map(str, self.cuts))}"
        what = f"{self.num_modules} modules, cut after {blocks}" if self.cuts else "the whole network"
        if self.num_replicas > 1:
            what = f"{self.num_replicas} replicas of {what}"
        elif not self.cuts:
            what = f"1 module, {what}"
        lines = [
            f"{what}, on {', '.join(self.devices)}",
            *module_table(self.block_ranges, self.block_names, self.num_parameters, self.expected_share),
            f"transport {self.transport}: {self.transport_reason}; "
            f"{self.threads} thread{'s' if self.threads > 1 else ''} a module",
        ]
        if self.config["compile"]:
            lines.append("compile=true: before the first step every block is compiled, which may take minutes")
        return lines

    def description(self) -> dict[str, Any]:
        """What config.yaml and W&B say about the plan, beside the config itself."""
        return {
            "cuts": self.cuts,
            "num_replicas": self.num_replicas,
            "devices": self.devices,
            "transport": self.transport,
            "threads": self.threads,
            "steps_per_epoch": self.steps_per_epoch,
            "num_steps": self.num_steps,
            "label_digest": self.label_digest,
            "num_parameters": self.num_parameters,
            "expected_share": self.expected_share,
            "staleness": self.staleness,
            "predicted_memory": self.predicted_memory,
        }


def make_plan(config: dict[str, Any], *, runs_here: bool = True, fetches: bool = True) -> Plan:
    """Plans the run that ``config`` (resolved, plain) describes.

    Downloads the data set if it may, once nothing else is wrong; for a dry run nothing is downloaded.

    Args:
        config: of the run.
        runs_here: whether on this machine. If not, its devices are nobody's business here, and the plan is as if they
            were CPUs, with analytic costs: what depends on them the run itself finds.
        fetches: whether the data set is looked at; if not, its sizes are those that it declares, if it does.

    Raises:
        ConfigError: whatever is wrong with it, naming the key.
    """
    declared = outline_dataset(config["dataset"])
    if declared is None:
        return _plan_with(config, fetch_dataset(config), runs_here)
    plan = _plan_with(config, declared, runs_here)
    if config["dry_run"] or not fetches:
        return plan
    found = fetch_dataset(config)
    return replace(plan, label_digest=found.label_digest) if found == declared else _plan_with(config, found, runs_here)


def _plan_with(config: dict[str, Any], dataset: Outline, runs_here: bool) -> Plan:
    if config["batch_size"] > dataset.num_train:
        raise ConfigError(
            f"batch_size={config['batch_size']}: the training set has {dataset.num_train} images, so no full batch "
            f"ever forms; use at most {dataset.num_train}"
        )
    k, replicas = config["k"], config["replicas"]
    check_components(config)
    method, hyper_parameters = check_method(config["method"])
    policy, needs_targets = what_it_says(method, hyper_parameters)
    limit_gb, unknown = config["memory_limit_gb"], unpredictable(config)
    if limit_gb is not None and unknown is not None:
        raise ConfigError(f"memory_limit_gb={limit_gb:g}: memory is not predicted {unknown}; leave it out")
    sample = dataset.sample
    blocks = blocks_on_meta(config, sample)
    check_replicas(config, replicas, method)
    if not policy.replicates:
        check_num_modules(k, len(blocks))
    elif k > config["batch_size"]:
        raise ConfigError(f"k={k}: more processes than a batch has images, {config['batch_size']}")
    site = find_site(config, method) if runs_here else site_elsewhere(config, method)
    check_precision(config["precision"], site.known_devices)
    if k > 1:
        check_labels(config, method, hyper_parameters, sample)
    check_compile(config, method, policy)
    if runs_here:
        check_compiler(config, site.devices)
    check_cuda_graphs(config, method, policy, site.known_devices)
    transport, _ = site.transport(0)
    method.check_run(config, transport=transport, on_gpu=site.devices[0] != "cpu", **hyper_parameters)
    num_replicas = k if policy.replicates else replicas
    num_at_once = config["batch_size"] // policy.num_microbatches
    batch, x = (batch_on_meta(config, sample, num) for num in (num_at_once, num_at_once // num_replicas))
    balance = Balance(
        config, method, hyper_parameters, blocks, batch, sample, site.devices, site.threads, transport,
        site.num_per_machine, runs_here, share=x,
    )  # fmt: skip
    cuts = balance.cuts()
    shapes = trace_modules(config, blocks, cuts, x, sample, site.devices[0], method.sends_gradients)
    check_captured_blocks(config, chain.from_iterable(module.drawing_blocks for module in shapes))
    transport, reason = site.transport(num_replicas * ring_bytes(shapes, method.sends_gradients))
    check_messages(cuts, shapes, transport)
    predicted_memory = predict_modules(config, shapes, method, hyper_parameters, transport, sample.num_classes)
    shapes, predicted_memory = shapes * num_replicas, predicted_memory * num_replicas
    balance.check_limit(predicted_memory)
    is_predictable = policy.is_predictable and unknown is None
    num_modules = len(site.devices) // num_replicas
    steps_per_epoch, num_steps = count_steps(config, dataset.num_train)
    evaluated = {"test": dataset.num_test, "validation": dataset.num_validation}
    return Plan(
        config=config,
        cuts=cuts,
        block_names=[name for name, _ in blocks],
        devices=site.devices,
        transport=transport,
        transport_reason=reason,
        threads=site.threads,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        sample=sample,
        label_digest=dataset.label_digest,
        num_train=dataset.num_train,
        num_evaluation_images={name: number for name, number in evaluated.items() if number},
        num_parameters=[sum(p.numel() for p in module.parameters) for module in shapes],
        expected_share=balance.shares(cuts),
        staleness=policy.staleness(num_modules) * num_replicas,
        targets_everywhere=needs_targets,
        predicted_memory=predicted_memory if is_predictable else [{} for _ in site.devices],
        uses_link=method.uses_link,
        num_parts=policy.num_microbatches,
        recomputes=policy.recomputes,
        num_replicas=num_replicas,
        warnings=_warnings(config, policy, shapes[:num_modules], steps_per_epoch, num_steps),
    )


def _warnings(
    config: dict[str, Any], policy: Policy, shapes: Sequence[ModuleShapes], steps_per_epoch: int, num_steps: int
) -> list[str]:
    """See :class:`Plan`; ``shapes`` are those of modules 1..K."""
    num_modules = len(shapes)
    warnings = without_gradient(config, [module.unreached_blocks for module in shapes])
    warnings += never_learning(config, policy, num_modules, steps_per_epoch, num_steps)
    extent = Extent.of(config, num_steps, steps_per_epoch, Path(), has_trace=False)
    if (num_profiled := len(extent.to_profile(0, num_modules))) < config["profile"]:
        warnings.append(
            f"profile={config['profile']}: but {num_profiled} of the run's {num_steps} steps are profiled; it is too "
            "short for more beside those that are traced."
        )
    sigma = config["diagnostics"]["sigma"]
    full = 1 + max(delays["batch_delay"] for delays in policy.staleness(num_modules))
    if sigma["every"] and (end := full - 1 + sigma["window"]) > num_steps:
        warnings.append(
            f"diagnostics.sigma.window={sigma['window']}: but none is measured; the first, from step {full} on, with a "
            f"full pipe, would end with step {end}, and the run has {num_steps}."
        )
    if config["cuda_graphs"] and config["partition"] == "measured":
        warnings.append(
            "partition=measured: kernels were timed as the host launches them one by one; modules that launch CUDA "
            "graphs may be less balanced than with partition=auto."
        )
    return warnings


def count_steps(config: dict[str, Any], num_train: int) -> tuple[int, int]:
    """Of an epoch, which drops a last batch that is not full; and of the whole run."""
    steps_per_epoch = num_train // config["batch_size"]
    num_steps = config["epochs"] * steps_per_epoch
    return steps_per_epoch, num_steps if config["max_steps"] is None else min(num_steps, config["max_steps"])


def predict_modules(
    config: dict[str, Any],
    shapes: Sequence[ModuleShapes],
    method: type[Method],
    hyper_parameters: dict[str, Any],
    transport: str,
    num_classes: int,
) -> list[dict[str, int]]:
    """Of modules 1..K, whose ``shapes`` these are: bytes by category (see fr_bench.planning.memory_model)."""
    model = MemoryModel(
        len(shapes), method, hyper_parameters, bind(config["optimizer"]), transport, num_classes, config["replicas"] > 1
    )
    return [model.predict(module, k, k in config["freeze"]) for k, module in enumerate(shapes, start=1)]


def fetch_dataset(config: dict[str, Any]) -> Outline:
    """Sizes of the data set as it is here, downloaded if it may be.

    Raises:
        ConfigError: it cannot be had.
    """
    prepare_dataset(config["dataset"])
    return Outline.of(build_dataset(config["dataset"]))


def has_declared_sizes(config: dict[str, Any]) -> bool:
    """Whether the data set, downloaded if it may be, is what a plan was made for that did not fetch it.

    Raises:
        ConfigError: it cannot be had.
    """
    declared = outline_dataset(config["dataset"])
    return declared is None or fetch_dataset(config) == declared


def check_components(config: dict[str, Any]) -> None:
    """Checks what the config's ``_target_`` nodes call and with which arguments.

    Raises:
        ConfigError: an unknown target or argument, or a value that it refuses.
    """
    check_callable("method", config["method"], ("module", "link"))
    if "optimizer" in config["method"]:  # of what it trains beside the model
        check_optimizer(config["method"]["optimizer"], "method.optimizer")
    check_optimizer(config["optimizer"])
    check_callable("schedule", config["schedule"], ())
    with refusing("schedule", config["schedule"]):
        factor = bind(config["schedule"])().factor(0, 1, config["epochs"])  # it checks its own values
        if not isinstance(factor, Real):
            raise TypeError(f"factor(...) must return a number, not {type(factor).__name__}")
    check_model_and_data(config)


def check_model_and_data(config: Mapping[str, Any]) -> None:
    """The part of :func:`check_components` that concerns weights which are trained."""
    check_callable("model", config["model"], ("input_shape", "num_classes"))
    loader = {key: value for key, value in config["dataset"].items() if key not in COMMON_KEYS}
    check_callable("dataset", loader, ())
