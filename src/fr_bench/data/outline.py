"""What can be known of a data set without its images: enough to plan a run, and to refuse one, before a download."""

from __future__ import annotations

from dataclasses import dataclass, field

from fr_bench.data.dataset import Dataset
from fr_bench.data.sample import SampleSpec
from fr_bench.errors import ConfigError


@dataclass(frozen=True)
class Outline:
    """Sizes.

    Attributes:
        sample: what one is like.
        num_train, num_test, num_validation: samples of each set; without one held out for validation 0.
        label_digest: see Dataset; None where no labels were read.
    """

    sample: SampleSpec
    num_train: int
    num_test: int
    num_validation: int = 0
    label_digest: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, dataset: Dataset) -> Outline:
        """Of one that is there."""
        num_validation = 0 if dataset.validation is None else len(dataset.validation.labels)
        sizes = (len(dataset.train.labels), len(dataset.test.labels), num_validation)
        return cls(dataset.sample, *sizes, label_digest=dataset.label_digest)


def num_kept(num_train: int, limit: int | None, num_validation: int) -> int:
    """How many of ``num_train`` images are left to train on.

    Raises:
        ConfigError: more held out, or asked for, than there are.
    """
    if num_validation >= num_train:
        raise ConfigError(
            f"dataset.validation={num_validation}: must be less than the {num_train} training images, "
            "out of which these are held."
        )
    num_left = num_train - num_validation
    if limit is not None and limit > num_left:
        left = f" that dataset.validation={num_validation} leaves of {num_train}" if num_validation else ""
        raise ConfigError(
            f"dataset.limit={limit}: there are {num_left} training images{left}; use null for all of them."
        )
    return num_left if limit is None else limit
