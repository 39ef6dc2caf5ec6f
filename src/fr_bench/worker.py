"""One process from birth to death: builds its modules from the plan, rehearses, connects, trains, saves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from fr_bench.board import Board
from fr_bench.checkpointer import Checkpointer, DeviceQueue, Interval
from fr_bench.components import bind
from fr_bench.diagnostics import SufficientDirection, Windows
from fr_bench.models import build_blocks
from fr_bench.module import Module
from fr_bench.network import Network
from fr_bench.out_of_memory import explain, is_out_of_memory
from fr_bench.plan import DTYPES, Plan
from fr_bench.rehearsal import rehearse
from fr_bench.reporter import Reporter
from fr_bench.resumption import Resumption, restore
from fr_bench.sources import Sources
from fr_bench.stopwatch import Stopwatch
from fr_bench.torch_settings import configure_torch, keep_freed_memory
from fr_bench.trainer import Extent, Player, Trainer
from fr_bench.transport.open import Boundaries, Ends, ModulePorts, open_distributed, open_local, open_rings
from fr_bench.transport.side import DistributedSide, LocalSide, SideChannel
from fr_bench.transport.spec import PeerLost

CONNECT_TIMEOUT = timedelta(minutes=5)
# Longer than any step; a dead neighbour is noticed by the parent, not by this.
EXCHANGE_TIMEOUT = timedelta(hours=24)


@dataclass
class WorkerTask:
    """What the parent hands to a process. Pickled, so plain data, pipes and semaphores only.

    Attributes:
        modules: the modules (from 1) of this process.
        ports: shared-memory ports of those modules; only under ``ipc``.
        store_port: where the parent's rendezvous store listens; None under ``serial``.
        run_directory: final weights and checkpoints go under it.
        board: shared with the parent and all other processes; None if there is nobody to share it with.
        resumption: where the run goes on from.
    """

    plan: Plan
    modules: list[int]
    ports: list[ModulePorts]
    store_port: int | None
    run_directory: Path
    board: Board | None = None
    resumption: Resumption | None = None

    def run(self, reporter: Reporter) -> None:
        """See :func:`run_worker`.

        Raises:
            RunFailed: also where memory ran out, with what lowers it.
        """
        keep_freed_memory()
        try:
            run_worker(self, reporter)
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            raise explain(self.plan, self.modules, reporter.when(self.modules[0]), error) from error


def run_worker(task: WorkerTask, reporter: Reporter) -> None:
    """Runs the modules of ``task`` to the end of training, or until all modules are asked to stop.

    Raises:
        PeerLost: a neighbour went away (never the first cause).
        ConfigError, RunFailed: with their messages.
    """
    plan = task.plan
    configure_process(plan)
    if task.store_port is not None:
        join_group(plan, task.modules[0], task.store_port)
    sources = Sources(plan, task.modules)
    modules = build_modules(plan, task.modules)
    devices = [torch.device(plan.devices[module.k - 1]) for module in modules]
    sides: list[SideChannel] = list(LocalSide.chain(plan.k))
    if task.store_port is not None:
        sides = [DistributedSide(k, device) for k, device in zip(task.modules, devices, strict=True)]
    # The processes that share a batch already have their shares.
    boundaries = rehearse(modules, sides, sources.images, sources.labels, 1 if plan.replicates else plan.num_parts)
    all_ends = connect(task, boundaries, devices)
    group = None if plan.uses_link else own_group(plan)
    players = []
    for module, side, ends, device in zip(modules, sides, all_ends, devices, strict=True):
        link = sources.link(module, ends, group)
        players.append(Player(module, bind(plan.config["method"])(module, link), link, side, device))
    config = plan.config
    extent = Extent(plan.num_steps, plan.steps_per_epoch, config["eval_every"], config["log_every"], config["trace"])
    direction = None
    sigma = config["diagnostics"]["sigma"]
    if sigma["every"]:
        first = max(delays["batch_delay"] for delays in plan.staleness)
        windows = Windows(sigma["every"], sigma["window"], first)
        direction = SufficientDirection(modules, sides, sources.images, sources.labels, windows)
    settings = config["checkpoint"]
    checkpointer = Checkpointer(
        task.board or Board(),
        Interval(settings["every"], settings["minutes"], plan.num_steps),
        task.run_directory / "checkpoints",
        reporter,
        start=task.resumption.step if task.resumption is not None else 0,
        queue=DeviceQueue(devices[0], extent.logs) if plan.transport == "nccl" else None,
    )
    trainer = Trainer(
        players,
        extent,
        reporter,
        sources.evaluation_sets,
        sources.images,
        plan.predicted_memory,
        direction,
        sum_over_processes if plan.replicates else lambda own: own,
        checkpointer=checkpointer,
    )
    if task.resumption is not None:
        restore(trainer, task.resumption)
    reporter.send("ready", modules=task.modules)
    if trainer.run():
        for module in modules:
            if module.number == 1 or not plan.replicates:
                save_weights(module, task.run_directory / "checkpoints" / "final")
    checkpointer.wait()
    sides[0].barrier()  # nobody leaves while a neighbour may still be reading what it sent


def configure_process(plan: Plan) -> None:
    """Threads, precision and determinism of this process."""
    configure_torch(plan.devices[0], plan.threads, plan.config["precision"], plan.config["deterministic"])


def join_group(plan: Plan, k: int, store_port: int) -> None:
    """Joins the gloo group of all modules: rehearsal, evaluation and barriers use it under every transport."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all processes are on this machine
    if plan.devices[k - 1] != "cpu":
        torch.cuda.set_device(plan.devices[k - 1])
    store = dist.TCPStore("127.0.0.1", store_port, is_master=False, timeout=CONNECT_TIMEOUT)
    dist.init_process_group("gloo", store=store, rank=k - 1, world_size=plan.k, timeout=EXCHANGE_TIMEOUT)


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
    if plan.transport != "nccl":
        return None
    group = dist.new_group(backend="nccl")
    assert isinstance(group, dist.ProcessGroup), "every process is in the group"
    return group


