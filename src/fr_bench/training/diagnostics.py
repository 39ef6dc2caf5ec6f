"""The sufficient-direction constant of the FR paper's Assumption 1, measured while training.

Over a window of W iterations each module sums the gradients G_k that its method came to (before ``clip_norm`` shortens
them) and the true gradients N_k of backpropagation, taken at the same weights w^t on batch t, over convolution and
linear weights:

    sigma_k = <N_k, G_k> / ||N_k||^2      cosine = <N_k, G_k> / (||N_k|| ||G_k||)      norm ratio = ||G_k|| / ||N_k||

The true gradients come from one more forward and backward through all modules, over the side channel, before
iteration t begins. It changes no weight, no running statistic and no random stream, and the training clock stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fr_bench.modules.module import Module
from fr_bench.modules.passes import Pass
from fr_bench.training.lockstep import play_in_lockstep
from fr_bench.transport.link import Batches
from fr_bench.transport.side import SideChannel

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)


@dataclass(frozen=True)
class Windows:
    """Windows of ``length`` iterations that begin every ``every`` iterations, from iteration ``first`` on.

    Attributes:
        not_before: windows that begin before this iteration are left out: after a takeover the pipe was still filling,
            or they were not measured from their beginning.
    """

    every: int
    length: int
    first: int
    not_before: int = 0

    def contains(self, t: int) -> bool:
        """Whether iteration ``t`` is measured."""
        behind = (t - self.first) % self.every
        return t >= self.first and behind < self.length and t - behind >= self.not_before

    def next_from(self, t: int) -> int:
        """The first iteration from ``t`` on that is measured."""
        if self.contains(t):
            return t
        behind = max(t, self.first, self.not_before) - self.first
        return self.first + -(-behind // self.every) * self.every

    def ends_with(self, t: int) -> bool:
        """Whether iteration ``t`` is the last of a window."""
        return self.contains(t) and (t - self.first) % self.every == self.length - 1


class GradientSums:
    """Sums of true and of used gradients of one module."""

    def __init__(self, module: Module) -> None:
        self._module = module
        self.parameters = list(dict.fromkeys(_weights_of(module.network)))  # a weight that layers share counts once
        self._true = [torch.zeros_like(p) for p in self.parameters]
        self._used = [torch.zeros_like(p) for p in self.parameters]

    def add_true(self, gradients: Sequence[Tensor]) -> None:
        """Adds N_k of one iteration."""
        for total, gradient in zip(self._true, gradients, strict=True):
            total += gradient

    def add_used(self) -> None:
        """Adds G_k, the gradients that the module is about to step with."""
        for total, parameter in zip(self._used, self.parameters, strict=True):
            if parameter.grad is not None:
                total += parameter.grad

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The sums of the window so far."""
        return {"true": self._true, "used": self._used}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Goes on with the window of :meth:`state_dict`."""
        for own, given in ((self._true, state["true"]), (self._used, state["used"])):
            for total, value in zip(own, given, strict=True):
                total.copy_(value)

    def take(self) -> dict[str, float]:
        """Returns <N,G>, <N,N> and <G,G> (float64) and starts anew."""
        products = {
            "dot": _dot(self._true, self._used),
            "true": _dot(self._true, self._true),
            "used": _dot(self._used, self._used),
        }
        for total in (*self._true, *self._used):
            total.zero_()
        return products


def _weights_of(network: nn.Module) -> Iterator[nn.Parameter]:
    """Of convolutions, linear layers and attention's projections; where a weight is computed, as by spectral norm, what
    it is computed from."""
    for layer in network.modules():
        if isinstance(layer, WEIGHTED):
            found = list(layer.named_parameters(recurse=False))
            if isinstance(computed := getattr(layer, "parametrizations", None), nn.ModuleDict):
                for name, originals in computed.items():
                    found += [(name, original) for original in originals.parameters(recurse=False)]
            yield from (parameter for name, parameter in found if "weight" in name and parameter.requires_grad)


class SufficientDirection:
    """Measures the modules of this process. All modules call :meth:`measure` for the same iterations."""

    def __init__(
        self,
        modules: Sequence[Module],
        sides: Sequence[SideChannel],
        images: Batches | None,
        labels: Batches | None,
        windows: Windows,
    ) -> None:
        self._modules = modules
        self._sides = sides
        self._images = images
        self._labels = labels
        self.windows = windows
        self.sums = [GradientSums(module) for module in modules]  # by module of this process

    def state_dict(self, index: int) -> dict[str, Any]:
        """The window so far, of module ``index`` of this process."""
        return {"windows": dataclasses.asdict(self.windows), **self.sums[index].state_dict()}

    def load_state_dict(self, index: int, state: dict[str, Any] | None, step: int) -> None:
        """Goes on after iteration ``step`` with what :meth:`state_dict` had; None if nothing, or something else, was
        measured until then: with the next whole window."""
        if state is None or "windows" not in state:  # which older checkpoints do not tell
            self.leave_out(step)
            return
        windows = Windows(**state["windows"])
        if dataclasses.replace(self.windows, not_before=windows.not_before) != windows:
            self.leave_out(step)
            return
        self.windows = windows
        self.sums[index].load_state_dict(state)

    def leave_out(self, step: int) -> None:
        """Windows that begin before iteration ``step``."""
        self.windows = dataclasses.replace(self.windows, not_before=max(step, self.windows.not_before))

    def measure(self, t: int) -> None:
        """Adds the true gradients of batch ``t`` at the weights of now, and has those of iteration ``t`` tapped."""

        def play(index: int, x: Tensor) -> Pass:
            return self._modules[index].play(x, t, update_statistics=False)

        passes = play_in_lockstep(self._modules, self._sides, self._images, t, play)
        for module, side, sums, live in reversed(list(zip(self._modules, self._sides, self.sums, passes, strict=True))):
            if module.is_top:
                assert self._labels is not None
                with module.watch.paused():
                    output, d = module.loss(live, self._labels.batch(t)).loss, None
            else:
                output, d = live.h, side.receive_from_above()
            wanted = [live.x, *sums.parameters] if module.k > 1 else sums.parameters
            # Module 1 may be an embedding alone, which has no such weights.
            found = torch.autograd.grad(output, wanted, d, allow_unused=True) if wanted else ()
            gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]
            if module.k > 1:
                side.send_down(gradients.pop(0))
            if module.replicas is not None:
                gradients = [module.replicas.total(gradient) for gradient in gradients]
            sums.add_true(gradients)
            module.gradient_tap = sums.add_used

    def finish(self, t: int) -> list[tuple[int, dict[str, float]]]:
        """After iteration ``t``: stops tapping; at the end of a window returns each module's products."""
        for module in self._modules:
            module.gradient_tap = None
        if not self.windows.ends_with(t):
            return []
        # All replicas have the same sums.
        return [(m.k, sums.take()) for m, sums in zip(self._modules, self.sums, strict=True) if m.replica == 1]


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    products = [torch.dot(a.double().flatten(), b.double().flatten()) for a, b in zip(one, other, strict=True)]
    return float(torch.stack(products).sum()) if products else 0.0


def direction(products: dict[str, float]) -> dict[str, float]:
    """sigma, cosine and norm ratio of <N,G>, <N,N>, <G,G>; what is undefined (a zero norm) is left out."""
    dot, true, used = products["dot"], products["true"], products["used"]
    if true == 0:
        return {}
    result = {"sigma": dot / true, "norm_ratio": (used / true) ** 0.5}
    if used > 0:
        result["cosine"] = dot / (true * used) ** 0.5
    return result
