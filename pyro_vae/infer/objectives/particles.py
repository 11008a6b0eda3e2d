r"""K particles of each image with all their log-densities: what every objective is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace import (
    Batch,
    Data,
    Description,
    Layouts,
    ParticleTrace,
    Program,
    SharedNoise,
    Terms,
    check_trace_support,
    describe_traces,
    replay,
    trace_model_and_guide,
)
from pyro_vae.trace.enumeration import count_states


@dataclass(frozen=True)
class Particles:
    """Particles z_k ~ q(z|x) of B images, scored by model and guide; all terms (K, B), float64, in nats.

    `description` says what the program is, from the first time that it was drawn from.
    """

    model: Program
    guide: Program
    batch: Batch
    p: ParticleTrace
    q: ParticleTrace
    p_terms: Terms
    q_terms: Terms
    description: Description
    noise: tuple[SharedNoise, SharedNoise] | None = None

    @property
    def x(self) -> Tensor:
        """The images (B, ...)."""
        return self.batch.x

    @property
    def log_p(self) -> dict[str, Tensor]:
        """Log-densities of the model's sites, unscaled."""
        return self.p_terms.densities

    @property
    def log_q(self) -> dict[str, Tensor]:
        """Log-densities of the guide's sites, unscaled."""
        return self.q_terms.densities

    @cached_property
    def log_w(self) -> Tensor:
        """Log importance weights, log p(x, z) - log q(z|x); a point mass and an improper prior add nothing.

        What the guide enumerates is summed out of them.
        """
        if not self.q.enumerated:
            return self._log_ratio
        drawn = {name: term for name, term in self.log_q.items() if name not in self.q.enumerated}
        return self._of_states(_total(self.log_p) - _total(drawn)).logsumexp(0)

    @cached_property
    def _log_ratio(self) -> Tensor:
        return _total(self.log_p) - _total(self.log_q)

    @cached_property
    def _bound(self) -> Tensor:
        return self._expected(self._log_ratio)

    @property
    def weighted(self) -> Tensor:
        """The terms of the ELBO, each times the scale of its site, as stock `Trace_ELBO` has it."""
        if not (self.p_terms.scaled or self.q_terms.scaled):
            return self._bound
        return self._expected(_total(self.p_terms.weighted) - _total(self.q_terms.weighted))

    @property
    def losses(self) -> Tensor:
        """What stands in the objective beside densities: factors of the model less those of the guide, scaled."""
        return self._expected(_total(self.p_terms.losses) - _total(self.q_terms.losses))

    def _of_states(self, value: Tensor) -> Tensor:
        """Return a quantity of every particle, (S * K, B), as (S, K, B)."""
        return value.unflatten(0, (count_states(self.q.layout.enumerated), -1))

    def _expected(self, value: Tensor) -> Tensor:
        """Return the mean over what the guide enumerates, under its own probabilities: (K, B) of (S * K, B)."""
        if not self.q.enumerated:
            return value
        shares = self._of_states(_total({name: self.log_q[name] for name in self.q.enumerated})).exp()
        possible = shares > 0  # what has no probability counts for nothing, and may have no finite term
        return (shares * torch.where(possible, self._of_states(value), 0.0)).sum(0)

    @property
    def elbo(self) -> Tensor:
        """The ELBO of each image (B,), without gradient, scales or factors; NaN of a program without log weights."""
        if self.description.no_density_reason:
            return torch.full_like(self.log_w[0], torch.nan).detach()
        value = self._bound.detach().mean(0)
        # Of what all images share, a batch has the part of its images in the data set.
        rest = 1 - self.p.batch_size / self.p.frame.data.full_size
        for name in self.description.shared if rest else ():
            for terms, sign in ((self.log_p, rest), (self.log_q, -rest)):
                value = value - sign * terms[name].detach().mean(0) if name in terms else value
        return value

    @property
    def log_likelihood(self) -> Tensor:
        """The observed sites' terms, log p(x|z)."""
        return self._observed(self.p_terms.densities)

    @property
    def weighted_likelihood(self) -> Tensor:
        """The same, each term times the scale of its site."""
        return self._observed(self.p_terms.weighted)

    @property
    def weighted_rate(self) -> Tensor:
        """The latent sites' terms, log q(z|x) - log p(z), times their scales: the rate, in expectation."""
        p_terms = {name: self.p_terms.weighted[name] for name in self.q.latents}
        return self._expected(_total(self.q_terms.weighted) - _total(p_terms))

    def _observed(self, terms: dict[str, Tensor]) -> Tensor:
        return self._expected(_total({name: value for name, value in terms.items() if name not in self.q.latents}))

    def rescore_detached(self, program: Program, *, weighted: bool = False) -> Tensor:
        """Score the model or the guide at the same z, through which no gradient flows: the sum of its terms.

        Raises:
            ValueError: it has no density at given values, as a flow without an inverse.
        """
        which = int(program == self.guide)
        run = (self.p, self.q)[which]
        values = {name: value.detach() for name, value in self.q.values.items()}
        try:
            again = replay(program, self.batch, values, run, self.noise[which] if self.noise else None)
            terms = again.terms(guide=bool(which))
        except (KeyError, NotImplementedError) as error:
            raise UserError(
                f"{type(error).__name__} where a program is scored again at the values that it has drawn: stl and dreg "
                "need invertible transforms; use elbo or iwae."
            ) from error
        return _total(terms.weighted if weighted else terms.densities)


def draw_particles(
    model: Program,
    guide: Program,
    batch: Data,
    num_samples: int,
    *,
    layouts: Layouts | None = None,
    description: Description | None = None,
    rescores: bool = False,
) -> Particles:
    """Draw and score K particles of each image with pathwise gradients.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        batch: what they are called with.
        num_samples: K.
        layouts: how they are run, where that is known.
        description: what they are, where that is known.
        rescores: whether the programs will be scored a second time, under the same noise.

    Raises:
        ValueError: a latent site has no reparameterized gradient or is missing on one side, or as
            `trace_model_and_guide`; where Pyro's validation is on, data outside their support.
    """
    batch = Batch.of(batch)
    noise = (SharedNoise(), SharedNoise()) if rescores else None
    p, q = trace_model_and_guide(model, guide, batch, num_samples, layouts, noise)
    _check_gradients(q)
    if is_validation_enabled():
        check_trace_support(p)
    description = description or describe_traces(guide, batch, p, q)
    # Model before guide, the order of stock Pyro: gradients then add up in its order, to the same bits.
    p_terms = p.terms()
    return Particles(model, guide, batch, p, q, p_terms, q.terms(guide=True), description, noise)


def _check_gradients(q: ParticleTrace) -> None:
    if not torch.is_grad_enabled():
        return
    for name, site in q.sites.items():
        kind = site["fn"]
        if name in q.enumerated:
            continue
        if not kind.has_rsample and (name in q.drawn or q.is_factor(name)):
            remedy = "pass has_rsample=True to pyro.factor" if q.is_factor(name) else "use one that has"
            if getattr(kind, "has_enumerate_support", False):
                remedy = 'mark it infer={"enumerate": "parallel"} to have it summed over'
            raise UserError(f"Guide site {name!r} ({type(kind).__name__}) has no reparameterized sampler; {remedy}.")


def _total(terms: dict[str, Tensor]) -> Tensor:
    values = list(terms.values())
    return sum(values[1:], values[0]) if values else torch.tensor(0)  # from the first: adding it to 0 is an operation
