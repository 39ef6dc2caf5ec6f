"""Small models for tests, reached by `_target_` as a user's own would be."""

from __future__ import annotations

import math
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fr_bench.training.trainer import Trainer
from fr_bench.transport import open as opening
from fr_bench.transport.distributed import DistributedReceiver, DistributedSender


class Residual(nn.Module):
    """A pre-activation residual block with batch norm, and dropout where asked for."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.conv(self.norm(x).relu()))


class Head(nn.Module):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x).relu().mean(dim=(2, 3)))


def residual(
    input_shape: tuple[int, int, int], num_classes: int, width: int = 8, depth: int = 4, dropout: float = 0.0
) -> list[tuple[str, nn.Module]]:
    """A stem, ``depth`` residual blocks and a head: depth + 2 blocks."""
    stem = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
    blocks: list[tuple[str, nn.Module]] = [("stem", stem)]
    blocks += [(f"block{index}", Residual(width, dropout)) for index in range(1, depth + 1)]
    return [*blocks, ("head", Head(width, num_classes))]


class LayerDrop(nn.Module):
    """A residual block that half of the batches skip in training.

    Args:
        of: what decides: ``torch`` (on the host), ``python`` or ``numpy``.
    """

    def __init__(self, channels: int, of: str) -> None:
        super().__init__()
        self.block = Residual(channels, 0.0)
        self.draw = {
            "torch": lambda: torch.rand(()).item(),
            "python": random.random,
            "numpy": np.random.rand,
        }[of]

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and self.draw() < 0.5 else self.block(x)


def layer_drop(input_shape: tuple[int, int, int], num_classes: int, of: str) -> list[tuple[str, nn.Module]]:
    """``residual`` with blocks that are skipped; numpy draws the head's initial weights."""
    blocks = residual(input_shape, num_classes)
    weight = blocks[-1][1].linear.weight  # type: ignore[union-attr]
    with torch.no_grad():
        weight.copy_(torch.from_numpy(np.random.normal(0.0, 0.1, tuple(weight.shape))))  # type: ignore[arg-type]
    return [(name, LayerDrop(8, of) if name.startswith("block") else block) for name, block in blocks]


def grouped(params: Iterable[nn.Parameter], lr: float, **settings: Any) -> torch.optim.Optimizer:
    """SGD that leaves biases and norms alone, and learns tenfold in what has four dimensions."""
    groups: dict[float, list[nn.Parameter]] = {0.0: [], 1.0: [], 10.0: []}
    for parameter in params:
        groups[{1: 0.0, 4: 10.0}.get(parameter.dim(), 1.0)].append(parameter)
    found = [{"params": group, "lr": lr * times} for times, group in groups.items() if group]
    return torch.optim.SGD(found, lr=lr, momentum=settings.get("momentum", 0.0))


class Counting(torch.optim.SGD):
    """SGD whose weight decay grows with the steps and with the gradients, which it counts and sums by group, as
    optimizers without a schedule do; sums are where the parameters are, one made at once, one in the first step."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        for group in self.param_groups:
            group["sum"] = torch.zeros((), device=group["params"][0].device)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            group["num_steps"] = group.get("num_steps", 0) + 1
            gradient = group["params"][0].grad
            group["sum"].add_(gradient.abs().sum())
            group["row"] = group.get("row", torch.zeros(1, device=gradient.device)).add_(group["sum"])
            group["weight_decay"] = 1e-3 * group["num_steps"] + 1e-4 * float(group["row"])
            group["told"] = print  # no plain data
        return super().step(closure)


class FirstOf(nn.Module):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        return self.linear(both[0])


def volumetric(input_shape: tuple[int, int, int, int], num_classes: int) -> list[tuple[str, nn.Module]]:
    """Convolutions over three dimensions, and one over two."""
    stem, body = (nn.Conv3d(channels, 8, 3, padding=1) for channels in (input_shape[0], 8))
    flat = nn.Sequential(nn.Flatten(2, 3), nn.Conv2d(8, 8, 3, padding=1))
    return [("stem", stem), ("body", nn.Sequential(nn.ReLU(), body)), ("flat", flat), ("head", Head(8, num_classes))]


def two_outputs(input_shape: tuple[int, int, int], num_classes: int) -> list[tuple[str, nn.Module]]:
    """A block that returns a pair, for one that takes it."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 8))
    return [("flat", flat), ("lstm", nn.LSTM(8, 8)), ("head", FirstOf(8, num_classes))]


