"""Channels carry what was agreed on, as it is; what was not is refused in Python."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from harness import tiny_config

from fr_bench.errors import ConfigError
from fr_bench.methods.fr import FeaturesReplay
from fr_bench.planning.site import find_site
from fr_bench.planning.tracing import ring_bytes
from fr_bench.planning.transport_choice import check_precision, choose_transport, module_devices, why_not
from fr_bench.processes.torchrun import Torchrun
from fr_bench.transport.channel import LocalChannel
from fr_bench.transport.ipc import DEPTH, RingPorts, RingReceiver, RingSender
from fr_bench.transport.spec import (
    PeerLost,
    TensorSpec,
    TransportError,
    flat,
    is_dense,
    is_lost_peer,
    noticing_loss,
)


def ring() -> tuple[RingSender, RingReceiver]:
    ports, spec, cpu = RingPorts.create(get_context("spawn")), TensorSpec.of(torch.zeros(2)), torch.device("cpu")
    sender = RingSender(ports, spec, "gradients from module 2 to 1", cpu)
    receiver = RingReceiver(ports, spec, "gradients from module 2 to 1", cpu)
    sender.connect()
    return sender, receiver


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_dense_tensor_travels_as_its_own_storage(layout: torch.memory_format) -> None:
    tensor = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
    spec = TensorSpec.of(tensor)
    arrived = spec.empty()
    flat(arrived).copy_(flat(spec.conform(tensor, "test")))
    assert flat(tensor).data_ptr() == tensor.data_ptr()
    assert torch.equal(arrived, tensor)
    assert arrived.stride() == tensor.stride()


def test_a_tensor_with_gaps_is_not_dense_and_travels_contiguous() -> None:
    gaps = torch.randn(4, 6)[:, ::2]
    assert not is_dense(gaps)
    assert TensorSpec.of(gaps).stride == (3, 1)
    assert is_dense(torch.randn(3, 1, 4).permute(2, 1, 0))


def test_conform_keeps_a_conforming_tensor_and_restrides_another() -> None:
    spec = TensorSpec.of(torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
    good = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert spec.conform(good, "test") is good
    other = good.contiguous()
    assert spec.conform(other, "test").stride() == good.stride()
    assert torch.equal(spec.conform(other, "test"), good)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.float64)])
def test_another_shape_or_dtype_is_refused_by_name(wrong: torch.Tensor) -> None:
    spec = TensorSpec.of(torch.zeros(2, 3))
    with pytest.raises(TransportError, match="features from module 1 to 2"):
        spec.conform(wrong, "features from module 1 to 2")


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes."),
    ],
)
def test_a_neighbour_is_not_blamed_for_an_error_of_ones_own_device(error: RuntimeError) -> None:
    """Kernels fail when they run, which shows wherever the host asks for something next: often a message, for which
    memory may be wanting, too."""
    with pytest.raises(PeerLost, match="module 2 is gone: Connection closed"), noticing_loss("module 2 is gone"):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(type(error)) as caught, noticing_loss("module 2 is gone"):
        raise error
    assert caught.value is error and not is_lost_peer(error)


def test_a_message_about_another_batch_is_refused() -> None:
    channel = LocalChannel(TensorSpec.of(torch.zeros(2)), "gradients from module 2 to 1")
    channel.send(torch.zeros(2), batch=4)
    with pytest.raises(TransportError, match="batch 4 arrived where batch 3 was expected"):
        channel.receive(3)


def test_so_is_one_in_shared_memory() -> None:
    sender, receiver = ring()
    sender.send(torch.zeros(2), 4)
    with pytest.raises(TransportError, match="batch 4 arrived where batch 3 was expected"):
        receiver.receive(3)


def test_who_sends_waits_until_there_is_room() -> None:
    """What has not been received is not written over."""
    sender, receiver = ring()

    def send() -> None:
        for batch in range(DEPTH + 1):
            sender.send(torch.full((2,), float(batch)), batch)

    thread = Thread(target=send, daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    assert [float(receiver.receive(batch)[0]) for batch in range(DEPTH + 1)] == list(range(DEPTH + 1))
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (["cpu"], "serial"),
        (["cpu", "cpu"], "ipc"),
        (["cuda:0", "cuda:0"], "ipc"),
        (["cuda:0", "cuda:1", "cuda:0"], "gloo"),
    ],
)
def test_auto_chooses_by_devices_and_says_why(devices: list[str], expected: str) -> None:
    transport, reason = choose_transport("auto", devices, ring_bytes=1000)
    assert transport == expected
    assert reason


def test_one_process_launches_the_graphs_of_modules_that_share_a_gpu() -> None:
    """Eager modules have a process each: one could not launch kernels as fast as they run."""
    for devices, replicas, expected in ((2, 1, "serial"), (2, 2, "ipc")):
        found, _ = choose_transport("auto", ["cuda:0"] * devices, 1000, replicas=replicas, cuda_graphs=True)
        assert found == expected
    assert choose_transport("auto", ["cpu", "cpu"], 1000, cuda_graphs=True)[0] == "ipc"


def test_auto_falls_back_to_gloo_where_shared_memory_is_too_small() -> None:
    transport, reason = choose_transport("auto", ["cpu", "cpu"], ring_bytes=2**60)
    assert transport == "gloo"
    assert "/dev/shm" in reason


def with_shared_memory(options: str, words: list[str]) -> str:
    """Runs Python with ``words`` where /dev/shm is mounted anew with ``options``; returns what it prints."""
    command = 'mount -t tmpfs -o "$0" tmpfs /dev/shm || exit 77; exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, options, sys.executable, *words],
        capture_output=True, text=True, timeout=200, cwd=Path(__file__).parent,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("nothing can be mounted here")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shared_memory_that_has_become_full_is_named_and_nothing_is_left_there() -> None:
    program = """
