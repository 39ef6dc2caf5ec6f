"""The methods once more, written from the indices of the papers in plain PyTorch, one process, no transport.

    h[k][t]   output of module k for batch t;  h[0][t] are the images
    d[k][t]   gradient of the loss with respect to h[k] that module k+1 computes in iteration t
    w[k]      weights of module k; in iteration t they are w^t until the update at its end

Every quantity of iteration t is computed from the weights w^t of *before* any update of iteration t, except
where the chain rule itself needs nothing else. Nothing here is imported from fr_bench.methods.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fr_bench.data import SeededOrder, TrainTensor, build_dataset, train_inputs
from fr_bench.models import build_blocks
from fr_bench.seeds import derive_seed

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


class Reference:
    """The common ground: modules w[1..K], batches x[t], y[t], optimizers."""

    def __init__(self, config: dict[str, Any], cuts: list[int]) -> None:
        torch.set_num_threads(1)
        self.K = len(cuts) + 1
        self.B, self.smoothing = config["batch_size"], config["label_smoothing"]
        dtype = DTYPES[config["precision"]]
        data = build_dataset(config["dataset"])
        order = SeededOrder(len(data.train.labels), self.B, config["seed"])
        device, layout = torch.device("cuda:0" if config["device"] == "cuda" else "cpu"), torch.channels_last
        augmentation = config["dataset"]["augmentation"]
        self.images = train_inputs(
            data, order, augmentation, config["seed"], device=device, dtype=dtype, memory_format=layout
        )
        self.labels = TrainTensor(data.train.labels, order, device)
        self.steps_per_epoch = len(data.train.labels) // self.B
        self.T = config["epochs"] * self.steps_per_epoch
        blocks = build_blocks(config["model"], data.input_shape, data.num_classes, config["seed"])
        ends = [0, *cuts, len(blocks)]
        self.names = [[name for name, _ in blocks[a:b]] for a, b in itertools.pairwise(ends)]
        self.w = [nn.Sequential()] + [
            nn.Sequential(*(block for _, block in blocks[a:b])).to(device, dtype=dtype).to(memory_format=layout)
            for a, b in itertools.pairwise(ends)
        ]
        settings = config["optimizer"]
        self.optimizers = [
            torch.optim.SGD(
                module.parameters(),
                lr=settings["lr"],
                momentum=settings["momentum"],
                weight_decay=settings["weight_decay"],
            )
            for module in self.w[1:]
        ]
        self.base_lr = settings["lr"]
        self.milestones = [m * config["epochs"] for m in config["schedule"]["milestones"]]
        self.gamma = config["schedule"]["gamma"]
        self.losses: list[float] = []
        self.measured: dict[tuple[int, int], tuple[float, ...]] = {}  # by module and iteration: what its method does

    def lr(self, t: int) -> float:
        return self.base_lr * self.gamma ** sum(t / self.steps_per_epoch >= m for m in self.milestones)

    def update(self, k: int, t: int) -> None:
        optimizer = self.optimizers[k - 1]
        optimizer.param_groups[0]["lr"] = self.lr(t)
        optimizer.step()
        optimizer.zero_grad()

    def forward_without_statistics(self, k: int, x: Tensor) -> Tensor:
        """A forward whose effect on batch norm's buffers is undone."""
        before = {name: buffer.clone() for name, buffer in self.w[k].named_buffers()}
        with torch.no_grad():
            h = self.w[k](x)
            for name, buffer in self.w[k].named_buffers():
                buffer.copy_(before[name])
        return h

    def loss(self, logits: Tensor, t: int) -> Tensor:
        y = self.labels.batch(t)
        num_labels = y[0].numel()  # of a sample
        sum_over_labels = F.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), y.reshape(-1), reduction="sum", label_smoothing=self.smoothing
        )
        loss = sum_over_labels / num_labels / self.B
        self.losses.append(loss.item())
        return loss

    def top(self, x: Tensor, t: int) -> Tensor | None:
        """Module K's forward, loss and backward on batch t; returns the gradient of its input."""
        x = x.detach().requires_grad_(self.K > 1)
        self.loss(self.w[self.K](x), t).backward()
        return x.grad

    def weights(self) -> dict[str, Tensor]:
        result = {}
        for names, module in zip(self.names, self.w[1:], strict=True):
            for key, value in module.state_dict().items():
                index, rest = key.split(".", 1)
                result[f"{names[int(index)]}.{rest}"] = value.detach().to("cpu", copy=True)
        return result


