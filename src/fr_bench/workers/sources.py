"""Where batches come from and where results are compared: the images below, the labels above."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fr_bench.data import (
    Dataset,
    EvaluationTensor,
    SeededOrder,
    TrainTensor,
    build_dataset,
    evaluation_inputs,
    train_inputs,
)
from fr_bench.errors import ConfigError
from fr_bench.modules.module import Module
from fr_bench.planning.plan import Plan
from fr_bench.planning.tracing import DTYPES, memory_format_of
from fr_bench.training.evaluation import EvaluationSet
from fr_bench.transport.link import Batches, ModuleLink
from fr_bench.transport.open import Ends


class Sources:
    """The images of module 1 and the labels of module K, where this process has those modules.

    A process in the middle loads nothing, unless its method needs the labels. Replicas have each their rows of both.

    Args:
        plan: of the run.
        numbers: of this process's modules, all of one replica.
    """

    def __init__(self, plan: Plan, numbers: list[int]) -> None:
        config = plan.config
        self._at_bottom = plan.place_of(numbers[0]).k == 1
        self._at_top = plan.place_of(numbers[-1]).k == plan.num_modules
        self._bottom_device = torch.device(plan.devices[numbers[0] - 1])
        self._top_device = torch.device(plan.devices[numbers[-1] - 1])
        self._batch_size = config["batch_size"]
        self._format: dict[str, Any] = {
            "device": self._bottom_device,
            "dtype": DTYPES[config["precision"]],
            "memory_format": memory_format_of(config),
        }
        self._plan = plan
        self._rows = rows = _share(config["batch_size"], plan.place_of(numbers[0]).replica, plan.num_replicas)
        self.images: Batches | None = None
        self.labels: TrainTensor | None = None
        self._train_labels: Tensor | None = None
        dataset = None
        if self._at_bottom or self._at_top or plan.targets_everywhere:
            dataset = build_dataset(config["dataset"])
            if plan.label_digest not in (None, dataset.label_digest):
                raise ConfigError(
                    f"dataset: {config['dataset']['_target_']} returns other samples, or in another order, each time "
                    "that it is called, and every process of a run calls it: seed what it shuffles, as in "
                    "numpy.random.default_rng(0)"
                )
            self._train_labels = dataset.train.labels
        self._order = SeededOrder(plan.num_train, config["batch_size"], config["seed"])
        if dataset is not None and self._at_bottom:
            augmentation = config["dataset"].get("augmentation") or {}
            self.images = train_inputs(dataset, self._order, augmentation, config["seed"], rows, **self._format)
        if self._train_labels is not None and self._at_top:
            self.labels = TrainTensor(self._train_labels, self._order, self._top_device, rows)
        self.evaluation_sets = [self._evaluation_set(name, dataset) for name in plan.num_evaluation_images]

    def _evaluation_set(self, name: str, dataset: Dataset | None) -> EvaluationSet:
        images = labels = None
        if dataset is not None:
            split = dataset.test if name == "test" else dataset.validation
            assert split is not None
            if self._at_bottom:
                images = evaluation_inputs(dataset, split, self._batch_size, **self._format)
            if self._at_top:
                labels = EvaluationTensor(split.labels, self._batch_size, self._top_device)
        num_batches = -(-self._plan.num_evaluation_images[name] // self._batch_size)
        return EvaluationSet(name, num_batches, images, labels)

    def link(self, module: Module, ends: Ends, group: ProcessGroup | None = None) -> ModuleLink:
        """The link of ``module`` over its channel ends; ``group`` is for a method that brings its own."""
        labels = self.labels if module.is_top else None
        if labels is None and self._plan.targets_everywhere:
            assert self._train_labels is not None
            device = torch.device(self._plan.devices[module.number - 1])
            labels = TrainTensor(self._train_labels, self._order, device, self._rows)
        return ModuleLink(
            module.watch,
            images=self.images if module.k == 1 else None,
            labels=labels,
            features_in=ends.features_in,
            features_out=ends.features_out,
            gradients_in=ends.gradients_in,
            gradients_out=ends.gradients_out,
            group=group,
        )


def _share(batch_size: int, replica: int, num_replicas: int) -> slice:
    """The rows of a batch that are those of ``replica`` (from 1)."""
    size = batch_size // num_replicas
    return slice((replica - 1) * size, replica * size)
