r"""Learning-rate schedules: factors on the learning rate as functions of the progress t in [0, 1)."""

from __future__ import annotations

import math
from collections.abc import Callable

_BURDA_STAGES = 8
_BURDA_PASSES = (3**_BURDA_STAGES - 1) // 2  # 3280


def constant(t: float) -> float:
    """Return 1."""
    return 1.0


def cosine(t: float) -> float:
    """Return (1 + cos pi t) / 2: Loshchilov, Hutter, "SGDR", ICLR 2017 (https://arxiv.org/abs/1608.03983)."""
    return (1 + math.cos(math.pi * t)) / 2


def burda(t: float) -> float:
    """Return 10^(-i/7) in stage i = 0..7 of 3^i parts: Burda et al., ICLR 2016, section 5.

    A run of 3280 epochs has the 3^i passes of the paper; a shorter one has the same proportions.
    """
    stage = math.floor(math.log(2 * t * _BURDA_PASSES + 1, 3) + 1e-9)
    return 10 ** (-min(stage, _BURDA_STAGES - 1) / 7)


def per_step(schedule: Callable[[float], float], total_steps: int) -> Callable[[int], float]:
    """Return the schedule as a function of the number of steps taken."""
    return lambda step: schedule(min(step / total_steps, 1.0))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "cosine": cosine, "burda": burda}
