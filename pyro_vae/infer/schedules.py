r"""Learning-rate schedules: a factor on the learning rate as a function of the progress t in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim.lr_scheduler import LambdaLR

_BURDA_STAGES = 8
_BURDA_PASSES = (3**_BURDA_STAGES - 1) // 2  # 3280


def constant(t: float) -> float:
    """Keep the learning rate constant."""
    return 1.0


def cosine(t: float) -> float:
    """Decay to 0 along (1 + cos pi t) / 2: Loshchilov, Hutter, "SGDR", ICLR 2017 (https://arxiv.org/abs/1608.03983)."""
    return (1 + math.cos(math.pi * t)) / 2


def burda(t: float) -> float:
    """Decay in 8 stages, by 10^(-i/7) in stage i = 0, ..., 7 of 3^i parts: Burda et al., ICLR 2016, section 5.

    With 3280 epochs a part is one pass, as in the paper; shorter runs keep the proportions.
    """
    stage = math.floor(math.log(2 * t * _BURDA_PASSES + 1, 3) + 1e-9)
    return 10 ** (-min(stage, _BURDA_STAGES - 1) / 7)


def per_step(schedule: Callable[[float], float], total_steps: int) -> Callable[[int], float]:
    """Convert a schedule into a function of the number of steps taken."""
    return lambda step: schedule(min(step / total_steps, 1.0))


def skip(scheduler: LambdaLR, steps: int) -> list[float]:
    """Advance a scheduler of one parameter group by some steps at once, except for the learning rate itself.

    Returns:
        The learning rate after each of these steps.
    """
    (base,), (factor,) = scheduler.base_lrs, scheduler.lr_lambdas
    first = scheduler.last_epoch + 1
    scheduler.last_epoch += steps
    return [float(base * factor(step)) for step in range(first, first + steps)]


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "cosine": cosine, "burda": burda}
