"""Numbers that others published, to stand beside ours, each with its source and with how sure we are of it.

They are quoted by hand. Nothing here is ever averaged with, or put in the place of, a measured number, and a number
stands beside a run only if the network and all settings that decide the result are those of its source.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Settings = dict[str, Any]  # flat, as a Group has them: a setting that is null is not there

CERTAINTY = {
    "read": "read in the source itself",
    "quoted": "quoted from the source by a later publication, which was read",
    "plotted": "read off a plot, to about 3 %",
    "recalled": "recalled, not confirmed in any text",
}
# What is not certain of a number beside its value.
DOUBTS = {
    "which ResNet164?": "He et al.'s ResNet-164 is of bottlenecks (resnet164, 1.70 million parameters); the public "
    "code of the FR paper's authors makes one of basic blocks alone (resnet164_basic, 2.60 million), and the paper's "
    "text could not be read",
}


@dataclass(frozen=True)
class Source:
    """Whose numbers they are.

    Attributes:
        text: for a footnote.
        settings: under which its test errors came about, each with the values that agree with what is known of it.
    """

    text: str
    settings: dict[str, tuple[Any, ...]]


# Of every source: all of the data, a network that learns as a whole, augmented images.
WHOLE: dict[str, tuple[Any, ...]] = {
    "dataset.limit": (None,),
    "dataset.validation": (None, 0),
    "freeze": (None,),
    "max_steps": (None,),
    "replicas": (None,),
    "precision": (None, "fp32", "tf32"),
}
RECIPE: dict[str, tuple[Any, ...]] = WHOLE | {
    "epochs": (300,),
    "batch_size": (128,),
    "dataset.augmentation.crop_padding": (4,),
    "dataset.augmentation.flip": (True,),
    "optimizer._target_": ("torch.optim.SGD",),
    "optimizer.lr": (0.01,),
    "optimizer.momentum": (0.9,),
    "optimizer.weight_decay": (5e-4,),
    "schedule._target_": ("fr_bench.schedules.MultiStep",),
    "schedule.milestones": ([150, 225],),
    "schedule.gamma": (0.1,),
    "schedule.warmup_epochs": (0,),
    "resume": (None,),  # of a run that took over from another the first steps are that one's
    "clip_norm": (None,),
    "label_smoothing": (None,),
    "module_lr": (None,),
    "method.carry_history": (None, True),
    "method.num_convolutions": (None, 3),
    "method.num_hidden": (None, 3),
}
# Of a speed-up, which is a ratio of times.
SPEED_RECIPE: dict[str, tuple[Any, ...]] = WHOLE | {"batch_size": (128,)}
SOURCES = {
    "FR paper": Source(
        "Huo, Gu and Huang, Training neural networks using features replay, NeurIPS 2018, table 2: "
        "best test error of any epoch, learning rate 0.01, 300 epochs, batch size 128; one seed, as far as is known. "
        "Whether with Nesterov's momentum and module 1 at twice the rate, as in the authors' public code, is not known",
        RECIPE | {"module_lr": (None, [2, 1])},
    ),
    "DDG paper": Source(
        "Huo, Gu, Yang and Huang, Decoupled parallel backpropagation with convergence guarantee, ICML 2018, "
        "and its public repository: learning rate 0.01, 300 epochs, batch size 128, networks of basic blocks",
        RECIPE,
    ),
    "DGL paper": Source(
        "Belilovsky, Eickenberg and Oyallon, Decoupled greedy learning of CNNs, ICML 2020, and its public repository: "
        "learning rate 0.01, 300 epochs, batch size 128, networks of basic blocks",
        RECIPE,
    ),
    "FDG rerun": Source(
        "Zhuang et al., FDG, README of the public repository: the authors' own runs of all methods with "
        "learning rate 0.1, 300 epochs, batch size 128; ResNet56 and ResNet110 of basic blocks. Which auxiliary "
        "networks DGL had is not known",
        RECIPE
        | {
            "optimizer.lr": (0.1,),
            "optimizer.nesterov": (None, False),
            "schedule.milestones": ([150, 225, 275],),
        },
    ),
}


def _network(family: str, depth: int, **more: Any) -> Settings:
    settings = {"_target_": f"fr_bench.models.{family}.resnet", "depth": depth, "norm": None, **more}
    return {f"model.{key}": value for key, value in settings.items()}


# A model's name may stand for anything; these are the networks. Batch norm is what no `norm` says.
NETWORKS = {
    "resnet164": _network("preactivation", 164),
    **{f"resnet{depth}_basic": _network("basic", depth) for depth in (56, 110, 164)},
    **{f"resnet{depth}": _network("torchvision_resnet", depth, stem="cifar") for depth in (18, 101, 152)},
}
METHODS = {
    "bp": "fr_bench.methods.bp.Backpropagation",
    "ddg": "fr_bench.methods.ddg.DecoupledDelayedGradients",
    "dgl": "fr_bench.methods.dgl.DecoupledGreedyLearning",
    "fr": "fr_bench.methods.fr.FeaturesReplay",
}


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        quantity: ``test_error`` (a fraction) or ``speedup`` (over BP with K = 1).
        model: a key of NETWORKS.
        method: a key of METHODS.
        source: a key of SOURCES.
        certainty: a key of CERTAINTY.
        doubt: a key of DOUBTS, or empty.
    """

    quantity: str
    dataset: str
    model: str
    method: str
    k: int
    value: float
    source: str
    certainty: str
    doubt: str = ""

    @property
    def credit(self) -> str:
        """Whose it is and how sure, in a few words."""
        return ", ".join(word for word in (self.source, self.certainty, self.doubt) if word)

    def is_about(self, settings: Settings, k: int) -> bool:
        """Whether it is about the data set, network and method of a run with these ``settings``, and its K."""
        about = {"dataset.name": self.dataset, "method._target_": METHODS[self.method], **NETWORKS[self.model]}
        return self.k == k and all(settings.get(key) == value for key, value in about.items())

    def differences(self, settings: Settings) -> list[str]:
        """What decided the number and is not so in a run with these ``settings``: ``epochs=300, not 10``."""
        there = SPEED_RECIPE if self.quantity == "speedup" else SOURCES[self.source].settings
        found = []
        for key, values in there.items():
            here = _milestones(settings) if key == "schedule.milestones" else settings.get(key)
            if here not in values:
                found.append(f"{key}={_text(values[0])}, not {_text(here)}")
        return found


