"""Learning-rate schedules have the shapes given in their papers."""

from __future__ import annotations

from collections import Counter

import pytest

from pyro_vae.infer import schedules


def test_cosine_falls_from_one_through_a_half_to_zero() -> None:
    factor = schedules.per_step(schedules.cosine, 10)
    assert factor(0) == 1
    assert factor(5) == pytest.approx(0.5, abs=1e-15)
    assert factor(10) == pytest.approx(0, abs=1e-15)


def test_cosine_is_symmetric_about_its_midpoint() -> None:
    factor = schedules.per_step(schedules.cosine, 10)
    assert [factor(step) + factor(10 - step) for step in range(11)] == pytest.approx([1] * 11)
    assert sorted(map(factor, range(11)), reverse=True) == [factor(step) for step in range(11)]


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_schedule_is_constant_after_its_end(name: str) -> None:
    factor = schedules.per_step(schedules.SCHEDULES[name], 10)
    assert factor(25) == factor(10)


# With one and several steps per epoch: a stage must not begin inside an epoch.
@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_burda_has_the_stages_of_the_paper(steps_per_epoch: int) -> None:
    factor = schedules.per_step(schedules.burda, 3280 * steps_per_epoch)
    factors = [factor(step) for step in range(3280 * steps_per_epoch)]
    assert factors == sorted(factors, reverse=True)
    steps = Counter(factors)
    assert list(steps) == pytest.approx([10 ** (-i / 7) for i in range(8)], rel=1e-12)
    assert list(steps.values()) == [steps_per_epoch * 3**i for i in range(8)]