class PerPixel(nn.Module):
    """[B, C, H, W] -> logits [B, H, W, classes]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).permute(0, 2, 3, 1)


def segmenter(input_shape: tuple[int, int, int], num_classes: int) -> list[tuple[str, nn.Module]]:
    """A label for each pixel."""
    return [*residual(input_shape, num_classes)[:-1], ("head", PerPixel(8, num_classes))]


class FunctionalNorm(nn.Module):
    """Batch norm that is no layer of torch's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.variance, training=self.training)


class Renormalized(nn.BatchNorm2d):
    """Batch norm that scales by its running statistics in training, too (Ioffe, 2017), and moves them by itself."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        variance, mean = torch.var_mean(x, (0, 2, 3))
        with torch.no_grad():
            self.running_mean.lerp_(mean, 0.1)  # type: ignore[union-attr]
            self.running_var.lerp_(variance, 0.1)  # type: ignore[union-attr]
        scale = (self.weight / self.running_var.sqrt()).view(1, -1, 1, 1)  # type: ignore[union-attr]
        return (x - mean.view(1, -1, 1, 1)) * scale + self.bias.view(1, -1, 1, 1)


class SeldomMoved(nn.Module):
    """Subtracts a mean that is taken anew in every third pass."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("num_passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not x.is_meta:
            self.num_passes += 1
            if self.num_passes % 3 == 0:
                self.mean.copy_(x.detach().mean(dim=(0, 2, 3)))
        return x - self.mean.view(1, -1, 1, 1)


def moving(input_shape: tuple[int, int, int], num_classes: int, what: str) -> list[tuple[str, nn.Module]]:
    """Residual blocks with buffers that move in every pass, and not as those of ordinary batch norm: the vectors of
    spectral norm, the running statistics of instance norm, or of batch norm that averages over all batches, is a
    function of torch's or has a forward of its own; a mean that moves in every third pass, or one of two layers; or
    the first of them in blocks that half of the batches skip (``skipped``)."""
    blocks = residual(input_shape, num_classes)
    for index, (name, block) in list(enumerate(blocks))[1:-1]:
        assert isinstance(block, Residual)
        if what == "instance":
            block.norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
            continue
        if what == "averaged":
            block.norm = nn.BatchNorm2d(8, momentum=None)
            continue
        if what == "shared":
            means = [SeldomMoved(8), SeldomMoved(8)]
            means[1]._buffers |= means[0]._buffers
            block.norm = nn.Sequential(*means)  # type: ignore[assignment]
            continue
        if what in ("functional", "renormalized", "seldom"):
            kinds = {"functional": FunctionalNorm, "renormalized": Renormalized, "seldom": SeldomMoved}
            block.norm = kinds[what](8)
            continue
        nn.utils.parametrizations.spectral_norm(block.conv)
        if what == "skipped":
            dropped = LayerDrop(8, "torch")
            dropped.block = block
            blocks[index] = (name, dropped)
    return blocks


class Recomputing(nn.Module):
    """Layers that are run again in the backward (torch.utils.checkpoint), unless ``how`` is ``kept``."""

    def __init__(self, channels: int, how: str, norm: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(channels) if norm else nn.Tanh(), nn.Conv2d(8, channels, 1))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "kept":
            return self.layers(x)
        h = checkpoint(self.layers, x, use_reentrant=self.how == "reentrant")
        assert isinstance(h, Tensor)
        return h


def recomputing(
    input_shape: tuple[int, int, int], num_classes: int, how: str, norm: bool = False
) -> list[tuple[str, nn.Module]]:
    """Blocks of such layers between others."""
    blocks = residual(input_shape, num_classes)
    return [(name, Recomputing(8, how, norm) if name in ("block1", "block3") else block) for name, block in blocks]


class PostNormed(nn.Module):
    """A residual block whose branch ends with its norm: the gradient of a sum passes on in the layout that it has."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x.relu()))


def post_normed(input_shape: tuple[int, int, int], num_classes: int) -> list[tuple[str, nn.Module]]:
    """Features in channels_last whose gradients are not."""
    stem = nn.Conv2d(input_shape[0], 8, 3, padding=1)
    blocks = [(f"block{index}", PostNormed(8)) for index in range(1, 5)]
    return [("stem", stem), *blocks, ("pool", Pool()), ("head", nn.Linear(8, num_classes))]


def hooked(input_shape: tuple[int, int, int], num_classes: int, masked: bool) -> list[tuple[str, nn.Module]]:
    """Some weights never learn: their gradient is masked by a hook, or made zero once it is accumulated."""

    def zero(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.zero_()

    blocks = residual(input_shape, num_classes)
    for _, block in blocks[1:-1] if masked else []:
        assert isinstance(block, Residual)
        block.conv.weight.register_hook(lambda gradient: gradient * (torch.arange(8).view(-1, 1, 1, 1) % 2))
        block.norm.bias.register_post_accumulate_grad_hook(zero)
        block.norm.weight.register_hook(lambda gradient: gradient)
        block.norm.weight.requires_grad_(False)  # no hook can be on such a one, but for those from before
    return blocks


class OddlyNormed(nn.Module):
    """One batch norm that is used twice, and one that stays as it was trained before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.twice = nn.BatchNorm2d(channels)
        self.still = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def train(self, mode: bool = True) -> OddlyNormed:
        super().train(mode)
        self.still.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.still(self.twice(self.conv(self.twice(x).relu())))