def bp(config: dict[str, Any], cuts: list[int]) -> Reference:
    """An ordinary training loop over the whole network; the cuts mean nothing to it."""
    r = Reference(config, cuts)
    for t in range(r.T):
        h = r.images.batch(t)
        for module in r.w[1:]:
            h = module(h)
        r.loss(h, t).backward()
        for k in range(1, r.K + 1):
            r.update(k, t)
    return r


def fr(config: dict[str, Any], cuts: list[int], **options: Any) -> Reference:
    """FR: in iteration t module k < K replays h[k-1][s], s = t - (K-k), with w^t and uses d[k][t-1]."""
    warmup, bn_stats = options.get("warmup", "skip"), options.get("bn_stats", "replay")
    r = Reference(config, cuts)
    h: dict[tuple[int, int], Tensor] = {}
    d: dict[tuple[int, int], Tensor] = {}
    for t in range(r.T):
        h[0, t] = r.images.batch(t)
        for k in range(1, r.K):  # play
            if bn_stats == "replay":
                h[k, t] = r.forward_without_statistics(k, h[k - 1, t])
            else:
                h[k, t] = r.w[k](h[k - 1, t]).detach()
        for k in range(1, r.K + 1):  # replay; reads d of iteration t-1, writes d of iteration t
            s = t - (r.K - k)
            if k == r.K:
                gradient = r.top(h[k - 1, t], t)
            elif s >= 0:
                x = h[k - 1, s].clone().requires_grad_(k > 1)
                buffers = {name: b.clone() for name, b in r.w[k].named_buffers()}
                r.w[k](x).backward(d[k, t - 1])
                if bn_stats == "play":
                    for name, buffer in r.w[k].named_buffers():
                        buffer.data.copy_(buffers[name])
                gradient = x.grad
            elif warmup == "zero":
                for p in r.w[k].parameters():
                    p.grad = torch.zeros_like(p)
                gradient = None
            else:
                continue
            if k > 1 and gradient is not None:
                d[k - 1, t] = gradient
        for k in range(1, r.K + 1):
            r.update(k, t)
    return r


def ddg(config: dict[str, Any], cuts: list[int], **options: Any) -> Reference:
    """DDG: in iteration t module k < K uses d[k][t-1] on the graph of batch s = t - (K-k), built with w^s."""
    r = Reference(config, cuts)
    h: dict[tuple[int, int], Tensor] = {}
    d: dict[tuple[int, int], Tensor] = {}
    graph: dict[tuple[int, int], tuple[nn.Module, Tensor, Tensor]] = {}
    for t in range(r.T):
        h[0, t] = r.images.batch(t)
        for k in range(1, r.K):  # play, on a snapshot of the module; its batch-norm buffers are the real ones
            snapshot = copy.deepcopy(r.w[k])
            x = h[k - 1, t].clone().requires_grad_(k > 1)
            out = snapshot(x)
            for name, buffer in r.w[k].named_buffers():
                buffer.copy_(snapshot.get_buffer(name))
            graph[k, t] = snapshot, x, out
            h[k, t] = out.detach()
        for k in range(1, r.K + 1):
            s = t - (r.K - k)
            gradient = None
            if k == r.K:
                gradient = r.top(h[k - 1, t], t)
            elif s >= 0:
                snapshot, x, out = graph.pop((k, s))
                out.backward(d[k, t - 1])
                for p, stale in zip(r.w[k].parameters(), snapshot.parameters(), strict=True):
                    p.grad = stale.grad
                gradient = x.grad
            elif options.get("warmup", "skip") == "zero":
                for p in r.w[k].parameters():
                    p.grad = torch.zeros_like(p)
            if k > 1 and gradient is not None:
                d[k - 1, t] = gradient
        for k in range(1, r.K + 1):
            r.update(k, t)
    return r


