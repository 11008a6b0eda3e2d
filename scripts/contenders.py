"""The contenders of this package in the benchmark, and the batches on which all contenders run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import pyro
import torch
from baselines import STEPS, alone
from timing import Contender, Step, Timing
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_vae import config, data
from pyro_vae.config import programs
from pyro_vae.evaluate.annealing import paths
from pyro_vae.infer import ELBO, SVI, Optim, launches, schedules
from pyro_vae.infer.epochs import EpochProgress
from pyro_vae.trace import Batch

CHAINS = 16  # per image, of annealed importance sampling


def batches_of(settings: config.Config, images: data.Observed) -> data.Batches:
    """Return the training batches of a configuration."""
    return images.batches(settings.batch_size, settings.seed)


def full_batches(batches: data.Batches) -> Iterator[Tensor]:
    """Yield training batches endlessly, without the smaller last batch of an epoch."""
    for epoch in count():
        yield from (batch for batch in batches(epoch) if len(batch) == batches.batch_size)


def fed(step: Step, stream: Iterator[Tensor]) -> Step:
    """Return a step that takes batches from `stream` and ignores the one it is called with."""
    return lambda _: step(next(stream))


def as_json(timings: dict[str, Timing]) -> dict[str, Any]:
    """Return timings as JSON values."""
    return {name: timing._asdict() for name, timing in timings.items()}


def driver(
    settings: config.Config, images: data.Observed, execution: str | None, kind: Callable[..., SVI] = SVI
) -> SVI:
    """Return the driver of scripts/fit.py for a new program; `execution` is ``compiled``, ``recorded`` or None."""
    program = programs.build(settings, images.pixels)
    schedule = schedules.per_step(schedules.cosine, STEPS)
    optim = Optim(torch.optim.Adam, {"lr": settings.learning_rate, "fused": True}, schedule)
    objective = ELBO(settings.num_particles)
    return kind(program.model, program.guide, optim, objective, execution=execution, precision=settings.precision)


def ours(
    settings: config.Config,
    images: data.Observed,
    batches: data.Batches,
    execution: str | None,
    kind: Callable[..., SVI] = SVI,
) -> Contender:
    """Return the training step of scripts/fit.py; see `driver`."""
    svi = driver(settings, images, execution, kind)
    return alone(lambda batch: svi.step(batch, preprocess=batches.observe))


def many_steps(settings: config.Config, images: data.Observed, batches: data.Batches) -> Contender:
    """Return the training step of scripts/fit.py on a CUDA device: many steps with one launch.

    A call keeps its batch until there are enough for a launch, so that only the mean time of many calls has a meaning.
    """
    svi, progress = driver(settings, images, "compiled"), EpochProgress()
    many, waiting = launches.Launches(svi), []

    def step(batch: Tensor) -> None:
        waiting.append(Batch.of(batch))
        if len(waiting) == launches.STEPS:
            for group in many.groups(iter(waiting), progress, batches.observe, many=True):
                many.take(group, progress, batches.observe)
            waiting.clear()

    return alone(step)


def fit_for_a_while(program: Any, batches: data.Batches, steps: int) -> None:
    """Take training steps, so that the parameters are not the initial ones."""
    pyro.clear_param_store()
    svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, {"lr": 1e-3, "fused": True}), ELBO())
    for batch, _ in zip(full_batches(batches), range(steps), strict=False):
        svi.step(batch, preprocess=batches.observe)


def _evaluate(path: paths.AnnealingPath, u: Tensor, _: Tensor) -> object:
    return path.evaluate(u)


def annealing(program: Any, x: Tensor) -> dict[str, Contender]:
    """Return contenders that evaluate log p(x, z) and its gradient: AIS of this package, and the bare decoder."""
    decoder, bias = program.likelihood.net, program.likelihood.bias
    u = torch.randn(CHAINS, len(x), program.prior().event_shape[0], device=x.device)

    def bare(_: Tensor) -> object:
        z = u.clone().requires_grad_()
        logits = decoder(z).squeeze(-3) + bias[0]
        entropy = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum((-2, -1))
        log_joint = -entropy - 0.5 * z.square().sum(-1)
        return torch.autograd.grad(log_joint.sum(), z)

    contenders = {}
    for name, compiled in {"pyro_vae, compiled": True, "pyro_vae, run by Pyro": False}.items():
        path = paths.AnnealingPath(program.model, program.guide, x, "guide", compiled=compiled)
        contenders[name] = Contender(partial(_evaluate, path, u), lambda: pyro.validation_enabled(False))
    return {**contenders, "bare decoder": Contender(bare)}