def oddly_normed(input_shape: tuple[int, int, int], num_classes: int) -> list[tuple[str, nn.Module]]:
    """Batch norms that do not all count one batch a pass."""
    blocks = residual(input_shape, num_classes)
    return [*blocks[:2], ("odd", OddlyNormed(8)), *blocks[2:]]


class Noise(nn.Module):
    """Draws by a function, as no layer of torch's tells."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


def noisy(input_shape: tuple[int, int, int], num_classes: int) -> list[tuple[str, nn.Module]]:
    """Noise on features."""
    blocks = residual(input_shape, num_classes)
    return [*blocks[:-1], ("noise", Noise()), blocks[-1]]


def with_an_idle_parameter(input_shape: tuple[int, int, int], num_classes: int) -> list[tuple[str, nn.Module]]:
    """A parameter that no pass uses, in the first block behind the stem."""
    blocks = residual(input_shape, num_classes)
    blocks[1][1].register_parameter("idle", nn.Parameter(torch.ones(3)))
    return blocks


def partly_frozen(input_shape: tuple[int, int, int], num_classes: int) -> list[tuple[str, nn.Module]]:
    """A model of which some layers were made without training in mind, as one that was trained before."""
    blocks = residual(input_shape, num_classes)
    for _, block in blocks[1::2]:
        for parameter in block.parameters():
            parameter.requires_grad_(False)
        block.register_parameter("scale", nn.Parameter(torch.ones(())))
        block.register_forward_hook(lambda block, _, h: h * block.scale)
    return blocks


def in_place(input_shape: tuple[int, int, int], num_classes: int) -> list[tuple[str, nn.Module]]:
    """A model whose second block begins with an in-place ReLU."""
    blocks = residual(input_shape, num_classes, depth=2)
    blocks.insert(1, ("bad", nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))))
    return blocks


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def tied(input_shape: tuple[int, int, int], num_classes: int) -> list[tuple[str, nn.Module]]:
    """A model whose second block uses a weight twice."""
    blocks = residual(input_shape, num_classes, depth=2)
    blocks.insert(1, ("tied", Tied(8)))
    return blocks


def shared(input_shape: tuple[int, int, int], num_classes: int) -> list[tuple[str, nn.Module]]:
    """A model with two blocks of the same weights."""
    blocks = residual(input_shape, num_classes)
    return [*blocks[:2], ("again", blocks[1][1]), *blocks[2:]]


class RaisesAt(nn.Module):
    """A block that raises in its ``at``-th training forward."""

    def __init__(self, width: int, at: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)
        self.at = at
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls == self.at:
            raise ArithmeticError("the bug in block 'faulty'")
        return self.conv(x)


def faulty(input_shape: tuple[int, int, int], num_classes: int, at: int = 9) -> list[tuple[str, nn.Module]]:
    """A model whose third block raises after a while."""
    blocks = residual(input_shape, num_classes, depth=2)
    blocks.insert(2, ("faulty", RaisesAt(8, at)))
    return blocks


def without_norm(
    input_shape: tuple[int, int, int], num_classes: int, width: int = 8, depth: int = 1
) -> list[tuple[str, nn.Module]]:
    """``depth`` + 1 convolutions and a linear layer: every sample on its own."""
    stem = nn.Sequential(nn.Conv2d(input_shape[0], width, 3, padding=1), nn.ReLU())
    body = [nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(depth)]
    named = [("body" if depth == 1 else f"body{index}", block) for index, block in enumerate(body, start=1)]
    return [("stem", stem), *named, ("pool", Pool()), ("head", nn.Linear(width, num_classes))]


class Pool(nn.Module):
    """The mean over an image, with a scale to train: the gradient of its input is one value spread over many."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) * self.scale


class Killed(nn.Module):
    """A block that ends the second process of a run, as the system does for want of memory."""

    def __init__(self, width: int, num_classes: int, at: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes)
        self.at = at
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls == self.at and dist.is_initialized() and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.linear(x)


