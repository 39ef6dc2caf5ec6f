"""The learning rate is a function of the iteration."""

from __future__ import annotations

from typing import Any

import pytest

from fr_bench.errors import ConfigError
from fr_bench.schedules import Constant, Cosine, MultiStep


def test_fractions_of_epochs_give_the_papers_epochs() -> None:
    by_fraction, by_epoch = MultiStep(milestones=[0.5, 0.75]), MultiStep(milestones=[150, 225])
    for epoch, factor in [(0, 1), (149, 1), (150, 0.1), (224, 0.1), (225, 0.01), (299, 0.01)]:
        for schedule in (by_fraction, by_epoch):
            assert schedule.factor(epoch * 390, 390, 300) == pytest.approx(factor)
    assert by_fraction.factor(150 * 390 - 1, 390, 300) == 1


def test_a_milestone_of_one_is_the_first_epoch_not_the_whole_run() -> None:
    schedule = MultiStep(milestones=[1])
    assert [schedule.factor(t, 5, 10) for t in (4, 5)] == [1, 0.1]


@pytest.mark.parametrize("epochs", [20, 30, 40, 60, 100, 300])
def test_a_milestone_is_at_its_very_iteration(epochs: int) -> None:
    for percent in range(5, 100, 5):
        schedule = MultiStep(milestones=[percent / 100])
        for steps_per_epoch in (3, 20, 390):
            first = -(-percent * epochs * steps_per_epoch // 100)
            factors = [schedule.factor(t, steps_per_epoch, epochs) for t in (first - 1, first)]
            assert factors == [1, 0.1], (percent, steps_per_epoch)


def test_cosine_falls_from_one_to_its_end() -> None:
    schedule = Cosine(final=0.1)
    assert schedule.factor(0, 10, 4) == 1
    assert schedule.factor(20, 10, 4) == pytest.approx(0.55)
    assert schedule.factor(40, 10, 4) == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", [Constant(warmup_epochs=2), MultiStep(warmup_epochs=2), Cosine(warmup_epochs=2)])
def test_warmup_rises_linearly_and_then_is_gone(schedule: Constant) -> None:
    plain = type(schedule)()
    assert schedule.factor(0, 5, 10) == pytest.approx(0.1 * plain.factor(0, 5, 10))
    assert schedule.factor(4, 5, 10) == pytest.approx(0.5 * plain.factor(4, 5, 10))
    assert schedule.factor(9, 5, 10) == plain.factor(9, 5, 10)
    assert schedule.factor(20, 5, 10) == plain.factor(20, 5, 10)


def test_warmup_may_be_a_part_of_an_epoch() -> None:
    factors = [Constant(warmup_epochs=0.5).factor(t, 10, 4) for t in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ConfigError, match="milestones"):
        MultiStep(milestones=[0, 0.5])
    with pytest.raises(ConfigError, match=r"milestones=0\.5: must be a list, such as"):
        MultiStep(milestones=0.5)  # type: ignore[arg-type]
    for strange in (["a"], [True], [None]):
        with pytest.raises(ConfigError, match=r"must be positive numbers"):
            MultiStep(milestones=strange)
    with pytest.raises(ConfigError, match="warmup_epochs"):
        Constant(warmup_epochs=-1)


@pytest.mark.parametrize(("make", "key"), [(MultiStep, "gamma"), (Cosine, "final")])
def test_a_negative_factor_is_refused(make: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"schedule\.{key}=-0\.1: must be 0 or more"):
        make(**{key: -0.1})
    assert make(**{key: 0}).factor(0, 5, 10) == 1
