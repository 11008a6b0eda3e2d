r"""What has no importance weights: programs and images that are refused, and draws that are worth nothing."""

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
    """Describe the programs, refuse what has no weights, and return a run of the model and plain layouts beside."""
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
    """Say why draws outside the support of the prior have no weight, unless their density there says 0 by itself."""
    outside, name = find_outside_prior(p, values)
    if (outside.to(log_prior.device) & (log_prior != -torch.inf)).any():
        return f"the guide draws {name!r} outside the support of its prior"
    return None


def check_finite(x: Tensor, *terms: Tensor) -> None:
    """Refuse an image that is not finite, unless the program knows how to score it, as one of missing values does."""
    bad = ~x.isfinite().reshape(len(x), -1).all(1) if x.is_floating_point() else torch.zeros(len(x), dtype=torch.bool)
    unscored = ~torch.stack([term.isfinite().all(0) for term in terms]).all(0)
    if (wrong := bad.to(unscored.device) & unscored).any():
        raise UserError(f"x is not finite in image {int(wrong.nonzero()[0])}; remove or repair it.")