def _milestones(settings: Settings) -> list[float] | None:
    """In epochs."""
    given, epochs = settings.get("schedule.milestones"), settings.get("epochs")
    if not isinstance(given, list) or not isinstance(epochs, int):
        return None
    return [each * epochs if each < 1 else each for each in given]


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# Test errors in per cent by data set, model and (method, K). BP stands at K = 1: ordinary training.
_FR_164_CIFAR10 = {("bp", 1): 6.40, ("ddg", 2): 6.45, ("fr", 2): 6.03}
_FR_164_CIFAR100 = {("bp", 1): 28.53, ("ddg", 2): 28.51, ("fr", 2): 27.34}
_FR_CIFAR10 = {
    "resnet164": _FR_164_CIFAR10,
    "resnet164_basic": _FR_164_CIFAR10,
    "resnet101": {("bp", 1): 5.25, ("ddg", 2): 5.35, ("fr", 2): 4.97},
    "resnet152": {("bp", 1): 5.26, ("ddg", 2): 5.72, ("fr", 2): 4.91},
}
_FR_CIFAR100_RECALLED = {"resnet164": _FR_164_CIFAR100, "resnet164_basic": _FR_164_CIFAR100}
# Quoted in table 2 of the TRGL paper (NeurIPS 2023).
_FR_CIFAR100_QUOTED = {
    "resnet101": {("bp", 1): 23.48, ("ddg", 2): 24.25, ("fr", 2): 23.10},
    "resnet152": {("bp", 1): 25.20, ("ddg", 2): 26.39, ("fr", 2): 23.61},
}
# Quoted in the FDG repository as "reported".
_DDG_CIFAR10 = {"resnet56_basic": {("ddg", 2): 6.89}, "resnet110_basic": {("ddg", 2): 6.59}}
_DDG_CIFAR100 = {
    "resnet56_basic": {("bp", 1): 30.21, ("ddg", 2): 29.83},
    "resnet110_basic": {("bp", 1): 28.10, ("ddg", 2): 28.61},
}
_DGL_CIFAR10 = {"resnet110_basic": {("dgl", 2): 6.50}}
# DDG with K = 2 on ResNet56 stands in that README as 6.63 in one table and 6.60 in the other.
_FDG_CIFAR10 = {
    "resnet56_basic": {
        ("bp", 1): 6.19, ("ddg", 2): 6.63, ("ddg", 3): 6.50, ("ddg", 4): 6.61,
        ("fr", 2): 6.07, ("fr", 3): 6.33, ("fr", 4): 6.48, ("dgl", 2): 6.77, ("dgl", 3): 8.88, ("dgl", 4): 9.65,
    },
    "resnet110_basic": {("bp", 1): 5.79, ("ddg", 2): 6.26, ("fr", 2): 5.76, ("dgl", 2): 6.26},
    "resnet18": {("bp", 1): 4.87, ("ddg", 2): 5.00, ("fr", 2): 4.80, ("dgl", 2): 5.21},
}  # fmt: skip
_FDG_CIFAR100 = {
    "resnet56_basic": {("bp", 1): 27.68, ("ddg", 2): 28.44, ("fr", 2): 28.39, ("dgl", 2): 29.51},
    "resnet110_basic": {("bp", 1): 25.82, ("ddg", 2): 27.16, ("fr", 2): 26.31, ("dgl", 2): 26.80},
    "resnet18": {("bp", 1): 22.35, ("ddg", 2): 22.74, ("fr", 2): 22.88, ("dgl", 2): 22.24},
}
_TEST_ERRORS = (
    ("FR paper", "recalled", "cifar10", _FR_CIFAR10),
    ("FR paper", "recalled", "cifar100", _FR_CIFAR100_RECALLED),
    ("FR paper", "quoted", "cifar100", _FR_CIFAR100_QUOTED),
    ("DDG paper", "quoted", "cifar10", _DDG_CIFAR10),
    ("DDG paper", "quoted", "cifar100", _DDG_CIFAR100),
    ("DGL paper", "quoted", "cifar10", _DGL_CIFAR10),
    ("FDG rerun", "read", "cifar10", _FDG_CIFAR10),
    ("FDG rerun", "read", "cifar100", _FDG_CIFAR100),
)
# Training times of the whole run in the repository's plot: 13.2, 9.4, 7.7 and 7.2 thousand seconds on 1 to 4 GPUs.
_DDG_SECONDS = {1: 13200, 2: 9400, 3: 7700, 4: 7200}


