"""Numbers that others published, to stand beside ours, each with its source and with how sure we are of it.

They are quoted by hand. Nothing here is ever averaged with, or put in the place of, a measured number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

CERTAINTY = {
    "read": "read in the source itself",
    "quoted": "quoted from the source by a later publication, which was read",
    "plotted": "read off a plot, to about 3 %",
    "recalled": "recalled, not confirmed in any text",
}
SOURCES = {
    "FR paper": "Huo, Gu and Huang, Training neural networks using features replay, NeurIPS 2018, table 2: "
    "best test error of any epoch, learning rate 0.01, 300 epochs, batch size 128; one seed, as far as is known",
    "DDG paper": "Huo, Gu, Yang and Huang, Decoupled parallel backpropagation with convergence guarantee, ICML 2018, "
    "and its public repository: learning rate 0.01, 300 epochs, batch size 128",
    "FDG rerun": "Zhuang et al., FDG, README of the public repository: the authors' own runs of all methods with "
    "learning rate 0.1, 300 epochs, batch size 128",
}


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        quantity: ``test_error`` (a fraction) or ``speedup`` (over BP with K = 1).
        source: a key of SOURCES.
        certainty: a key of CERTAINTY.
    """

    quantity: str
    dataset: str
    model: str
    method: str
    k: int
    value: float
    source: str
    certainty: str


# Test errors in per cent by data set, model and (method, K). BP stands at K = 1: ordinary training.
_FR_CIFAR10 = {
    "resnet164": {("bp", 1): 6.40, ("ddg", 2): 6.45, ("fr", 2): 6.03},
    "resnet101": {("bp", 1): 5.25, ("ddg", 2): 5.35, ("fr", 2): 4.97},
    "resnet152": {("bp", 1): 5.26, ("ddg", 2): 5.72, ("fr", 2): 4.91},
}
_FR_CIFAR100_RECALLED = {"resnet164": {("bp", 1): 28.53, ("ddg", 2): 28.51, ("fr", 2): 27.34}}
# Quoted in table 2 of the TRGL paper (NeurIPS 2023).
_FR_CIFAR100_QUOTED = {
    "resnet101": {("bp", 1): 23.48, ("ddg", 2): 24.25, ("fr", 2): 23.10},
    "resnet152": {("bp", 1): 25.20, ("ddg", 2): 26.39, ("fr", 2): 23.61},
}
# Quoted in the FDG repository as "reported".
_DDG_CIFAR10 = {"resnet56": {("ddg", 2): 6.89}, "resnet110": {("ddg", 2): 6.59}}
_DDG_CIFAR100 = {
    "resnet56": {("bp", 1): 30.21, ("ddg", 2): 29.83},
    "resnet110": {("bp", 1): 28.10, ("ddg", 2): 28.61},
}
# DDG with K = 2 on ResNet56 stands in that README as 6.63 in one table and 6.60 in the other.
_FDG_CIFAR10 = {
    "resnet56": {
        ("bp", 1): 6.19, ("ddg", 2): 6.63, ("ddg", 3): 6.50, ("ddg", 4): 6.61,
        ("fr", 2): 6.07, ("fr", 3): 6.33, ("fr", 4): 6.48,
    },
    "resnet110": {("bp", 1): 5.79, ("ddg", 2): 6.26, ("fr", 2): 5.76},
    "resnet18": {("bp", 1): 4.87, ("ddg", 2): 5.00, ("fr", 2): 4.80},
}  # fmt: skip
_FDG_CIFAR100 = {
    "resnet56": {("bp", 1): 27.68, ("ddg", 2): 28.44, ("fr", 2): 28.39},
    "resnet110": {("bp", 1): 25.82, ("ddg", 2): 27.16, ("fr", 2): 26.31},
    "resnet18": {("bp", 1): 22.35, ("ddg", 2): 22.74, ("fr", 2): 22.88},
}
_TEST_ERRORS = (
    ("FR paper", "recalled", "cifar10", _FR_CIFAR10),
    ("FR paper", "recalled", "cifar100", _FR_CIFAR100_RECALLED),
    ("FR paper", "quoted", "cifar100", _FR_CIFAR100_QUOTED),
    ("DDG paper", "quoted", "cifar10", _DDG_CIFAR10),
    ("DDG paper", "quoted", "cifar100", _DDG_CIFAR100),
    ("FDG rerun", "read", "cifar10", _FDG_CIFAR10),
    ("FDG rerun", "read", "cifar100", _FDG_CIFAR100),
)
# Training times of the whole run in the repository's plot: 13.2, 9.4, 7.7 and 7.2 thousand seconds on 1 to 4 GPUs.
_DDG_SECONDS = {1: 13200, 2: 9400, 3: 7700, 4: 7200}


def published_numbers() -> list[Published]:
    """Returns all of them."""
    errors = [
        Published("test_error", dataset, model, method, k, percent / 100, source, certainty)
        for source, certainty, dataset, models in _TEST_ERRORS
        for model, cells in models.items()
        for (method, k), percent in cells.items()
    ]
    speeds = [
        Published("speedup", "cifar10", "resnet110", "ddg", k, _DDG_SECONDS[1] / seconds, "DDG paper", "plotted")
        for k, seconds in _DDG_SECONDS.items()
        if k > 1
    ]
    return errors + speeds


def published_for(quantity: str, dataset: str, model: str, method: str, k: int) -> list[Published]:
    """Returns what was published of ``quantity`` for exactly this data set, model, method and K."""
    wanted = (quantity, dataset, model, method, k)
    return [
        each for each in published_numbers() if (each.quantity, each.dataset, each.model, each.method, each.k) == wanted
    ]


def footnotes(numbers: Iterable[Published]) -> list[str]:
    """Returns a line for each source and each certainty that occurs in ``numbers``."""
    found = list(numbers)
    sources = [f"{key}: {text}." for key, text in SOURCES.items() if any(each.source == key for each in found)]
    certainties = [f"{key}: {text}." for key, text in CERTAINTY.items() if any(e.certainty == key for e in found)]
    return sources + certainties