class BadDay(nn.Module):
    """A block to which something happens at its ``at``-th training forward, or at what comes after that.

    Args:
        what: ``killed in play``, ``killed in learn``, ``killed in evaluation``; ``gradient`` (becomes NaN); ``torch``
            (asks for more memory than there is), ``python`` (the same, without torch); ``exit`` (calls sys.exit),
            ``leave`` (ends the process as if all were well, and says nothing).
    """

    def __init__(self, what: str, at: int) -> None:
        super().__init__()
        self.what = what
        self.at = at
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls < self.at:
            return x
        is_playing, is_learning = self.training and not x.requires_grad, x.requires_grad and torch.is_grad_enabled()
        killed = {"killed in play": is_playing, "killed in evaluation": not self.training}
        if killed.get(self.what, False):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "exit":
            sys.exit()
        if self.what == "leave":
            os._exit(0)
        if self.what == "torch":
            torch.empty(2**50, dtype=torch.uint8, device=x.device)
        if self.what == "python":
            bytearray(2**60)
        if is_learning and self.what == "killed in learn":
            x.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
        if is_learning and self.what == "gradient":
            x.register_hook(lambda gradient: gradient * float("nan"))
        return x


class Roomy(nn.Module):
    """Notes in ``path``, in every pass, how many pages the system had to map for a tensor of 128 MiB."""

    def __init__(self, width: int, num_classes: int, path: str) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes)
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        torch.ones(2**25, device=x.device)
        if not x.is_meta:
            with open(self.path, "a") as notes:
                notes.write(f"{resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before}\n")
        return self.linear(x.flatten(1))


def roomy(input_shape: tuple[int, int, int], num_classes: int, path: str) -> list[tuple[str, nn.Module]]:
    return [("roomy", Roomy(math.prod(input_shape), num_classes, path))]


def bad_day(
    input_shape: tuple[int, int, int], num_classes: int, what: str, at: int = 20
) -> list[tuple[str, nn.Module]]:
    """Four blocks; the third, which equal cuts give to the middle one of three modules, has a bad day."""
    stem, body, pool, head = without_norm(input_shape, num_classes)
    return [stem, ("body", nn.Sequential(body[1], BadDay(what, at))), pool, head]


def killed(input_shape: tuple[int, int, int], num_classes: int, at: int) -> list[tuple[str, nn.Module]]:
    """``without_norm`` with a head that ends the second process in its ``at``-th training forward."""
    return [*without_norm(input_shape, num_classes)[:-1], ("head", Killed(8, num_classes, at))]


class BusySender(DistributedSender):
    """Keeps the device of its process busy until what it sent is received."""

    all: ClassVar[list[BusySender]] = []

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.all.append(self)

    @classmethod
    def wait_for_device(cls, _: Trainer) -> None:
        for sender in cls.all:
            while sender._unfinished:
                sender._unfinished.popleft()[0].wait()


class NotAhead(DistributedReceiver):
    """Receives when it is asked to."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **(settings | {"ahead": False}))


def under_nccl(input_shape: tuple[int, int, int], num_classes: int) -> list[tuple[str, nn.Module]]:
    """The residual model, in processes whose channels behave as nccl's: at the first message between two of them each
    waits for the other, nothing is received ahead, and a device is busy with what it sends until that is received."""
    if dist.is_initialized() and dist.isend.__module__ != __name__:
        store, met = dist.distributed_c10d._get_default_store(), set()

        def meet(peer: int, group: dist.ProcessGroup) -> None:
            me, name = dist.get_rank(), group.group_name
            if (peer, name) not in met:
                store.set(f"{name}: {me} to {peer}", "")
                store.wait([f"{name}: {peer} to {me}"], timedelta(seconds=20))
                met.add((peer, name))

        def watched(exchange: Callable[..., Any]) -> Callable[..., Any]:
            def exchange_after_meeting(tensor: Tensor, peer: int, group: dist.ProcessGroup | None = None) -> Any:
                if group is not None:  # a channel's: all else has the default one, which is gloo's under nccl too
                    meet(peer, group)
                return exchange(tensor, peer, group=group)

            return exchange_after_meeting

        for name in ("isend", "irecv", "send", "recv"):
            setattr(dist, name, watched(getattr(dist, name)))
        opening.DistributedSender, opening.DistributedReceiver = BusySender, NotAhead
        Trainer.synchronize = lambda trainer: BusySender.wait_for_device(trainer)
    return residual(input_shape, num_classes)
