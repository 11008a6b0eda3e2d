r"""K particles of each image with all their log-densities: what every objective is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_vae.trace import Program, Run, check_support, no_normalization, run_at, run_pair


@dataclass(frozen=True)
class Particles:
    """Particles z_k ~ q(z|x) of B images, scored by model and guide; all terms (K, B), float64, in nats."""

    model: Program
    guide: Program
    x: Tensor
    p: Run
    q: Run
    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]

    @cached_property
    def log_w(self) -> Tensor:
        """Log importance weights, log p(x, z) - log q(z|x); a point mass and an improper prior add nothing."""
        return sum(self.log_p.values()) - torch.as_tensor(sum(self.log_q.values()))

    @property
    def elbo(self) -> Tensor:
        """The ELBO of each image (B,), without gradient; NaN of a program that has no log weights."""
        value = self.log_w.detach().mean(0)
        if no_normalization(self.p, self.q):
            return torch.full_like(value, torch.nan)
        for delta in self.q.deltas.values():  # a point mass where it has no density of its own; in a graph, no branch
            value = value.masked_fill(~delta.log_density.any(), torch.nan)
        return value

    @property
    def log_likelihood(self) -> Tensor:
        """The observed sites' terms, log p(x|z)."""
        return torch.as_tensor(sum(value for name, value in self.log_p.items() if name not in self.log_q))

    @property
    def log_ratio(self) -> Tensor:
        """The latent sites' terms, log q(z|x) - log p(z): the rate, in expectation."""
        return torch.as_tensor(sum(value - self.log_p[name] for name, value in self.log_q.items()))

    def score_again(self, program: Program) -> Tensor:
        """Score the model or the guide at the same z, through which no gradient flows: the sum of its sites."""
        values = {name: value.detach() for name, value in self.q.values.items()}
        return torch.as_tensor(sum(run_at(program, self.x, values).log_probs().values()))


def draw_particles(model: Program, guide: Program, x: Tensor, num_samples: int) -> Particles:
    """Draw and score K particles of each image with pathwise gradients.

    Raises:
        ValueError: a latent site has no reparameterized gradient, is scaled, is missing on one side, or stands
            outside the data plate; where Pyro's validation is on, data outside their support.
    """
    p, q = run_pair(model, guide, x, num_samples)
    _check_sites(p, q)
    # Model before guide, the order of stock Pyro: gradients then add up in its order, to the same bits.
    log_p = p.log_probs()
    return Particles(model, guide, x, p, q, log_p, q.log_probs())


def _check_sites(p: Run, q: Run) -> None:
    for name, site in (*p.sites.items(), *q.sites.items()):
        if isinstance(site["scale"], Tensor) or site["scale"] != 1:
            raise ValueError(
                f"Site {name!r} is scaled, and bounds of each image know no scale: remove poutine.scale, and give "
                "the data plate the size of the batch, x.shape[0]."
            )
    for name in q.values:
        kind = q.sites[name]["fn"]
        if torch.is_grad_enabled() and not kind.has_rsample:
            raise ValueError(
                f"Guide site {name!r} ({type(kind).__name__}) has no reparameterized sampler; use one that has."
            )
    if is_validation_enabled():
        check_support(p)
