"""What a mini-batch costs in each block, by a clock on the run's device: in a process of its own, and cached.

The times are those of a device that does nothing else. They differ from machine to machine and a little from day to
day, which is why they are not the default: cuts change the numbers of FR and DDG.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fr_bench.atomic import replace_file
from fr_bench.components import bind, check_method
from fr_bench.data import SampleSpec, SeededOrder, TrainImages, TrainTensor
from fr_bench.errors import ConfigError
from fr_bench.models import build_blocks
from fr_bench.modules.layout import lay_out
from fr_bench.planning.costs import BlockCost, Likeness, NetworkCosts, network_costs
from fr_bench.planning.environment import cpu_model
from fr_bench.planning.own_code import describe_code
from fr_bench.planning.tracing import DTYPES, memory_format_of
from fr_bench.processes import child, nursery
from fr_bench.processes.heap import keep_freed_memory
from fr_bench.processes.signals import how_it_ended
from fr_bench.processes.torch_settings import configure_torch
from fr_bench.unread import tell

MIN_SAMPLES, MAX_SAMPLES, ENOUGH_S = 6, 50, 0.3  # of each kind of block: as many as fit in ENOUGH_S, within limits
NUM_LOADED, NUM_COPIES, COPIED_BYTES = 9, 9, 2**24  # ResNet-164's messages have 8 to 32 MiB, at batches of 128

Result = TypeVar("Result")


@dataclass(frozen=True)
class MeasuringTask:
    """What is measured, and under which conditions; plain data.

    Attributes:
        model, optimizer: nodes of the config.
        method: likewise; none where it trains nothing beside the model.
        augmentation: of the images.
        sample: what one of the data set is like.
        seed, batch_size, precision, channels_last, deterministic, threads: of the run.
        device: of module 1; the others are taken to be alike.
        num_blocks: of the model.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]
    method: dict[str, Any] | None
    augmentation: dict[str, Any]
    sample: SampleSpec
    seed: int
    batch_size: int
    precision: str
    channels_last: bool
    deterministic: bool
    device: str
    threads: int
    num_blocks: int

    @classmethod
    def of(
        cls,
        config: dict[str, Any],
        sample: SampleSpec,
        device: str,
        threads: int,
        num_blocks: int,
        has_companion: bool,
    ) -> MeasuringTask:
        """The task for a run of ``config``."""
        keys = ("model", "optimizer", "seed", "batch_size", "precision", "channels_last", "deterministic")
        return cls(
            **{key: config[key] for key in keys},
            method=config["method"] if has_companion else None,
            augmentation=config["dataset"].get("augmentation") or {},
            sample=sample,
            device=device,
            threads=threads,
            num_blocks=num_blocks,
        )

    def key(self) -> dict[str, Any]:
        """All that the times depend on, as JSON reads it back. Neither seed nor learning rate is part of it."""
        on_gpu = self.device != "cpu"
        name = torch.cuda.get_device_name(self.device) if on_gpu else f"{cpu_model()} ({platform.machine()})"
        plain = {**asdict(self), "device": name, "torch": torch.__version__, "seed": None}
        plain["code"] = describe_code(plain)  # of the user's own
        plain["optimizer"] = {key: value for key, value in self.optimizer.items() if key != "lr"}
        return json.loads(json.dumps(plain if not on_gpu else {**plain, "threads": None}))


class Clock:
    """A meter that waits for the device (see fr_bench.planning.costs.Meter)."""

    def __init__(self, device: torch.device) -> None:
        self.known: dict[Likeness, tuple[BlockCost, Tensor]] = {}
        self._wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def measure(self, action: Callable[[], Result]) -> tuple[float, Result]:
        """Seconds, and what the action returned."""
        self._wait()
        start_s = time.perf_counter()
        result = action()
        self._wait()
        return time.perf_counter() - start_s, result

    def is_enough(self, samples: Sequence[BlockCost]) -> bool:
        """The median forgets the first ones, which pay for what is done once."""
        spent_s = sum(sample.play + sample.forward + sample.backward for sample in samples)
        return len(samples) >= MIN_SAMPLES and (spent_s >= ENOUGH_S or len(samples) >= MAX_SAMPLES)


def measured_costs(task: MeasuringTask, asked_by: str) -> NetworkCosts:
    """The costs from the cache, or measured now and put there.

    Args:
        task: what to measure.
        asked_by: the setting that needs them, for messages.

    Raises:
        ConfigError: the measurement failed.
    """
    key = task.key()
    path = cache_folder() / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}.json"
    costs = _read(path, key)
    if costs is None:
        tell(f"{asked_by}: timing the blocks of {task.model['name']} on {task.device} ...")
        try:
            costs = _measure_in_child(task)
        except ConfigError as error:
            advice = "; partition=auto needs no measurement" if asked_by.startswith("partition") else ""
            raise ConfigError(f"{asked_by}: {error}{advice}") from error
        with suppress(OSError):  # a cache that cannot be written costs time only
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps({"key": key, **asdict(costs)}, indent=1))
    return costs