def synthesizer(shape: torch.Size, settings: dict[str, Any], num_labels: int, seed: int) -> nn.Sequential:
    """Hidden 5x5 convolutions with batch norm and ReLU, a linear one that starts at zero."""
    torch.manual_seed(seed)
    width, size = settings["hidden_channels"], settings["kernel_size"]
    layers: list[nn.Module] = []
    channels = shape[1] + num_labels
    for _ in range(settings["num_hidden"]):
        convolution = nn.Conv2d(channels, width, size, padding=size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    last = nn.Conv2d(channels, shape[1], size, padding=size // 2)
    for p in last.parameters():
        p.data.zero_()
    return nn.Sequential(*layers, last)


def dni(config: dict[str, Any], cuts: list[int]) -> Reference:
    """DNI and cDNI: module k < K steps on M[k](h[k][t]) / c; M[k] regresses c d[k][t], c = B sqrt(elements of h[k])."""
    settings = config["method"]
    r = Reference(config, cuts)
    h: dict[int, Tensor] = {}
    M: dict[int, nn.Sequential] = {}
    optimizers: dict[int, torch.optim.Optimizer] = {}
    num_labels = config["dataset"]["num_classes"] if settings["conditional"] else 0
    for t in range(r.T):
        h[0] = r.images.batch(t)
        graphs: dict[int, tuple[Tensor, Tensor]] = {}
        for k in range(1, r.K):
            x = h[k - 1].clone().requires_grad_(k > 1)
            out = r.w[k](x)
            graphs[k] = x, out
            h[k] = out.detach()
        predictions: dict[int, Tensor] = {}
        d: dict[int, Tensor | None] = {}
        for k in range(1, r.K + 1):
            if k == r.K:
                d[k - 1] = r.top(h[k - 1], t)
                continue
            if k not in M:
                seed = derive_seed(config["seed"], "synthesizer", k)
                M[k] = synthesizer(h[k].shape, settings, num_labels, seed)
                M[k].to(h[k].device, dtype=h[k].dtype).to(memory_format=torch.channels_last)
                optimizers[k] = torch.optim.SGD(M[k].parameters(), lr=settings["optimizer"]["lr"], momentum=0.9)
            seen = h[k]
            if num_labels:
                one_hot = F.one_hot(r.labels.batch(t), num_labels).to(seen.dtype)
                seen = torch.cat((seen, one_hot[:, :, None, None].expand(-1, -1, *seen.shape[2:])), dim=1)
            predictions[k] = M[k](seen)
            x, out = graphs[k]
            out.backward(predictions[k].detach() / (r.B * out[0].numel() ** 0.5))
            d[k - 1] = x.grad
        for k in range(1, r.K + 1):
            r.update(k, t)
            if k < r.K:  # M[k] learns from iteration t before iteration t + 1
                target = d[k]
                assert target is not None
                target = target * (r.B * target[0].numel() ** 0.5)
                loss = F.mse_loss(predictions[k], target)
                loss.backward()
                cosine = F.cosine_similarity(predictions[k].detach().flatten(), target.flatten(), dim=0)
                r.measured[k, t] = loss.item(), cosine.item()
                nn.utils.clip_grad_norm_(M[k].parameters(), settings["clip_norm"])
                optimizers[k].param_groups[0]["lr"] = settings["optimizer"]["lr"] * r.lr(t) / r.base_lr
                optimizers[k].step()
                optimizers[k].zero_grad()
    return r


def auxiliary(shape: torch.Size, settings: dict[str, Any], num_classes: int, seed: int) -> nn.Sequential:
    """Sides over four, 1x1 convolutions, sides of two, a perceptron; for sides that are multiples of eight."""
    torch.manual_seed(seed)
    channels, width = shape[1], 4 * shape[1]
    assert shape[2] % 8 == shape[3] % 8 == 0
    layers: list[nn.Module] = [nn.AvgPool2d(4)]
    for _ in range(settings["num_convolutions"]):
        layers += [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    layers += [nn.AvgPool2d((shape[2] // 8, shape[3] // 8)), nn.Flatten()]
    for _ in range(settings["num_hidden"]):
        layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def dgl(config: dict[str, Any], cuts: list[int]) -> Reference:
    """DGL: module k < K steps on the loss of A[k](h[k][t]), whose weights step with it; no gradient passes a cut."""
    settings, optimizer = config["method"], config["optimizer"]
    r = Reference(config, cuts)
    A: dict[int, nn.Sequential] = {}
    optimizers: dict[int, torch.optim.Optimizer] = {}
    for t in range(r.T):
        h = r.images.batch(t)
        for k in range(1, r.K):
            h = r.w[k](h.detach())
            if k not in A:
                seed = derive_seed(config["seed"], "auxiliary", k)
                A[k] = auxiliary(h.shape, settings, config["dataset"]["num_classes"], seed)
                A[k].to(h.device, dtype=h.dtype).to(memory_format=torch.channels_last)
                optimizers[k] = torch.optim.SGD(
                    A[k].parameters(), lr=r.base_lr, momentum=optimizer["momentum"],
                    weight_decay=optimizer["weight_decay"],
                )  # fmt: skip
            labels = r.labels.batch(t)
            logits = A[k](h)
            loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=r.smoothing) / r.B
            loss.backward()
            r.measured[k, t] = loss.item(), (logits.argmax(dim=1) != labels).double().mean().item()
        r.top(h, t)
        for k in range(1, r.K + 1):
            r.update(k, t)
            if k < r.K:
                optimizers[k].param_groups[0]["lr"] = r.lr(t)
                optimizers[k].step()
                optimizers[k].zero_grad()
    return r
