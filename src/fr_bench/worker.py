"""One process from birth to death: builds its modules from the plan, rehearses, connects, trains, saves."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor

from fr_bench import clocks
from fr_bench.atomic import replace_file
from fr_bench.board import Board
from fr_bench.checkpoint_files import weights_file
from fr_bench.checkpointer import Checkpointer, DeviceQueue, Interval
from fr_bench.compilation import configure_compiler, is_compiled, uses_cuda_graphs
from fr_bench.components import bind
from fr_bench.device_stopwatch import make_stopwatch
from fr_bench.diagnostics import SufficientDirection, Windows
from fr_bench.memory_errors import is_out_of_memory
from fr_bench.models import build_blocks
from fr_bench.module import Module
from fr_bench.network import Network
from fr_bench.out_of_memory import explain
from fr_bench.plan import Plan
from fr_bench.rehearsal import rehearse
from fr_bench.relay import Relay
from fr_bench.reporter import Reporter
from fr_bench.resumption import Resumption, restore
from fr_bench.snapshot import weights_of
from fr_bench.sources import Sources
from fr_bench.torch_settings import configure_torch, keep_freed_memory
from fr_bench.torchrun import Torchrun
from fr_bench.tracing import DTYPES
from fr_bench.trainer import Extent, Player, Trainer
from fr_bench.transport.group import EXCHANGE_TIMEOUT, make_group, new_group
from fr_bench.transport.open import Boundaries, Ends, ModulePorts, open_distributed, open_local, open_rings
from fr_bench.transport.replicas import Replicas
from fr_bench.transport.side import DistributedSide, LocalSide, SideChannel
from fr_bench.transport.spec import PeerLost

CONNECT_TIMEOUT = timedelta(minutes=5)


@dataclass
class WorkerTask:
    """What the parent hands to a process. Pickled, so plain data, pipes and semaphores only.

    Attributes:
        modules: the numbers (from 1, see Plan) of this process's modules.
        ports: shared-memory ports of those modules; only under ``ipc``.
        store_port: where the parent's rendezvous store listens; None under ``serial``.
        run_directory: final weights and checkpoints go under it.
        board: shared with the parent and all other processes; None if there is nobody to share it with.
        resumption: where the run goes on from.
        launch: of a process that torchrun started; then nobody shares a board.
    """

    plan: Plan
    modules: list[int]
    ports: list[ModulePorts]
    store_port: int | None
    run_directory: Path
    board: Board | None = None
    resumption: Resumption | None = None
    launch: Torchrun | None = None

    def run(self, reporter: Reporter) -> None:
        """What a process of its own does; see :meth:`run_here`."""
        keep_freed_memory()
        self.run_here(reporter)

    def run_here(self, reporter: Reporter, store: dist.Store | None = None) -> None:
        """See :func:`run_worker`.

        Args:
            reporter: to the parent.
            store: where the processes meet, unless it is the parent's.

        Raises:
            RunFailed: also where memory ran out, with what lowers it.
        """
        if store is None and self.store_port is not None:
            store = dist.TCPStore("127.0.0.1", self.store_port, is_master=False, timeout=CONNECT_TIMEOUT)
        try:
            run_worker(self, reporter, store)
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            raise explain(self.plan, self.modules, reporter.when(self.modules[0]), error) from error


def run_worker(task: WorkerTask, reporter: Reporter, store: dist.Store | None = None) -> None:
    """Runs the modules of ``task`` to the end of training, or until all modules are asked to stop.

    Args:
        reporter: to the parent.
        store: where the processes meet; None if this is the only one.

    Raises:
        PeerLost: a neighbour went away (never the first cause).
        ConfigError, RunFailed: with their messages.
    """
    plan = task.plan
    configure_process(plan)
    if store is not None:
        join_group(plan, task.modules[0], store, task.launch is None or task.launch.num_machines == 1)
        if task.launch is not None:
            reporter.offset_ns = clocks.offset_ns(task.launch.rank, plan.size)
    sources = Sources(plan, task.modules)
    modules = build_modules(plan, task.modules)
    devices = [torch.device(plan.devices[number - 1]) for number in task.modules]
    sides: list[SideChannel] = list(LocalSide.chain(plan.num_modules))
    if store is not None:
        sides = [DistributedSide(k, device) for k, device in zip(task.modules, devices, strict=True)]
    method = bind(plan.config["method"])
    passes_of = partial(method.func.passes, **method.keywords)  # type: ignore[attr-defined]  # it is a functools.partial
    captures = uses_cuda_graphs(plan.config)
    boundaries = rehearse(modules, sides, sources.images, sources.labels, plan.num_parts, passes_of, captures)
    all_ends = connect(task, boundaries, devices)
    group = None if plan.uses_link else own_group(plan)
    total = share_batches(plan, modules)
    relay = make_relay(task, modules[0])
    players = []
    for module, side, ends, device in zip(modules, sides, all_ends, devices, strict=True):
        link = sources.link(module, ends, group)
        players.append(Player(module, method(module, link), link, side, device, own_stream(plan, device)))
    config = plan.config
    extent = Extent(
        plan.num_steps,
        plan.steps_per_epoch,
        config["eval_every"],
        config["log_every"],
        config["trace"],
        config["profile"],
        task.run_directory,
    )
    direction = make_direction(plan, modules, sides, sources)
    checkpointer = make_checkpointer(task, reporter, relay, extent)
    trainer = Trainer(
        players,
        extent,
        reporter,
        sources.evaluation_sets,
        sources.images,
        plan.predicted_memory,
        direction,
        total,
        checkpointer=checkpointer,
        shares_gpu=shares_gpu(task),
    )
    if task.resumption is not None:
        restore(trainer, task.resumption)
    reporter.send("ready", modules=task.modules)
    if trainer.run():
        for module in modules:
            if module.replica == 1:
                save_weights(module, task.run_directory / "checkpoints" / "final")
    checkpointer.wait()
    sides[0].barrier()  # nobody leaves while a neighbour may still be reading what it sent


def own_stream(plan: Plan, device: torch.device) -> torch.cuda.Stream | None:
    """A stream for a module that shares its process with others, and None for one that does not, or is on no GPU."""
    if device.type != "cuda" or plan.transport != "serial" or plan.size == 1 or not plan.config.get("streams", True):
        return None
    return torch.cuda.Stream(device)


def share_batches(plan: Plan, modules: list[Module]) -> Callable[[Tensor], Tensor]:
    """Joins ``modules`` to those of the other replicas; returns what adds up a loss of each of them."""
    if plan.num_replicas == 1:
        return lambda own: own
    if not plan.uses_link:
        return sum_over_processes
    join_replicas(plan, modules[0])
    assert modules[0].replicas is not None
    return modules[0].replicas.total


def shares_gpu(task: WorkerTask) -> bool:
    """Whether some module of this process has its GPU together with another module."""
    devices = task.plan.devices
    if task.launch is not None:  # on every machine GPUs are numbered from 0
        size = task.launch.local_world_size
        first = task.launch.rank // size * size
        devices = devices[first : first + size]
    own = {task.plan.devices[number - 1] for number in task.modules} - {"cpu"}
    return any(devices.count(device) > 1 for device in own)


def make_relay(task: WorkerTask, module: Module) -> Relay | None:
    """What carries the word to pause or stop: between processes that torchrun started, which share no board, and
    between replicas, each of which would read it in an iteration of its own."""
    plan = task.plan
    if task.launch is None and (plan.num_replicas == 1 or not plan.uses_link):
        return None
    return Relay(module.number, plan.num_modules, plan.num_replicas, new_group("gloo"))


def make_direction(
    plan: Plan, modules: list[Module], sides: list[SideChannel], sources: Sources
) -> SufficientDirection | None:
    """The diagnostic of the sufficient-direction constant, if it is asked for."""
    sigma = plan.config["diagnostics"]["sigma"]
    if not sigma["every"]:
        return None
    first = max(delays["batch_delay"] for delays in plan.staleness)
    windows = Windows(sigma["every"], sigma["window"], first)
    return SufficientDirection(modules, sides, sources.images, sources.labels, windows)


def make_checkpointer(task: WorkerTask, reporter: Reporter, relay: Relay | None, extent: Extent) -> Checkpointer:
    """Who decides with the other processes when the modules of this one pause, and saves them."""
    plan, settings, leads = task.plan, task.plan.config["checkpoint"], task.modules[0] == 1
    device = torch.device(plan.devices[task.modules[0] - 1])
    return Checkpointer(
        (task.board if leads or relay is None else None) or Board(),
        Interval(settings["every"], settings["minutes"], plan.num_steps),
        task.run_directory / "checkpoints",
        reporter,
        start=task.resumption.step if task.resumption is not None else 0,
        leads=leads,
        relay=relay,
        queue=DeviceQueue(device, extent.logs) if plan.transport == "nccl" and relay is None else None,
    )


def configure_process(plan: Plan) -> None:
    """Threads, precision and determinism of this process."""
    configure_torch(plan.devices[0], plan.threads, plan.config["precision"], plan.config["deterministic"])
    if is_compiled(plan.config):
        configure_compiler()


def join_group(plan: Plan, k: int, store: dist.Store, is_one_machine: bool) -> None:
    """Joins the gloo group of all modules: rehearsal, evaluation and barriers use it under every transport."""
    if is_one_machine:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if plan.devices[k - 1] != "cpu":
        torch.cuda.set_device(plan.devices[k - 1])
    dist.init_process_group("gloo", store=store, rank=k - 1, world_size=plan.size, timeout=EXCHANGE_TIMEOUT)


def connect(task: WorkerTask, boundaries: list[Boundaries], devices: list[torch.device]) -> list[Ends]:
    """Opens the training channels of this process's modules."""
    transport, k = task.plan.transport, task.modules[0]
    if not task.plan.uses_link:
        return [Ends() for _ in boundaries]
    if transport == "serial":
        return open_local(boundaries)
    if transport == "ipc":
        return [open_rings(k, boundaries[0], devices[0], task.ports[0])]
    return [open_distributed(k, boundaries[0], devices[0], transport)]


