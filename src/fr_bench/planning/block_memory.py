"""The predicted memory of a module made of any run of blocks, from one pass over each block."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from fr_bench.measuring.saved_tensors import optimizer_state_bytes
from fr_bench.methods.base import Method
from fr_bench.models import Blocks
from fr_bench.modules.network import Network
from fr_bench.planning.costs import COMPANION, able_to_run
from fr_bench.planning.memory_model import ModuleShapes, predict, shape_pass


class BlockMemory:
    """What :func:`fr_bench.planning.memory_model.predict` says of a module, added up by block instead of traced anew.

    The sum takes two blocks to share no saved tensor but the one between them. Where that is not so it is too
    large, never too small.
    """

    def __init__(
        self,
        blocks: Blocks,
        x: Tensor,
        num_modules: int,
        method: type[Method],
        hyper_parameters: Mapping[str, Any],
        optimizer_of: Any,
        transport: str,
        num_classes: int,
        device: str,
        sums_gradients: bool = False,
    ) -> None:
        """``blocks`` and the mini-batch ``x`` are on ``meta``, to be on ``device``; for the rest see ``predict``."""
        self._shapes: list[ModuleShapes] = []
        for index, block in enumerate(blocks):
            network = Network([block], seed=0)
            is_top = index == len(blocks) - 1
            self._shapes.append(shape_pass(network, x, device, input_gradient=index > 0, is_top=is_top))
            x = self._shapes[-1].output
        # What takes a network or an optimizer to find out is found once for each block and added.
        plain = type("Plain", (method,), {"predict_memory": Method.predict_memory})
        self._settings: dict[str, Any] = {
            "num_modules": num_modules,
            "method": plain,
            "hyper_parameters": hyper_parameters,
            "optimizer_of": optimizer_of,
            "transport": transport,
            "num_classes": num_classes,
            "sums_gradients": sums_gradients,
        }
        self._optimizer = [
            optimizer_state_bytes(optimizer_of, [p for p in shapes.parameters if p.requires_grad])
            for shapes in self._shapes
        ]
        self._beside = []
        for shapes in self._shapes[:-1]:  # no module below the top ends with the last block
            with able_to_run(COMPANION, shapes.output):
                found = method.predict_memory(
                    shapes.output, shapes.output_is_saved, num_classes, optimizer_of, **hyper_parameters
                )
            self._beside.append(found)

    def __call__(self, first: int, last: int, k: int, frozen: bool = False) -> int:
        """Bytes of module ``k`` made of blocks[first:last] with a full pipe."""
        num_bytes = sum(predict(self._joined(self._shapes[first:last]), k=k, frozen=True, **self._settings).values())
        if not frozen:
            num_bytes += sum(self._optimizer[first:last])
        return num_bytes + (sum(self._beside[last - 1].values()) if last < len(self._shapes) else 0)

    @staticmethod
    def _joined(parts: list[ModuleShapes]) -> ModuleShapes:
        """The shapes of a module made of ``parts``."""
        bottom, top = parts[0], parts[-1]
        between = sum(above.saved_input_bytes for below, above in pairwise(parts) if not below.output_is_saved)

        def count_checkpointed_bytes() -> int:
            inputs = sum(part.input_bytes for part in parts)
            return inputs + max(part.checkpointed_bytes - part.input_bytes for part in parts)

        return ModuleShapes(
            weight_bytes=sum(part.weight_bytes for part in parts),
            parameter_bytes=sum(part.parameter_bytes for part in parts),
            graph_bytes=sum(part.graph_bytes for part in parts) + between,
            saved_input_bytes=bottom.saved_input_bytes,
            input_bytes=bottom.input_bytes,
            output_bytes=top.output_bytes,
            output=top.output,
            output_is_saved=top.output_is_saved,
            parameters=[parameter for part in parts for parameter in part.parameters],
            drawing_blocks=[name for part in parts for name in part.drawing_blocks],
            count_checkpointed_bytes=count_checkpointed_bytes,
        )