def published_numbers() -> list[Published]:
    """Returns all of them."""
    errors = [
        Published("test_error", dataset, model, method, k, percent / 100, source, certainty, _doubt(model))
        for source, certainty, dataset, models in _TEST_ERRORS
        for model, cells in models.items()
        for (method, k), percent in cells.items()
    ]
    speeds = [
        Published("speedup", "cifar10", "resnet110_basic", "ddg", k, _DDG_SECONDS[1] / seconds, "DDG paper", "plotted")
        for k, seconds in _DDG_SECONDS.items()
        if k > 1
    ]
    return errors + speeds


def _doubt(model: str) -> str:
    return "which ResNet164?" if model in ("resnet164", "resnet164_basic") else ""


def published_about(quantity: str, settings: Settings, k: int) -> list[Published]:
    """Returns what was published of ``quantity`` about a run's data set, network, method and K, whatever the rest of
    its ``settings``; ``differences`` tells of these.
    """
    return [each for each in published_numbers() if each.quantity == quantity and each.is_about(settings, k)]


def footnotes(numbers: Iterable[Published]) -> list[str]:
    """Returns a line for each source, each certainty and each doubt that occurs in ``numbers``."""
    found = list(numbers)
    sources = [f"{key}: {source.text}." for key, source in SOURCES.items() if any(e.source == key for e in found)]
    certainties = [f"{key}: {text}." for key, text in CERTAINTY.items() if any(e.certainty == key for e in found)]
    doubts = [f"{key} {text}." for key, text in DOUBTS.items() if any(e.doubt == key for e in found)]
    return sources + certainties + doubts
