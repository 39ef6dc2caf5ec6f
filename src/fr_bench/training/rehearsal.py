"""One untimed forward and backward before training starts, in lock step through all modules.

It settles what the channels carry (shapes, dtypes and strides as the kernels really produce them), pays for
what first passes pay for (kernels chosen or compiled, memory allocated) and finds a module that changes its input in
place.
Nothing remains of it: gradients are dropped, batch-norm statistics stay, and random streams are keyed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fr_bench.errors import ConfigError
from fr_bench.modules.module import Module
from fr_bench.modules.network import InPlaceError
from fr_bench.modules.passes import Pass, PassKind
from fr_bench.training.lockstep import play_in_lockstep
from fr_bench.transport.link import Batches, FirstPart
from fr_bench.transport.open import Boundaries
from fr_bench.transport.side import SideChannel
from fr_bench.transport.spec import TensorSpec


def rehearse(
    modules: Sequence[Module],
    sides: Sequence[SideChannel],
    images: Batches | None,
    labels: Batches | None,
    num_parts: int,
    passes_of: Callable[[bool], Sequence[PassKind]],
    captures: bool,
) -> list[Boundaries]:
    """Runs batch 0 through this process's modules (ascending) and back; returns their boundaries.

    Args:
        modules, sides: of this process.
        images, labels: where they are needed.
        num_parts: in how many equal parts modules see a batch; it is the first part then.
        passes_of: whether a module is the top -> what passes it makes in training, for those that are compiled.
        captures: whether the passes are captured as CUDA graphs.

    Raises:
        ConfigError: a module changes its input in place, or cannot be captured.
    """

    def play(index: int, x: Tensor) -> Pass:
        module = modules[index]
        try:
            module.play(x, 0, graph=False, update_statistics=False)
        except InPlaceError as error:
            raise ConfigError(f"module {module.k}: {error}") from error
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            raise ConfigError(  # shapes alone do not tell: kernels choose the strides of what they return
                f"module {module.k}: what images become is channels_last in memory, and has no view of this shape: use "
                f"flatten or reshape in the model, or channels_last=false ({error})"
            ) from error
        if module.network.is_compiled:
            module.passes.compile(x, passes_of(module.is_top))
        return module.play(x, 0, update_statistics=False)

    if num_parts > 1:
        images = FirstPart(images, num_parts) if images is not None else None
        labels = FirstPart(labels, num_parts) if labels is not None else None
    passes = play_in_lockstep(modules, sides, images, 0, play)
    boundaries = []
    for module, side in reversed(list(zip(modules, sides, strict=True))):
        live = passes.pop()
        d = None if module.is_top else side.receive_from_above()
        with module.watch.paused():
            loss = None if labels is None or d is not None else module.loss(live, labels.batch(0)).loss
            gradient = module.backward(live, d=d, loss=loss)
        if module.k > 1:
            if gradient is None:  # a block lets none through, and the method needs none
                gradient = torch.zeros_like(live.x)
            side.send_down(gradient)
        x, h = live.x.detach(), live.h.detach()
        del live, loss  # and the graph: a capture must not meet what was made on another stream
        boundaries.append(
            Boundaries(
                features_in=TensorSpec.of(x) if module.k > 1 else None,
                features_out=None if module.is_top else TensorSpec.of(h),
                gradients_in=None if d is None else TensorSpec.of(d),
                gradients_out=None if gradient is None else TensorSpec.of(gradient),
            )
        )
        module.optimizer.zero_grad(set_to_none=True)
        module.input_like, module.output_like = (TensorSpec.of(features).empty("meta") for features in (x, h))
        if captures:
            d = torch.zeros_like(h) if d is None else d
            module.passes.capture(x, d, passes_of(module.is_top), num_in_flight=module.delay + 1)
    return boundaries[::-1]
