"""Data sets that live on the device that uses them: built once, cut into seeded mini-batches by index.

A user's own data set is any function that returns a :class:`Dataset` and that a YAML names by ``_target_``. If it
has files to fetch, a function ``prepare`` with the same arguments, as an attribute of it, is called once by the
parent before any process of the run exists. With an :class:`Outline` as its attribute ``outline`` mistakes in a run's
settings are found before anything is downloaded.
"""

from fr_bench.data.build import COMMON_KEYS, build_dataset, outline_dataset, prepare_dataset
from fr_bench.data.dataset import Dataset, Split
from fr_bench.data.images import EvaluationImages, TrainImages
from fr_bench.data.inputs import evaluation_inputs, train_inputs
from fr_bench.data.order import SeededOrder
from fr_bench.data.outline import Outline
from fr_bench.data.sample import SampleSpec
from fr_bench.data.tensors import EvaluationTensor, TrainTensor

__all__ = [
    "COMMON_KEYS",
    "Dataset",
    "EvaluationImages",
    "EvaluationTensor",
    "Outline",
    "SampleSpec",
    "SeededOrder",
    "Split",
    "TrainImages",
    "TrainTensor",
    "build_dataset",
    "evaluation_inputs",
    "outline_dataset",
    "prepare_dataset",
    "train_inputs",
]
