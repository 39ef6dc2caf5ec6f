"""One process from birth to death: builds its modules from the plan, rehearses, connects, trains, saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save

from fr_bench.atomic import replace_file
from fr_bench.checkpoints.checkpointer import Checkpointer, DeviceQueue, Interval
from fr_bench.checkpoints.files import make_folder, weights_file
from fr_bench.checkpoints.snapshot import refuse_unsavable, weights_of
from fr_bench.components import bind
from fr_bench.measuring import clocks
from fr_bench.measuring.device_stopwatch import make_stopwatch
from fr_bench.memory_errors import is_out_of_memory
from fr_bench.methods.base import Link, Method
from fr_bench.models import build_blocks
from fr_bench.modules.layout import lay_out
from fr_bench.modules.module import Module
from fr_bench.modules.network import Network
from fr_bench.planning.compilation import configure_compiler
from fr_bench.planning.out_of_memory import explain
from fr_bench.planning.plan import Plan
from fr_bench.planning.tracing import DTYPES, memory_format_of
from fr_bench.processes import rendezvous
from fr_bench.processes.board import Board
from fr_bench.processes.heap import keep_freed_memory
from fr_bench.processes.reporter import Reporter
from fr_bench.processes.torch_settings import configure_torch
from fr_bench.processes.torchrun import Torchrun
from fr_bench.records.run_files import cannot_write
from fr_bench.seeds import derive_seed, streams_of
from fr_bench.training.diagnostics import SufficientDirection, Windows
from fr_bench.training.extent import Extent
from fr_bench.training.rehearsal import rehearse
from fr_bench.training.trainer import Player, Trainer
from fr_bench.transport.open import ModulePorts
from fr_bench.transport.relay import Relay
from fr_bench.transport.side import DistributedSide, LocalSide, SideChannel
from fr_bench.workers.connections import connect, join_group, make_relay, own_group, share_batches
from fr_bench.workers.resumption import Resumption, restore
from fr_bench.workers.sources import Sources

# Torch hands out this many streams of a GPU, and then the first once more.
NUM_STREAMS = 32


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
            store = rendezvous.connect(self.store_port)
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
    configure_process(plan, task.modules[0])
    if store is not None:
        join_group(plan, task.modules[0], store, task.launch is None or task.launch.num_machines == 1)
        if task.launch is not None:
            reporter.offset_ns = clocks.offset_ns(task.launch.rank, plan.size)
    sources = Sources(plan, task.modules)
    modules = build_modules(plan, task.modules)
    devices = [torch.device(plan.devices[number - 1]) for number in task.modules]
    sides: list[SideChannel] = list(LocalSide.chain(plan.num_modules))
    if store is not None:
        sides = [DistributedSide(number, device) for number, device in zip(task.modules, devices, strict=True)]
    method = bind(plan.config["method"])
    passes_of = partial(method.func.passes, **method.keywords)  # type: ignore[attr-defined]  # it is a functools.partial
    captures = plan.config["cuda_graphs"]
    boundaries = rehearse(modules, sides, sources.images, sources.labels, plan.num_parts, passes_of, captures)
    if not method.func.sends_gradients:  # type: ignore[attr-defined]
        boundaries = [replace(boundary, gradients_in=None, gradients_out=None) for boundary in boundaries]
    all_ends = connect(plan, task.modules, task.ports, boundaries, devices)
    group = None if plan.uses_link else own_group(plan)
    total = share_batches(plan, modules)
    relay = make_relay(plan, modules[0], task.launch)
    players = []
    for module, side, ends, device in zip(modules, sides, all_ends, devices, strict=True):
        link = sources.link(module, ends, group)
        players.append(Player(module, make_method(method, module, link), link, side, device, own_stream(plan, device)))
    has_trace = task.resumption is not None and task.resumption.has_trace
    extent = Extent.of(plan.config, plan.num_steps, plan.steps_per_epoch, task.run_directory, has_trace)
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
    for player in trainer.players:
        refuse_unsavable(player.method)
    if task.resumption is not None:
        restore(trainer, task.resumption)
    reporter.send("ready", modules=task.modules)
    is_complete = trainer.run()
    if task.board is not None:
        checkpointer.wait_settled()
    else:  # no parent, or another process's
        checkpointer.wait()
    sides[0].barrier()  # final weights get the room of a checkpoint for which the disk was too full
    if is_complete:
        save_final_weights(modules, task.run_directory / "checkpoints" / "final")
    sides[0].barrier()  # nobody leaves while a neighbour may still be reading what it sent


def make_method(method: Callable[[Module, Link], Method], module: Module, link: Link) -> Method:
    """Networks of the method's own draw their initial weights from the default generators, unless it seeds them: which
    weights they are is to depend on the seed and k alone, not on which modules the process has."""
    with streams_of(derive_seed(module.seed, "method", module.k)):
        return method(module, link)


def own_stream(plan: Plan, device: torch.device) -> torch.cuda.Stream | None:
    """A stream for a module that shares its process with others, and None for one that does not, or is on no GPU. Nor
    are there any for more modules than torch has streams for."""
    if device.type != "cuda" or plan.transport != "serial" or plan.size == 1 or not plan.config["streams"]:
        return None
    if 2 * plan.size > NUM_STREAMS:  # each records its CUDA graphs on one more, which nobody else must use
        return None
    return torch.cuda.Stream(device)


def shares_gpu(task: WorkerTask) -> bool:
    """Whether some module of this process has its GPU together with another module."""
    devices = task.plan.devices
    if task.launch is not None:  # on every machine GPUs are numbered from 0
        size = task.launch.local_world_size
        first = task.launch.rank // size * size
        devices = devices[first : first + size]
    own = {task.plan.devices[number - 1] for number in task.modules} - {"cpu"}
    return any(devices.count(device) > 1 for device in own)


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


def configure_process(plan: Plan, number: int) -> None:
    """Threads, device, precision and determinism of this process, whose first module has ``number``."""
    configure_torch(plan.devices[number - 1], plan.threads, plan.config["precision"], plan.config["deterministic"])
    if plan.config["compile"]:
        configure_compiler()


def build_modules(plan: Plan, numbers: list[int]) -> list[Module]:
    """Builds the modules with ``numbers``. All blocks are initialised from the seed, then sliced, so that the initial
    weights depend on the seed alone."""
    config = plan.config
    blocks = build_blocks(config["model"], plan.sample.input_shape, plan.sample.num_classes, config["seed"])
    schedule = bind(config["schedule"])()
    memory_format = memory_format_of(config)
    steps_per_epoch, epochs = plan.steps_per_epoch, config["epochs"]
    modules = []
    for number in numbers:
        place = plan.place_of(number)
        network = Network(blocks[plan.block_ranges[number - 1]], config["seed"])
        network.to(device=plan.devices[number - 1], dtype=DTYPES[config["precision"]])
        lay_out(network, memory_format)
        network.train()
        network.checkpointing = plan.recomputes
        if config["compile"]:
            network.compile_blocks()
        multiplier = config["module_lr"][place.k - 1] if config["module_lr"] else 1.0
        modules.append(
            Module(
                network,
                bind(config["optimizer"]),
                place,
                lr=config["optimizer"]["lr"],
                lr_multiplier=multiplier,
                schedule=lambda t: float(schedule.factor(t, steps_per_epoch, epochs)),
                global_batch_size=config["batch_size"],
                num_classes=plan.sample.num_classes,
                seed=config["seed"],
                watch=make_stopwatch(torch.device(plan.devices[number - 1])),
                frozen=place.k in config["freeze"],
                clip_norm=config["clip_norm"],
                label_smoothing=config["label_smoothing"],
                memory_format=memory_format,
                precision=config["precision"],
            )
        )
    return modules


def save_final_weights(modules: list[Module], folder: Path) -> None:
    """Writes parameters and buffers under ``block.name`` keys, those of the first replica.

    Raises:
        RunFailed: the disk is full, or the like.
    """
    for module in [each for each in modules if each.replica == 1]:
        path = folder / weights_file(module.number)
        try:
            make_folder(folder)
            replace_file(path, save(weights_of(module)))
        except OSError as error:
            raise cannot_write(path, error, "Training is complete", module.number) from error