import os
import torch
from multiprocessing import get_context
from fr_bench.errors import RunFailed
from fr_bench.processes.child import tidy_up
from fr_bench.transport.ipc import RingPorts, RingSender
from fr_bench.transport.spec import TensorSpec
ports = RingPorts.create(get_context("spawn"))
try:
    RingSender(ports, TensorSpec.of(torch.zeros(2**20)), "features", torch.device("cpu"))
except RunFailed as error:
    print(error)
tidy_up()
print(os.listdir("/dev/shm"))
with open("/dev/shm/others", "wb", buffering=0) as file:
    file.write(bytes(2**20))
try:
    RingPorts.create(get_context("spawn"))
except RunFailed as error:
    print(error)
"""
    slots, left, semaphores = with_shared_memory("size=64k", ["-c", program]).splitlines()
    for told in (slots, semaphores):
        assert told.startswith("transport=ipc: /dev/shm is full (") and "transport=gloo" in told
    assert left == "[]"


def test_a_run_needs_no_shared_memory(tmp_path: Path) -> None:
    """auto falls back to gloo, and what else processes share is there all the same."""
    words = ["model=mlp", "dataset=digits", "k=2", "max_steps=2", "wandb.mode=disabled", f"run_dir={tmp_path / 'run'}"]
    told = with_shared_memory("ro", ["-m", "fr_bench", "train", *words, "batch_size=32", "device=cpu"])
    assert "transport gloo: ipc is out: there is no /dev/shm here, or it cannot be written to" in told


def test_nor_does_a_measurement() -> None:
    """That times how fast a ring of shared memory would be filled."""
    program = "from fr_bench.planning.measured_costs import _copy_s_per_byte; print(_copy_s_per_byte())"
    assert float(with_shared_memory("ro", ["-c", program])) > 0


def test_shared_memory_is_counted_in_pages() -> None:
    """auto falls back to gloo before there is no room for the second tensor of many that are smaller than a page."""
    shapes = [SimpleNamespace(output_bytes=num_bytes) for num_bytes in (8, 2**12 + 1, 0)]
    assert ring_bytes(shapes, True) == 2 * 2**12 * ((2 * 1 + 3) + (2 * 2 + 3))


@pytest.mark.parametrize(
    ("transport", "devices", "message"),
    [
        ("nccl", ["cpu", "cpu"], "use ipc or gloo"),
        ("ipc", ["cuda:0", "cuda:1"], "use nccl or gloo"),
        ("serial", ["cuda:0", "cuda:1"], "name one, or use nccl or gloo"),
    ],
)
def test_a_transport_that_cannot_serve_is_refused_with_the_fix(
    transport: str, devices: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_transport(transport, devices, ring_bytes=1000)


def test_nccl_wants_a_gpu_for_each_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert "a GPU for each of the 3 modules" in str(why_not("nccl", ["cuda:0", "cuda:1", "cuda:0"], 0))
    assert choose_transport("auto", ["cuda:0", "cuda:1"], 0)[0] == "nccl"


def test_modules_of_one_process_are_on_one_gpu_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    site = find_site(tiny_config("fr", 3, "serial", device="auto"), FeaturesReplay)
    assert site.devices == ["cuda:0"] * 3 and site.transport(0)[0] == "serial"
    several = find_site(tiny_config("fr", 3, "serial", device="auto", devices=[1, 0]), FeaturesReplay)
    with pytest.raises(ConfigError, match="transport=serial: one process trains its modules on one device"):
        several.transport(0)
    assert find_site(tiny_config("fr", 3, "gloo", device="auto"), FeaturesReplay).devices == [
        "cuda:0",
        "cuda:1",
        "cuda:0",
    ]


@pytest.mark.parametrize("setting", ["backend:native, expandable_segments: True", "backend: cudaMallocAsync"])
@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_memory_that_cannot_be_shared_rules_ipc_out(name: str, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, setting)
    assert f"unset {name}" in str(why_not("ipc", ["cuda:0", "cuda:0"], 0))
    assert choose_transport("auto", ["cuda:0", "cuda:0"], 0)[0] == "gloo"


def test_modules_go_round_robin_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert module_devices("auto", None, 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert module_devices("cuda", [1], 2) == ["cuda:1", "cuda:1"]
    with pytest.raises(ConfigError, match="GPUs 0 to 1"):
        module_devices("auto", [2], 2)
    assert module_devices("cpu", None, 2) == ["cpu", "cpu"]


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="device=cuda: torch sees no GPU"):
        module_devices("cuda", None, 2)


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="precision=tf32"):
        check_precision("tf32", ["cpu"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: (7, 5))
    with pytest.raises(ConfigError, match="older than Ampere"):
        check_precision("tf32", ["cuda:0"])


def test_under_torchrun_modules_go_round_robin_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    launch = Torchrun(0, 4, 0, 2, "a", 1)  # four processes, two on a machine
    devices = module_devices("auto", None, 4, launch)
    assert devices == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert choose_transport("auto", devices, 0, launch=launch)[0] == "nccl", "each has a GPU of its own"


def test_what_shared_memory_lacks_is_told_in_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    # 100 MiB free of which 64 MiB are there for others than root.
    status = SimpleNamespace(f_bavail=2**14, f_bfree=25 * 2**10, f_frsize=2**12, f_bsize=2**20)
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    assert why_not("ipc", ["cpu", "cpu"], 2**26) is None
    told = why_not("ipc", ["cpu", "cpu"], 2**26 + 2**20)
    assert told.startswith("its rings need 65 MiB of /dev/shm, which has 64 MiB free;")


def test_cores_are_shared_by_the_modules_of_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fr_bench.planning.site.usable_cores", lambda: 16)
    config = tiny_config("fr", 2, "gloo", replicas=2) | {"threads": None}
    assert find_site(config, FeaturesReplay).threads == 4
