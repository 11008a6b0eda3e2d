r"""Checks that a program has importance weights, that samples are in the support, and that images are finite."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluate.likelihood.independence import check_independence
from pyro_vae.trace import (
    Batch,
    Description,
    EagerBackend,
    Layouts,
    ParticleTrace,
    Program,
    check_trace_support,
    describe_traces,
    find_outside_prior,
    trace_model_and_guide,
)
from pyro_vae.trace.isolation import fork_rng


def check_programs(
    model: Program, guide: Program, batch: Batch, backend: EagerBackend, *, joint: bool
) -> tuple[Description, ParticleTrace, Layouts]:
    """Describe a program, and raise if its images have no importance weights.

    Args:
        model: Model p(x, z).
        guide: Guide q(z|x).
        batch: Arguments of both.
        backend: Records which programs have passed the independence check, which runs once per backend.
        joint: Allow weights of the batch as a whole. Otherwise latents shared by all images are rejected, and so are
            log-densities of an image that depend on the other images.

    Returns:
        The description, a trace of the model for one particle, and the layouts of a single run.
    """
    with fork_rng(batch.x):
        p, q = trace_model_and_guide(model, guide, batch, 1)
        check_trace_support(p)
        description = describe_traces(guide, batch, p, q)
        if not joint and description.not_per_image_reason:
            raise UserError(description.not_per_image_reason)
        if not joint and len(batch) > 1 and (model, guide) not in backend.checked:
            check_independence(model, guide, batch, p, q)
            backend.checked.add((model, guide))
    return description, p, Layouts(p.layout, q.layout)


def outside_prior_reason(p: ParticleTrace, values: dict[str, Tensor], log_prior: Tensor) -> str | None:
    """Return why weights are undefined because of samples outside the support of the prior, or None.

    A prior that evaluates to log-density minus infinity there gives a valid weight of zero.
    """
    outside, name = find_outside_prior(p, values)
    if (outside.to(log_prior.device) & (log_prior != -torch.inf)).any():
        return f"the guide draws {name!r} outside the support of its prior"
    return None


def check_finite(x: Tensor, *terms: Tensor) -> None:
    """Raise if an image is non-finite, and so are its log-densities.

    A program that handles missing values scores images with NaN by finite log-densities, and passes.
    """
    nonfinite = (
        ~x.isfinite().reshape(len(x), -1).all(1) if x.is_floating_point() else torch.zeros(len(x), dtype=torch.bool)
    )
    unscored = ~torch.stack([term.isfinite().all(0) for term in terms]).all(0)
    if (rejected := nonfinite.to(unscored.device) & unscored).any():
        raise UserError(f"x is non-finite in image {int(rejected.nonzero()[0])}; remove or repair the image.")
