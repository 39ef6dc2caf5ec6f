"""A few iterations under torch.profiler: a Chrome trace, and how busy a GPU was."""

from __future__ import annotations

import errno
import gzip
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torch.profiler import ProfilerActivity, profile

KERNEL = "kernel"
ON_DEVICE = (KERNEL, "gpu_memcpy", "gpu_memset")  # categories of the trace; annotations there are no work
QUIET = "6"  # above all levels of the profiler's own log
LARGEST_PLAIN_BYTES = 4 * 2**20  # of a trace; a larger one is compressed


@dataclass(frozen=True)
class DeviceLoad:
    """What a process had a GPU do.

    Attributes:
        busy_s: seconds in which it did something; of several GPUs, the busiest one's. None where it is not known.
        num_kernels: that ran, on all GPUs; copies and fills are not counted. None where it is not known.
    """

    busy_s: float | None = None
    num_kernels: int | None = None

    def over(self, num_iterations: int) -> dict[str, float | None]:
        """The same as means an iteration, by name."""
        return {
            "busy_s": None if self.busy_s is None else self.busy_s / num_iterations,
            "num_kernels": None if self.num_kernels is None else self.num_kernels / num_iterations,
        }


class Recording:
    """What was recorded; complete when :func:`record_profile` is left."""

    def __init__(self, profiler: profile) -> None:
        self._profiler = profiler

    def write(self, path: Path) -> tuple[Path, DeviceLoad]:
        """Writes the trace, compressed with ``.gz`` behind the name if it is large.

        Args:
            path: with ``.json`` at its end.

        Returns:
            The file, and the GPU's load.

        Raises:
            OSError: the disk is full, or the like; nothing is left behind.
        """
        _remove(path)  # of an earlier attempt
        try:
            self._profiler.export_chrome_trace(str(path))
            if not path.exists():
                _refuse(path)
            content = path.read_bytes()
            load = device_load(json.loads(content)["traceEvents"])
            if len(content) <= LARGEST_PLAIN_BYTES:
                return path, load
            compressed = _compressed(path)
            compressed.write_bytes(gzip.compress(content, compresslevel=3))
            path.unlink()
            return compressed, load
        except OSError:
            with suppress(OSError):
                _remove(path)
            raise


def _compressed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _remove(path: Path) -> None:
    """Removes the trace in all its forms; one that the profiler has not finished is called ``.tmp``."""
    for each in (path, _compressed(path), path.with_name(f"{path.name}.tmp")):
        each.unlink(missing_ok=True)


def _refuse(path: Path) -> NoReturn:
    """Raises the OSError for which ``path`` could not be written. The profiler does not tell: we find it ourselves."""
    with path.open("wb") as stream:
        stream.write(bytes(2**16))
        stream.flush()
        os.fsync(stream.fileno())
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@contextmanager
def record_profile(on_gpu: bool) -> Iterator[Recording]:
    """Records the body. On a GPU it must begin and end with the device at rest, or what belongs to others is counted.

    Args:
        on_gpu: whether a GPU's work is recorded beside the host's.
    """
    if not on_gpu:  # else it complains of the GPU's driver, which nobody asked for
        os.environ.setdefault("KINETO_LOG_LEVEL", QUIET)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler:  # it is one cycle; without, it warns of several
        yield Recording(profiler)


def device_load(events: Iterable[Mapping[str, Any]]) -> DeviceLoad:
    """Of the ``traceEvents`` of a Chrome trace, whose times are microseconds; nothing is known if none is a GPU's."""
    intervals: defaultdict[Any, list[tuple[float, float]]] = defaultdict(list)
    num_kernels = 0
    for event in events:
        if event.get("cat") not in ON_DEVICE or event.get("ph") != "X":
            continue
        num_kernels += event["cat"] == KERNEL
        device = event.get("args", {}).get("device", event.get("pid"))
        intervals[device].append((float(event["ts"]), float(event["ts"]) + float(event.get("dur", 0.0))))
    if not intervals:
        return DeviceLoad()
    return DeviceLoad(max(map(length_of_union, intervals.values())) / 1e6, num_kernels)


def length_of_union(intervals: Sequence[tuple[float, float]]) -> float:
    """How much of the axis the (start, end) ``intervals`` cover: what streams do at the same time counts once."""
    total, covered_until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        if end > covered_until:
            total += end - max(start, covered_until)
            covered_until = end
    return total


def profile_file(modules: Sequence[int]) -> str:
    """The name of the file of a process with ``modules`` (from 1): ``profile_2.json``, ``profile_1-4.json``."""
    numbers = f"{modules[0]}" if len(modules) == 1 else f"{modules[0]}-{modules[-1]}"
    return f"profile_{numbers}.json"
