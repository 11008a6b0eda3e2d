r"""K particles of each image with all their log-densities, from which every objective is computed."""

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
    """Particles z_k ~ q(z|x) of B images, scored by model and guide. All terms have shape (K, B), float64, in nats.

    `description` is that of the program, determined when it was first sampled.
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
        """The images, shape (B, ...)."""
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
        """Log importance weights, log p(x, z) - log q(z|x).

        Point masses and improper priors contribute 0. Sites that the guide enumerates are summed out.
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
        """The terms of the ELBO, each multiplied by the scale of its site, as in stock `Trace_ELBO`."""
        if not (self.p_terms.scaled or self.q_terms.scaled):
            return self._bound
        return self._expected(_total(self.p_terms.weighted) - _total(self.q_terms.weighted))

    @property
    def losses(self) -> Tensor:
        """Scaled terms of the objective that are not densities: factors of the model minus those of the guide."""
        return self._expected(_total(self.p_terms.losses) - _total(self.q_terms.losses))

    def _of_states(self, value: Tensor) -> Tensor:
        """Reshape a value of every particle and state of the enumerated sites, from (S * K, B) to (S, K, B)."""
        return value.unflatten(0, (count_states(self.q.layout.enumerated), -1))

    def _expected(self, value: Tensor) -> Tensor:
        """Return the mean over the enumerated states under their own probabilities, from (S * K, B) to (K, B)."""
        if not self.q.enumerated:
            return value
        probs = self._of_states(_total({name: self.log_q[name] for name in self.q.enumerated})).exp()
        possible = probs > 0  # other states contribute 0, although their terms may be infinite
        return (probs * torch.where(possible, self._of_states(value), 0.0)).sum(0)

    @property
    def elbo(self) -> Tensor:
        """The ELBO of each image (B,), without gradient, scales or factors; NaN for a program without log weights."""
        if self.description.no_density_reason:
            return torch.full_like(self.log_w[0], torch.nan).detach()
        value = self._bound.detach().mean(0)
        # A site that all images share counts in proportion to the fraction of the data set that is in the batch.
        rest = 1 - self.p.batch_size / self.p.frame.data.full_size
        for name in self.description.shared if rest else ():
            for terms, sign in ((self.log_p, rest), (self.log_q, -rest)):
                value = value - sign * terms[name].detach().mean(0) if name in terms else value
        return value

    @property
    def log_likelihood(self) -> Tensor:
        """Log-likelihood log p(x|z), the sum over observed sites."""
        return self._observed(self.p_terms.densities)

    @property
    def weighted_likelihood(self) -> Tensor:
        """Log-likelihood with each term multiplied by the scale of its site."""
        return self._observed(self.p_terms.weighted)

    @property
    def weighted_rate(self) -> Tensor:
        """Log ratio log q(z|x) - log p(z) over latent sites, scaled, whose expectation is the rate."""
        p_terms = {name: self.p_terms.weighted[name] for name in self.q.latents}
        return self._expected(_total(self.q_terms.weighted) - _total(p_terms))

    def _observed(self, terms: dict[str, Tensor]) -> Tensor:
        return self._expected(_total({name: value for name, value in terms.items() if name not in self.q.latents}))

    def rescore_detached(self, program: Program, *, weighted: bool = False) -> Tensor:
        """Return the log-density of the model or the guide, scored again at the detached samples.

        Raises:
            ValueError: If it has no density at given values, e.g. a flow without an inverse.
        """
        is_guide = int(program == self.guide)
        run = (self.p, self.q)[is_guide]
        values = {name: value.detach() for name, value in self.q.values.items()}
        try:
            rescored = replay(program, self.batch, values, run, self.noise[is_guide] if self.noise else None)
            terms = rescored.terms(guide=bool(is_guide))
        except (KeyError, NotImplementedError) as error:
            raise UserError(
                f"The program cannot be scored again at its own samples ({type(error).__name__}): stl and dreg need "
                "invertible transforms; use elbo or iwae."
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
    """Sample and score K particles of each image with pathwise gradients.

    Args:
        model: Callable that defines p(x, z).
        guide: Callable that defines q(z|x).
        batch: Arguments of the program.
        num_samples: Number of particles K.
        layouts: Layouts of the particles, if known.
        description: Description of the program, if known.
        rescores: Whether the program will be scored a second time, with the same noise.

    Raises:
        ValueError: If a latent site has no reparameterized sampler, or is missing in the model or the guide, or as
            `trace_model_and_guide`. With Pyro's validation enabled, also if data are outside their support.
    """
    batch = Batch.of(batch)
    noise = (SharedNoise(), SharedNoise()) if rescores else None
    p, q = trace_model_and_guide(model, guide, batch, num_samples, layouts, noise)
    _check_gradients(q)
    if is_validation_enabled():
        check_trace_support(p)
    description = description or describe_traces(guide, batch, p, q)
    # Score the model first, as stock Pyro does: gradients then accumulate in its order, bit for bit.
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
            remedy = "pass has_rsample=True to pyro.factor" if q.is_factor(name) else "use a distribution that has one"
            if getattr(kind, "has_enumerate_support", False):
                remedy = 'mark it infer={"enumerate": "parallel"} to sum it out'
            raise UserError(f"Guide site {name!r} ({type(kind).__name__}) has no reparameterized sampler; {remedy}.")


def _total(terms: dict[str, Tensor]) -> Tensor:
    values = list(terms.values())
    return sum(values[1:], values[0]) if values else torch.tensor(0)  # not from 0, which would add an operation