def own_group(plan: Plan) -> dist.ProcessGroup | None:
    """The group for a method whose messages a library carries; None for the default one, which is gloo's."""
    return new_group("nccl") if plan.transport == "nccl" else None


def join_replicas(plan: Plan, module: Module) -> None:
    """From now on ``module`` learns from the gradients of all replicas."""
    backend = "nccl" if plan.transport == "nccl" else "gloo"
    for k in range(1, plan.num_modules + 1):  # every process takes part in making every group
        ranks = [replica * plan.num_modules + k - 1 for replica in range(plan.num_replicas)]
        if k != module.k:
            make_group(backend, ranks)
            continue
        parameters = list(module.network.parameters())
        module.replicas = Replicas(new_group(backend, ranks), parameters)
        module.replicas.listen(parameters)


def sum_over_processes(own: Tensor) -> Tensor:
    """The sum of ``own`` over all processes, which must ask for it at the same time."""
    total = own.to("cpu", copy=True)
    try:
        dist.all_reduce(total)
    except RuntimeError as error:
        raise PeerLost(f"another process is gone: {error}") from error
    return total


def build_modules(plan: Plan, numbers: list[int]) -> list[Module]:
    """Builds the modules with ``numbers``. All blocks are initialised from the seed, then sliced, so that the initial
    weights depend on the seed alone."""
    config = plan.config
    blocks = build_blocks(config["model"], plan.input_shape, plan.num_classes, config["seed"])
    schedule = bind(config["schedule"])()
    memory_format = torch.channels_last if config["channels_last"] else torch.contiguous_format
    steps_per_epoch, epochs = plan.steps_per_epoch, config["epochs"]
    modules = []
    for number in numbers:
        k = plan.module_of(number)
        network = Network(blocks[plan.block_ranges[number - 1]], config["seed"])
        network.to(device=plan.devices[number - 1], dtype=DTYPES[config["precision"]])
        network.to(memory_format=memory_format)  # separate: torch has no stub for all three
        network.train()
        if is_compiled(config):
            network.compile_blocks()
        multiplier = config["module_lr"][k - 1] if config["module_lr"] else 1.0
        optimizer = bind(config["optimizer"])(network.parameters())
        modules.append(
            Module(
                network,
                optimizer,
                base_lr=config["optimizer"]["lr"] * multiplier,
                schedule=lambda t: schedule.factor(t, steps_per_epoch, epochs),
                k=k,
                num_modules=plan.num_modules,
                global_batch_size=config["batch_size"],
                num_classes=plan.num_classes,
                seed=config["seed"],
                watch=make_stopwatch(torch.device(plan.devices[number - 1])),
                frozen=k in config["freeze"],
                clip_norm=config["clip_norm"],
                precision=config["precision"],
                number=number,
                replica=plan.replica_of(number),
                num_replicas=plan.num_replicas,
            )
        )
    return modules


def save_weights(module: Module, folder: Path) -> None:
    """Writes parameters and buffers under ``block.name`` keys."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / weights_file(module.k), save(weights_of(module)))
