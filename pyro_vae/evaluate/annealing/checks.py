r"""Checks of the programs of an annealing path: supports, the density of the guide, and the precision of latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace import ParticleTrace, UnconstrainedSpace, log_density, trace_particles
from pyro_vae.trace.isolation import seed_rng

if TYPE_CHECKING:
    from pyro_vae.evaluate.annealing.paths import AnnealingPath


def check_supports(path: AnnealingPath, p: ParticleTrace) -> None:
    """Raise if the support of a latent depends on other latents.

    `path.space` takes the supports from one run of the model. Those of a second run, with other latents, must map u
    to the same values.
    """
    values = p.get_values(path.names)
    spaces = [path.space, UnconstrainedSpace(trace_particles(path.model, path.batch, 1), path.names)]
    # The guide may have sampled outside the support: then the values at u = 0 are compared.
    inside = spaces[0].contains(values).unsqueeze(-1)
    u = torch.where(inside, spaces[0].join(values), 0.0)
    first, second = (space.split(u)[0] for space in spaces)
    for name in values:
        if not torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-3):
            raise UserError(f"The support of latent site {name!r} depends on other latents, so it cannot be annealed.")


def check_guide(path: AnnealingPath, q: ParticleTrace) -> None:
    """Raise if the guide has no density at given values, or one that changes from call to call."""
    scores = []
    for seed in (0, 1):
        with seed_rng(path.batch.x, seed):
            try:
                values = {name: value[:1] for name, value in q.get_values(path.names).items()}
                scores.append(torch.stack(list(log_density(path.guide, path.batch, values).values())).sum(0))
            except (KeyError, NotImplementedError) as error:
                raise UserError(
                    f"The guide has no density at given values ({type(error).__name__}); anneal from the prior, "
                    'start="prior".'
                ) from error
    if not torch.allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4):
        raise UserError(
            "The density of the guide changes from call to call because of noise outside its sites (e.g. a "
            'denoising encoder or functional dropout); anneal from the prior, start="prior".'
        )


def check_round_trip(path: AnnealingPath, values: dict[str, Tensor], u: Tensor, inside: Tensor) -> None:
    """Raise if the model's log-density changes when values inside the support are mapped to u and back."""
    before = sum(log_density(path.model, path.batch, values, path.layout).values())
    after = sum(log_density(path.model, path.batch, path.space.split(u)[0], path.layout).values())
    change = torch.as_tensor(before - after).abs() - 1e-4 * torch.as_tensor(before).abs()
    if not (u.isfinite().all(-1) & (change <= 1e-2))[inside].all():
        raise UserError(
            "Latents lie too near the edge of their support for their floating-point precision; build the program "
            "in float64, torch.set_default_dtype(torch.float64), to anneal it."
        )