def measure(task: MeasuringTask) -> NetworkCosts:
    """Measures in this process, whose settings of torch it changes."""
    configure_torch(task.device, task.threads, task.precision, task.deterministic)
    device = torch.device(task.device)
    dtype, layout = DTYPES[task.precision], memory_format_of({"channels_last": task.channels_last})

    def placed(network: nn.Module) -> nn.Module:
        lay_out(network.to(device=device, dtype=dtype), layout)
        return network

    method, hyper_parameters = (None, {}) if task.method is None else check_method(task.method)

    def companion_of(h: Tensor) -> nn.Module | None:
        if method is None:
            return None
        companion = method.companion(h.shape, task.sample.num_classes, **hyper_parameters)
        return None if companion is None else placed(companion)

    def context() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, dtype=torch.bfloat16) if task.precision == "bf16" else nullcontext()

    blocks = build_blocks(task.model, task.sample.input_shape, task.sample.num_classes, task.seed)
    blocks = [(name, placed(block).train()) for name, block in blocks]
    x = task.sample.noise(task.batch_size).to(device, **task.sample.input_format(dtype, layout))
    has_gradient = method is not None and not method.sends_gradients
    costs = network_costs(blocks, x, Clock(device), companion_of, context, bind(task.optimizer), has_gradient)
    load_s = _load_s(task, device, dtype, layout)
    copy_s_per_byte = _copy_s_per_byte() if device.type == "cpu" else 0.0
    return replace(costs, load=load_s, copy_s_per_byte=copy_s_per_byte, measured_at=time.time())


def _load_s(task: MeasuringTask, device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> float:
    """Seconds to make a mini-batch of noise, which costs the same as one of images: picked, augmented, normalised."""
    num_images = 4 * task.batch_size
    order = SeededOrder(num_images, task.batch_size, task.seed)
    images: TrainImages | TrainTensor
    if task.sample.is_image:
        noise = torch.randint(0, 256, (num_images, *task.sample.input_shape), dtype=torch.uint8)
        mean = std = (0.5,) * task.sample.input_shape[0]
        images = TrainImages(
            noise, order, task.augmentation, mean, std, task.seed, device=device, dtype=dtype, memory_format=layout
        )
    else:
        noise = task.sample.noise(num_images)
        images = TrainTensor(noise, order, device, **task.sample.input_format(dtype, layout))
    clock = Clock(device)
    return statistics.median(clock.measure(partial(images.batch, t))[0] for t in range(NUM_LOADED))


def _copy_s_per_byte() -> float:
    """As a channel of shared memory copies a message on the CPU: in at one end, out at the other, at the same rate."""
    # Memory of the same kind as that of /dev/shm, which is not needed: it may be full, or not there.
    slot = torch.frombuffer(mmap.mmap(-1, COPIED_BYTES), dtype=torch.uint8)
    message = torch.zeros(COPIED_BYTES).byte()
    clock = Clock(torch.device("cpu"))
    return statistics.median(clock.measure(partial(slot.copy_, message))[0] for _ in range(NUM_COPIES)) / COPIED_BYTES


def _measure_in_child(task: MeasuringTask) -> NetworkCosts:
    """A process of its own: the parent's threads, settings and device stay as they are."""
    context = nursery.context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child_main, args=(child.Surroundings.here(), sender, task), daemon=True)
    nursery.start(process)
    sender.close()  # ours; so that its end is the end of the pipe
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        answer = f"the process that measures {how_it_ended(process.exitcode)}"
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(answer, str):
        raise ConfigError(answer)
    return answer


def _child_main(surroundings: child.Surroundings, sender: Connection, task: MeasuringTask) -> None:
    child.begin(surroundings)
    keep_freed_memory()  # as in the processes of a run
    answer: NetworkCosts | str
    try:
        answer = measure(task)
    except Exception as error:  # whatever it is, the parent says it in one line
        answer = f"{type(error).__name__}: {error}"
    child.tidy_up()  # now: the parent kills this process when it has the answer
    sender.send(answer)


def cache_folder() -> Path:
    """Where what was measured is kept: of a user without a home, as in some containers, among temporary files."""
    home = os.path.expanduser("~")
    default = Path(tempfile.gettempdir() if home == "~" else home, ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or default) / "fr-bench" / "measured_costs"


def _read(path: Path, key: dict[str, Any]) -> NetworkCosts | None:
    """None if there is nothing, or nothing whole, or something else than was asked for."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] != key:
            return None
        blocks = [BlockCost(**{part: float(cost[part]) for part in cost}) for cost in content["blocks"]]
        companions = [float(seconds) for seconds in content["companions"]]
        others = {part: float(content[part]) for part in ("load", "copy_s_per_byte")}
        others["measured_at"] = float(content.get("measured_at", path.stat().st_mtime))  # older files lack it
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return NetworkCosts(blocks, companions, **others) if len(blocks) == len(companions) > 0 else None
