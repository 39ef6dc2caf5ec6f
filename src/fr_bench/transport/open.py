"""Opens the training channels of this process's modules, once the rehearsal has told what travels on them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import BaseContext

import torch
import torch.distributed as dist

from fr_bench.transport.channel import LocalChannel, Receiver, Sender
from fr_bench.transport.distributed import DEPTH as distributed_depth
from fr_bench.transport.distributed import DistributedReceiver, DistributedSender
from fr_bench.transport.group import new_group
from fr_bench.transport.ipc import DEPTH as ring_depth
from fr_bench.transport.ipc import RingPorts, RingReceiver, RingSender
from fr_bench.transport.spec import TensorSpec, noticing_loss


@dataclass
class Ends:
    """The channel ends of one module; None where there is no neighbour."""

    features_in: Receiver | None = None
    features_out: Sender | None = None
    gradients_in: Receiver | None = None
    gradients_out: Sender | None = None


@dataclass(frozen=True)
class Boundaries:
    """What passes module k's two cuts: features and gradients share the shape, not always the strides.

    Module 1 has nothing below and module K nothing above: None there. So are gradients that the method does not send.
    """

    features_in: TensorSpec | None
    features_out: TensorSpec | None
    gradients_in: TensorSpec | None
    gradients_out: TensorSpec | None


@dataclass
class ModulePorts:
    """Module k's shared-memory ports, made by the parent: channels to the module below and above."""

    features_in: RingPorts | None = None
    features_out: RingPorts | None = None
    gradients_in: RingPorts | None = None
    gradients_out: RingPorts | None = None


def open_local(boundaries: Sequence[Boundaries]) -> list[Ends]:
    """The serial transport: the ends of all K modules, which live in this process."""
    ends = [Ends() for _ in boundaries]
    for k, (below, above) in enumerate(itertools.pairwise(ends), start=1):
        features, gradients = boundaries[k - 1].features_out, boundaries[k].gradients_out
        assert features is not None
        below.features_out = above.features_in = LocalChannel(features, _features_at(k))
        if gradients is not None:
            above.gradients_out = below.gradients_in = LocalChannel(gradients, _gradients_at(k))
    return ends


def _features_at(cut: int) -> str:
    """How errors name the channel up from module ``cut``."""
    return f"features from module {cut} to {cut + 1}"


def _gradients_at(cut: int) -> str:
    """How errors name the channel down to module ``cut``."""
    return f"gradients from module {cut + 1} to {cut}"


def open_distributed(number: int, boundaries: Boundaries, device: torch.device, backend: str) -> Ends:
    """gloo or nccl: a process group a direction. All modules call this together."""
    up, down = new_group(backend), new_group(backend)
    _introduce(number, boundaries, up, down, device if backend == "nccl" else torch.device("cpu"))
    through_host = backend == "gloo" and device.type == "cuda"
    receiver = partial(DistributedReceiver, device=device, through_host=through_host, ahead=backend == "gloo")
    below, above = number - 2, number  # ranks
    ends = Ends()
    if (spec := boundaries.features_in) is not None:
        ends.features_in = receiver(up, below, spec, _features_at(number - 1))
    if (spec := boundaries.gradients_out) is not None:
        ends.gradients_out = DistributedSender(down, below, spec, _gradients_at(number - 1), through_host)
    if (spec := boundaries.features_out) is not None:
        ends.features_out = DistributedSender(up, above, spec, _features_at(number), through_host)
    if (spec := boundaries.gradients_in) is not None:
        ends.gradients_in = receiver(down, above, spec, _gradients_at(number))
    return ends


def _introduce(
    number: int, boundaries: Boundaries, up: dist.ProcessGroup, down: dist.ProcessGroup, device: torch.device
) -> None:
    """A first message over every channel, with the neighbour below before the one above.

    nccl connects two processes at the first message between them, and has each wait for the other there: modules whose
    first calls are not for each other would wait for ever.
    """
    greeting, below, above = torch.zeros(1, device=device), number - 2, number  # ranks
    with noticing_loss(f"a neighbour of module {number} went away while the channels were opened"):
        if boundaries.features_in is not None:
            dist.recv(greeting, below, group=up)
            dist.send(greeting, below, group=down)
        if boundaries.features_out is not None:
            dist.send(greeting, above, group=up)
            dist.recv(greeting, above, group=down)


def open_rings(number: int, boundaries: Boundaries, device: torch.device, ports: ModulePorts) -> Ends:
    """ipc: senders allocate first, then receivers open what they were sent, then the senders hear back."""
    ends, senders = Ends(), []
    if ports.features_out is not None and (spec := boundaries.features_out) is not None:
        ends.features_out = up = RingSender(ports.features_out, spec, _features_at(number), device)
        senders.append(up)
    if ports.gradients_out is not None and (spec := boundaries.gradients_out) is not None:
        ends.gradients_out = down = RingSender(ports.gradients_out, spec, _gradients_at(number - 1), device)
        senders.append(down)
    if ports.features_in is not None and (spec := boundaries.features_in) is not None:
        ends.features_in = RingReceiver(ports.features_in, spec, _features_at(number - 1), device)
    if ports.gradients_in is not None and (spec := boundaries.gradients_in) is not None:
        ends.gradients_in = RingReceiver(ports.gradients_in, spec, _gradients_at(number), device)
    for sender in senders:
        sender.connect()
    return ends


def buffer_bytes(
    transport: str, k: int, num_modules: int, input_bytes: int, output_bytes: int, sends_gradients: bool = True
) -> int:
    """What module ``k``'s ends of its channels hold: see ``buffer_bytes`` of senders and receivers."""
    below_bytes, above_bytes = input_bytes * (k > 1), output_bytes * (k < num_modules)
    # Features up, gradients, which are alike in size, down.
    sent_bytes = above_bytes + below_bytes * sends_gradients
    received_bytes = below_bytes + above_bytes * sends_gradients
    if transport == "serial":
        return 0
    if transport == "ipc":
        return ring_depth * sent_bytes
    return distributed_depth * sent_bytes + (transport == "gloo") * received_bytes  # one message ahead


def make_ports(context: BaseContext, num_modules: int) -> list[ModulePorts]:
    """The ports of the modules of one replica for ``transport=ipc``; ``context`` is that of the processes."""
    ports = [ModulePorts() for _ in range(num_modules)]
    for below, above in itertools.pairwise(ports):
        below.features_out = above.features_in = RingPorts.create(context)
        above.gradients_out = below.gradients_in = RingPorts.create(context)
    return ports
