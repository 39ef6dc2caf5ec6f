"""How a process of a run joins the others: groups, channels between neighbours, sums over replicas."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from fr_bench.modules.module import Module
from fr_bench.planning.plan import Plan
from fr_bench.processes.torchrun import Torchrun
from fr_bench.transport.group import EXCHANGE_TIMEOUT, make_group, new_group
from fr_bench.transport.open import Boundaries, Ends, ModulePorts, open_distributed, open_local, open_rings
from fr_bench.transport.relay import Relay
from fr_bench.transport.replicas import Replicas
from fr_bench.transport.spec import noticing_loss
from fr_bench.waits import waiting_for


def join_group(plan: Plan, number: int, store: dist.Store, is_one_machine: bool) -> None:
    """Joins the gloo group of all modules: rehearsal, evaluation and barriers use it under every transport."""
    if is_one_machine:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=store, rank=number - 1, world_size=plan.size, timeout=EXCHANGE_TIMEOUT)


def connect(
    plan: Plan, numbers: list[int], ports: list[ModulePorts], boundaries: list[Boundaries], devices: list[torch.device]
) -> list[Ends]:
    """Opens the training channels of the modules with ``numbers``, which are this process's."""
    transport, number = plan.transport, numbers[0]
    if not plan.uses_link:
        return [Ends() for _ in boundaries]
    if transport == "serial":
        return open_local(boundaries)
    if transport == "ipc":
        return [open_rings(number, boundaries[0], devices[0], ports[0])]
    return [open_distributed(number, boundaries[0], devices[0], transport)]


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
    with noticing_loss("another process is gone"), waiting_for("the sum over all processes"):
        dist.all_reduce(total)
    return total


def share_batches(plan: Plan, modules: list[Module]) -> Callable[[Tensor], Tensor]:
    """Joins ``modules`` to those of the other replicas; returns what adds up a loss of each of them."""
    if plan.num_replicas == 1:
        return lambda own: own
    if not plan.uses_link:
        return sum_over_processes
    join_replicas(plan, modules[0])
    assert modules[0].replicas is not None
    return modules[0].replicas.total


def make_relay(plan: Plan, module: Module, launch: Torchrun | None) -> Relay | None:
    """What carries the word to pause or stop: between processes that torchrun started, which share no board, and
    between replicas, each of which would read it in an iteration of its own."""
    if launch is None and (plan.num_replicas == 1 or not plan.uses_link):
        return None
    return Relay(module.number, plan.num_modules, plan.num_replicas, new_group("gloo"))