def sum_over_processes(own: Tensor) -> Tensor:
    """The sum of ``own`` over all processes, which must ask for it at the same time."""
    total = own.to("cpu", copy=True)
    try:
        dist.all_reduce(total)
    except RuntimeError as error:
        raise PeerLost(f"another process is gone: {error}") from error
    return total


def build_modules(plan: Plan, numbers: list[int]) -> list[Module]:
    """Builds modules ``numbers``. All blocks are initialised from the seed, then sliced, so that the initial
    weights depend on the seed alone."""
    config = plan.config
    blocks = build_blocks(config["model"], plan.input_shape, plan.num_classes, config["seed"])
    schedule = bind(config["schedule"])()
    memory_format = torch.channels_last if config["channels_last"] else torch.contiguous_format
    steps_per_epoch, epochs = plan.steps_per_epoch, config["epochs"]
    modules = []
    for k in numbers:
        network = Network(blocks[plan.block_ranges[k - 1]], config["seed"])
        network.to(device=plan.devices[k - 1], dtype=DTYPES[config["precision"]])
        network.to(memory_format=memory_format)  # separate: torch has no stub for all three
        network.train()
        multiplier = config["module_lr"][k - 1] if config["module_lr"] else 1.0
        optimizer = bind(config["optimizer"])(network.parameters())
        modules.append(
            Module(
                network,
                optimizer,
                base_lr=config["optimizer"]["lr"] * multiplier,
                schedule=lambda t: schedule.factor(t, steps_per_epoch, epochs),
                k=1 if plan.replicates else k,
                num_modules=1 if plan.replicates else plan.k,
                global_batch_size=config["batch_size"],
                num_classes=plan.num_classes,
                seed=config["seed"],
                watch=Stopwatch(),
                frozen=k in config["freeze"],
                clip_norm=config["clip_norm"],
                precision=config["precision"],
                process=k if plan.replicates else None,
                num_processes=plan.k if plan.replicates else 1,
            )
        )
    return modules


def save_weights(module: Module, folder: Path) -> None:
    """Writes parameters and buffers under ``block.name`` keys, to a temporary name first."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in module.network.state_dict().items()}
    path = folder / f"module_{module.k}.safetensors"
    temporary = path.with_suffix(".tmp")
    save_file(state, temporary)
    os.replace(temporary, path)
