"""The contenders of this package in the benchmark, and the batches on which all contenders run."""

from __future__ import annotations

from collections.abc import Iterator
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
from pyro_vae.infer import ELBO, SVI, Optim, schedules

CHAINS = 16


def batches_of(settings: config.Config, images: data.Observed) -> data.Batches:
    """Return the batches of a fit."""
    return images.batches(settings.batch_size, settings.seed)


def full_batches(batches: data.Batches) -> Iterator[Tensor]:
    """Yield batches of the full size, for ever."""
    for epoch in count():
        yield from (batch for batch in batches(epoch) if len(batch) == batches.batch_size)


def fed(step: Step, stream: Iterator[Tensor]) -> Step:
    """Return a step that takes its batches from a stream of its own."""
    return lambda _: step(next(stream))


def as_json(timings: dict[str, Timing]) -> dict[str, Any]:
    """Return timings as JSON values."""
    return {name: timing._asdict() for name, timing in timings.items()}


def ours(settings: config.Config, images: data.Observed, batches: data.Batches, graph: str | None) -> Contender:
    """Return the step that scripts/fit.py takes."""
    program = programs.build(settings, images.pixels)
    schedule = schedules.per_step(schedules.cosine, STEPS)
    optim = Optim(torch.optim.Adam, {"lr": settings.learning_rate, "fused": True}, schedule)
    objective = ELBO(settings.num_particles)
    svi = SVI(program.model, program.guide, optim, objective, execution=graph, precision=settings.precision)
    return alone(lambda batch: svi.step(batch, preprocess=batches.observe))


def fit_for_a_while(program: Any, batches: data.Batches, steps: int) -> None:
    """Take some steps, so that weights are not those of the start."""
    pyro.clear_param_store()
    svi = SVI(program.model, program.guide, Optim(torch.optim.Adam, {"lr": 1e-3, "fused": True}), ELBO())
    for batch, _ in zip(full_batches(batches), range(steps), strict=False):
        svi.step(batch, preprocess=batches.observe)


def _at(path: paths.AnnealingPath, u: Tensor, _: Tensor) -> object:
    return path.evaluate(u)


def annealing(program: Any, x: Tensor) -> dict[str, Contender]:
    """Make the densities and gradients of annealed importance sampling, and a bare loop over the same decoder."""
    decoder, bias = program.likelihood.net, program.likelihood.bias
    u = torch.randn(CHAINS, len(x), program.prior().event_shape[0], device=x.device)

    def bare(_: Tensor) -> object:
        z = u.clone().requires_grad_()
        logits = decoder(z).squeeze(-3) + bias[0]
        entropy = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum((-2, -1))
        log_joint = -entropy - 0.5 * z.square().sum(-1)
        return torch.autograd.grad(log_joint.sum(), z)

    found = {}
    for name, compiled in {"pyro_vae, compiled": True, "pyro_vae, run by Pyro": False}.items():
        path = paths.AnnealingPath(program.model, program.guide, x, "guide", compiled=compiled)
        found[name] = Contender(partial(_at, path, u), lambda: pyro.validation_enabled(False))
    return {**found, "bare decoder": Contender(bare)}
