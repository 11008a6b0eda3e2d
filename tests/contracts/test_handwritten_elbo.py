"""The ELBO written by hand, by Pyro's estimators and by ours; log p(x) against Pyro's bound, image by image."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import LinearGaussian
from helpers.programs import images, small_vae
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.evaluate import log_weights, score
from pyro_vae.infer import ELBO, MeanFieldELBO
from pyro_vae.model import VAE


def by_hand(vae: VAE, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return minus the ELBO of N(loc, scale^2), N(0, 1) and Bernoulli pixels for latents (K, B, D), written by hand.

    Returns:
        The sum over images and mean over particles with log q - log p(z) sampled, and with the KL divergence.
    """
    q = vae.posterior(x).base_dist
    loc, scale = q.loc, q.scale
    z = loc + scale * ((z - loc) / scale).detach()  # the noise is fixed, so that z depends on loc and scale
    logits = vae.likelihood(z).base_dist.logits
    log_likelihood = (x * logits - softplus(logits)).sum((-1, -2))
    log_prior = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
    log_posterior = (-0.5 * ((z - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum(-1)
    return -(log_likelihood + log_prior - log_posterior).mean(0).sum(), -(log_likelihood - kl).mean(0).sum()


@pytest.mark.parametrize("num_particles", [1, 5])
@pytest.mark.parametrize(
    ("ours", "pyros", "analytic"), [(ELBO, Trace_ELBO, False), (MeanFieldELBO, TraceMeanField_ELBO, True)]
)
def test_elbo_and_gradient_match_the_handwritten_formula(
    ours: type[ELBO], pyros: type[Trace_ELBO], analytic: bool, num_particles: int
) -> None:
    """Ours, Pyro's and the formula for the same z, with sampled and analytic KL, to 1e-10."""
    vae, x = small_vae(), images(7)
    ours(num_particles).loss(vae.model, vae.guide, x)  # the layout is probed on the first call
    pyro.set_rng_seed(1)
    with pyro.plate("particles", num_particles, dim=-2):
        z = poutine.trace(vae.guide).get_trace(x).nodes["z"]["value"].view(num_particles, 7, 2).detach()
    loss = by_hand(vae, x, z)[analytic]
    gradients = torch.autograd.grad(loss, list(vae.parameters()))
    expected = float(loss.detach())

    stock = pyros(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=True)
    for objective in (ours(num_particles), stock):
        vae.zero_grad()
        pyro.set_rng_seed(1)
        found = float(objective.loss_and_grads(vae.model, vae.guide, x))
        assert found == pytest.approx(expected, rel=0, abs=1e-10)
        for p, gradient in zip(vae.parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=0, atol=1e-10)


class Joint(LinearGaussian):
    """The same program with all images in one event, as without a plate that declares them independent."""

    def model(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), self.latent_dim), 1.0).to_event(2))
        loc = z @ self.weight.T + self.bias
        pyro.sample("x", dist.Normal(loc, math.sqrt(self.noise)).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        posterior = dist.MultivariateNormal(self.posterior_mean(x), scale_tril=self.scale_tril)
        pyro.sample("z", posterior.to_event(1))


def test_log_likelihood_is_pyros_bound_per_image_and_not_per_batch() -> None:
    """300 repeats of 20 images, K = 20, each comparison at 4 s.e.: false alarms 2e-4 in all.

    With one weight for the whole batch, the product of the images' weights, the bound is that of a program without a
    plate. It is lower by 12.5 nats here, and the difference grows with the batch.
    """
    single, joint = (kind(2, variance_ratio=4.0) for kind in (LinearGaussian, Joint))
    x = single.simulate(20)
    repeats = score(single.model, single.guide, x.repeat(300, 1), 20, seed=0)
    found = torch.as_tensor(repeats.log_likelihood, device="cpu").view(300, 20).sum(1)
    log_w = log_weights(single.model, single.guide, x.repeat(300, 1), 20, seed=1).cpu().view(20, 300, 20)
    batched = log_w.sum(-1).logsumexp(0) - math.log(20)

    bound = RenyiELBO(alpha=0, num_particles=20, max_plate_nesting=1, vectorize_particles=True)
    plate, whole = (
        torch.tensor([-bound.loss(program.model, program.guide, x) for _ in range(300)], device="cpu")
        for program in (single, joint)
    )

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a.mean() - b.mean()) / ((a.var() + b.var()) / 300).sqrt())

    assert abs(apart(found, plate)) < 4
    assert abs(apart(batched, whole)) < 4
    assert apart(found, whole) > 10
    truth = float(single.log_evidence(x).sum())
    assert whole.mean() < found.mean() < truth
