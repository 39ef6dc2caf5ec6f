"""The predicted memory of a module made of any run of blocks, from one pass over each block."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from fr_bench.models import Blocks
from fr_bench.modules.network import Network
from fr_bench.planning.memory_model import MemoryModel, ModuleShapes, shape_pass


class BlockMemory:
    """What :class:`MemoryModel` predicts of a module, added up by block instead of traced anew.

    The sum takes two blocks to share no saved tensor but the one between them. Where that is not so it is too
    large, never too small.
    """

    def __init__(self, model: MemoryModel, blocks: Blocks, x: Tensor, device: str) -> None:
        """``blocks`` and the mini-batch ``x`` are on ``meta``, to be on ``device``."""
        self._model = model
        self._shapes: list[ModuleShapes] = []
        for index, block in enumerate(blocks):
            network = Network([block], seed=0)
            is_top = index == len(blocks) - 1
            self._shapes.append(shape_pass(network, x, device, input_gradient=index > 0, is_top=is_top))
            x = self._shapes[-1].output
        # What takes a network or an optimizer to find out is found once for each block and added.
        self._optimizer = [model.optimizer_bytes(shapes) for shapes in self._shapes]
        # No module below the top ends with the last block.
        self._beside = [sum(model.beside(shapes).values()) for shapes in self._shapes[:-1]]

    def __call__(self, first: int, last: int, k: int, frozen: bool = False) -> int:
        """Bytes of module ``k`` made of blocks[first:last] with a full pipe."""
        num_bytes = sum(self._model.held(self._joined(self._shapes[first:last]), k).values())
        if not frozen:
            num_bytes += sum(self._optimizer[first:last])
        return num_bytes + (self._beside[last - 1] if last < len(self._shapes) else 0)

    @staticmethod
    def _joined(parts: list[ModuleShapes]) -> ModuleShapes:
        """The shapes of a module made of ``parts``."""
        bottom, top = parts[0], parts[-1]
        between = sum(above.saved_input_bytes for below, above in pairwise(parts) if not below.output_is_saved)

        def checkpointed_bytes() -> int:
            inputs = sum(part.input_bytes for part in parts)
            return inputs + max(part.checkpointed_bytes() - part.input_bytes for part in parts)

        return ModuleShapes(
            weight_bytes=sum(part.weight_bytes for part in parts),
            parameter_bytes=sum(part.parameter_bytes for part in parts),
            graph_bytes=sum(part.graph_bytes for part in parts) + between,
            saved_input_bytes=bottom.saved_input_bytes,
            saved_label_bytes=top.saved_label_bytes,
            input_bytes=bottom.input_bytes,
            output_bytes=top.output_bytes,
            output=top.output,
            output_is_saved=top.output_is_saved,
            parameters=[parameter for part in parts for parameter in part.parameters],
            drawing_blocks=[name for part in parts for name in part.drawing_blocks],
            checkpointed_bytes=checkpointed_bytes,
        )
