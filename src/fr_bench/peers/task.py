"""A peer's processes, as the supervisor runs them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fr_bench.components import bind
from fr_bench.data import SampleSpec
from fr_bench.measuring.profiling import DeviceLoad, profile_file, record_profile
from fr_bench.models import build_blocks
from fr_bench.modules.layout import lay_out
from fr_bench.modules.loss import loss_sum
from fr_bench.peers.step_clock import StepClock
from fr_bench.planning.tracing import DTYPES, memory_format_of
from fr_bench.processes import rendezvous
from fr_bench.processes.reporter import Reporter
from fr_bench.processes.torch_settings import configure_torch
from fr_bench.training.memory import peak_allocated_bytes, peak_resident_bytes

PIPELINES = ("gpipe", "1f1b", "interleaved", "zero_bubble")
PEERS = ("plain", "ddp", *PIPELINES)
CHUNKS = {"interleaved": 2}  # stages of a process; 1 in the others
NUM_BATCHES = 4  # that a peer goes round and round; made beforehand, so that it pays for no data


class Training(Protocol):
    """A peer's part in one process."""

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        """One iteration on the global batch x [B, ...], y [B, ...]; the mean loss over B where this process has it.

        A process looks at its own part of x and y alone.
        """


@dataclass
class PeerTask:
    """One process of a peer.

    Attributes:
        peer: one of PEERS.
        config: resolved, as of ``fr-bench train``: model, optimizer, seed, batch size, precision, memory format.
        sample: what one of the data set is like.
        num_processes: of the peer.
        threads: of this process.
        num_steps: iterations.
        store_port: where the parent's rendezvous store listens.
        rank: of this process.
        cuts: block indices where the stages after the first begin; only for pipelines.
        num_microbatches: only for pipelines.
        keep_losses: whether the losses are reported, which waits for the device in every step.
        device: ``cpu``, or a GPU by name.
        profile: iterations after the timed ones, to be recorded.
        folder: where that goes.
    """

    peer: str
    config: dict[str, Any]
    _: KW_ONLY
    sample: SampleSpec
    num_processes: int
    threads: int
    num_steps: int
    store_port: int | None
    rank: int = 0
    cuts: Sequence[int] = ()
    num_microbatches: int = 1
    keep_losses: bool = False
    device: str = "cpu"
    profile: int = 0
    folder: Path = Path()

    def in_every_process(self) -> list[PeerTask]:
        """The tasks of all processes, which differ in their rank."""
        return [replace(self, rank=rank) for rank in range(self.num_processes)]

    @property
    def modules(self) -> list[int]:
        """The process's number, from 1."""
        return [self.rank + 1]

    def run(self, reporter: Reporter) -> None:
        """Trains, and reports the end of every step (ns, ``time.monotonic_ns``), the process's peak memory (on a GPU
        the allocator's) and, if it was profiled, what an iteration is for the GPU."""
        # As our own modules, which it is compared with.
        configure_torch(self.device, self.threads, self.config["precision"], self.config["deterministic"])
        if self.store_port is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            store = rendezvous.connect(self.store_port)
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.num_processes)
        training: Training = import_module(MODULES[self.peer]).make(self)
        batches = self.batches()
        reporter.send("ready", modules=self.modules)
        losses = []
        clock = StepClock(self.device)
        for step in range(self.num_steps):
            reporter.enter_iteration(self.rank + 1, step)
            loss = training.step(*batches[step % len(batches)])
            if self.keep_losses and loss is not None:
                losses.append(loss.item())
            clock.tick()
            if step == 0 and self.device != "cpu":  # in which cuDNN tries algorithms, with any workspace that fits
                torch.cuda.reset_peak_memory_stats()
        ends_ns, peak = clock.ends_ns(), self._peak_bytes()
        load = self._profile(training, batches).over(self.profile) if self.profile else {}
        reporter.send("peer", module=self.rank + 1, ends_ns=ends_ns, losses=losses, peak=peak, **load)
        if self.store_port is not None:
            dist.barrier()  # nobody leaves while a neighbour may still be reading what it sent

    def _peak_bytes(self) -> int:
        return peak_resident_bytes() if self.device == "cpu" else peak_allocated_bytes(torch.device(self.device))

    def _profile(self, training: Training, batches: Sequence[tuple[Tensor, Tensor]]) -> DeviceLoad:
        on_gpu = self.device != "cpu"
        if on_gpu:
            torch.cuda.synchronize()
        with record_profile(on_gpu) as recording:
            for step in range(self.profile):
                training.step(*batches[step % len(batches)])
            if on_gpu:
                torch.cuda.synchronize()
        return recording.write(self.folder / profile_file(self.modules))[1]

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Made-up normalised images, or numbers, and labels, the same in every process, on its device."""
        generator = torch.Generator().manual_seed(self.config["seed"])
        size = self.config["batch_size"]
        form = self.sample.input_format(self.dtype, self.memory_format)
        made = []
        for _ in range(NUM_BATCHES):
            x = self.sample.noise(size, generator).to(**form)
            y = torch.randint(self.sample.num_classes, (size, *self.sample.label_shape), generator=generator)
            made.append((x.to(self.device), y.to(self.device)))
        return made

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """The model's blocks with the initial weights of fr-bench, on the device, in dtype and memory format."""
        sample = self.sample
        blocks = build_blocks(self.config["model"], sample.input_shape, sample.num_classes, self.config["seed"])
        for _, block in blocks:
            block.to(device=self.device, dtype=self.dtype)
            lay_out(block, self.memory_format)
            block.train()
        return blocks

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        """The config's optimizer at its base learning rate."""
        return bind(self.config["optimizer"])(parameters)

    def autocast(self) -> AbstractContextManager[object]:
        """The context of forward pass and loss in the config's precision."""
        if self.config["precision"] != "bf16":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy, summed over the samples at hand and divided by the global batch size."""
        return loss_sum(logits, y, self.config["label_smoothing"]) / self.config["batch_size"]

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and features."""
        return DTYPES[self.config["precision"]]

    @property
    def memory_format(self) -> torch.memory_format:
        """Of weights and features."""
        return memory_format_of(self.config)


MODULES = {
    "plain": "fr_bench.peers.plain",
    "ddp": "fr_bench.peers.data_parallel",
    **dict.fromkeys(PIPELINES, "fr_bench.peers.pipelines"),
}
