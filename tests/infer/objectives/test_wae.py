"""The Wasserstein autoencoder: its MMD statistic against integrals and by hand, and its training step."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.oracles import RowsAlone
from helpers.programs import images, small_vae, two_layer
from helpers.steps import driver, is_recorded, take_steps
from pyro.distributions import constraints
from scipy.integrate import quad
from torch import Tensor, nn

from pyro_vae.config import components
from pyro_vae.infer import WAE, mmd
from pyro_vae.infer.objectives.particles import draw_particles
from pyro_vae.model import VAE, nets
from pyro_vae.model.priors.mixture import GaussianMixture

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Code(nn.Module):
    """A deterministic code as a posterior."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.Dense((3, 2), 8, depth=1).encoder(2)

    def forward(self, x: Tensor) -> dist.Distribution:
        return dist.Delta(self.net(x), event_dim=1)


def autoencoder() -> VAE:
    vae = small_vae()
    vae.posterior = Code()
    return vae


PROGRAMS = {"vae": small_vae, "autoencoder": autoencoder}


# The MMD statistic


def expected_kernel(shift: float, variance: float, dim: int) -> float:
    """Return E k(a, b) for a - b ~ N(d, variance I), where |d| is `shift`.

    1 / (C + Q) is the integral of exp(-(C + Q) t) over t > 0, and the expectation of exp(-Q t), Q = |a - b|^2, is that
    of a noncentral chi-squared variable.
    """

    def integrand(u: float, size: float) -> float:
        spread = 1 + 2 * variance * u / size
        return math.exp(-u - shift**2 * u / size / spread) * spread ** (-dim / 2)

    return sum(quad(integrand, 0, math.inf, args=(2 * dim * scale,), epsabs=1e-12)[0] for scale in SCALES)


@pytest.mark.parametrize(
    ("dim", "shift", "scale"), [(1, 0.0, 1.0), (4, 0.0, 1.0), (1, 1.5, 0.5), (4, 0.7, 2.0), (50, 0.0, 0.9)]
)
def test_mmd_is_unbiased(dim: int, shift: float, scale: float) -> None:
    """Samples of 7 and 5 from N(0, I) and N(d, scale^2 I), 4,000 times: 4 s.e. from the integral, false alarms 6e-5."""
    a, b = torch.randn(4000, 7, dim), scale * torch.randn(4000, 5, dim)
    b[..., 0] += shift
    among = expected_kernel(0.0, 2.0, dim) + expected_kernel(0.0, 2 * scale**2, dim)
    exact = among - 2 * expected_kernel(shift, 1 + scale**2, dim)
    assert (exact == pytest.approx(0, abs=1e-9)) == (shift == 0 and scale == 1)
    found = mmd(a, b)
    assert found.mean().item() == pytest.approx(exact, abs=4 * found.std().item() / 4000**0.5)


def kernel(a: Tensor, b: Tensor) -> float:
    square, dim = float((a - b).square().sum()), len(a)
    return sum(2 * dim * scale / (2 * dim * scale + square) for scale in SCALES)


def by_hand(a: Tensor, b: Tensor) -> float:
    """Return the means over pairs of distinct points within each sample, minus twice that over pairs across samples."""

    def within(points: Tensor) -> float:
        values = [kernel(s, t) for i, s in enumerate(points) for j, t in enumerate(points) if i != j]
        return sum(values) / len(values)

    return within(a) + within(b) - 2 * sum(kernel(s, t) for s in a for t in b) / (len(a) * len(b))


def test_mmd_of_three_and_two_points() -> None:
    a, b = torch.randn(3, 2), 1 + torch.randn(2, 2)
    assert mmd(a, b).item() == pytest.approx(by_hand(a, b), rel=1e-12)
    one, other = torch.tensor([[0.0], [0.0], [3.0]]), torch.tensor([[0.0], [1.0]])  # with repeated points
    assert mmd(one, other).item() == pytest.approx(by_hand(one, other), rel=1e-12)


def test_mmd_is_invariant_to_order_shift_rotation_and_exchange() -> None:
    a, b = torch.randn(6, 3), 0.5 + torch.randn(4, 3)
    turn, _ = torch.linalg.qr(torch.randn(3, 3))
    expected = mmd(a, b)
    for first, second in (
        (a[torch.randperm(6)], b[torch.randperm(4)]),
        (a + 5, b + 5),
        (a @ turn, b @ turn),
        (b, a),
    ):
        torch.testing.assert_close(mmd(first, second), expected, rtol=1e-10, atol=1e-12)
    assert not torch.isclose(mmd(a + 5, b), expected)


def test_mmd_gradient_matches_finite_differences() -> None:
    samples = tuple(torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 4, 3), (2, 3, 3)))
    assert torch.autograd.gradcheck(mmd, samples)


@pytest.mark.parametrize("shapes", [((1, 2), (5, 2)), ((5, 2), (1, 2)), ((5, 2), (5, 3))])
def test_incomparable_samples_are_rejected(shapes: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="at least two draws of each"):
        mmd(*(torch.randn(shape) for shape in shapes))


# The objective


@pytest.mark.parametrize("name", PROGRAMS)
def test_objective_matches_its_formula(name: str) -> None:
    vae, x = PROGRAMS[name](), images(5)
    particles = draw_particles(vae.model, vae.guide, x, 3)
    pyro.set_rng_seed(1)
    found = WAE(3, mmd_weight=20.0).per_image(particles)
    pyro.set_rng_seed(1)
    draws = dist.Normal(0.0, 1.0).expand([3, 5, 2]).sample()
    z = particles.q.values["z"]
    penalty = sum(by_hand(codes, fresh) for codes, fresh in zip(z.detach(), draws, strict=True)) / 3
    torch.testing.assert_close(found, vae.likelihood(z).log_prob(x).mean(0) - 20 * penalty)
    if name == "autoencoder":
        torch.testing.assert_close(z, vae.posterior.net(x).expand(3, 5, 2))
    assert particles.elbo.isnan().all() == (name == "autoencoder")


def test_penalty_moves_the_codes_to_the_prior() -> None:
    """Codes start at about (2, 2); after 60 steps with the penalty their means are near 0 and their squares near 1."""
    found = []
    for weight in (0.0, 1000.0):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = autoencoder()
        with torch.no_grad():
            vae.posterior.net[1][-1].bias.fill_(2.0)
        take_steps(driver(vae, WAE(1, weight)), 60, size=50)
        codes = vae.posterior.net(images(1000)).detach()
        found.append((codes.mean(0).abs().max().item(), codes.square().mean().item()))
    (mean, square), (penalised_mean, penalised_square) = found
    assert penalised_mean < 0.3 < 0.6 < mean
    assert abs(penalised_square - 1) < 0.2 < 1 < square - 1


def test_one_image_has_no_penalty() -> None:
    """The last batch of an epoch may be a single image."""
    vae = small_vae()
    particles = draw_particles(vae.model, vae.guide, images(1), 4)
    torch.testing.assert_close(WAE(4).per_image(particles), particles.log_likelihood.mean(0))


def test_program_in_the_row_layout_has_the_same_penalty() -> None:
    """The decoder takes only rows, so that the prior site and the guide site have different layouts."""
    particles = draw_particles(RowsAlone.model, RowsAlone.guide, images(4), 3)
    pyro.set_rng_seed(1)
    found = WAE(3).discrepancy(particles)
    pyro.set_rng_seed(1)
    draws = dist.Normal(0.0, 1.0).expand([12, 6]).sample().view(3, 4, 6)
    torch.testing.assert_close(found, mmd(particles.q.values["z"], draws).mean())


def mixture() -> VAE:
    """A VAE whose prior has no pathwise draws."""
    vae = small_vae()
    vae.prior = GaussianMixture(2, 3)
    return vae


@pytest.mark.parametrize("name", [*PROGRAMS, "mixture"])
def test_recorded_step_equals_that_of_pyro(name: str) -> None:
    runs = []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = driver({**PROGRAMS, "mixture": mixture}[name](), WAE(2, 20.0), graph)
        runs.append(take_steps(svi, 10))
    assert is_recorded(svi)
    assert runs[1] == pytest.approx(runs[0], rel=1e-12)


@pytest.mark.parametrize("name", sorted(components.PRIORS.keys() - {"flat"}))
def test_every_prior_is_sampled_and_trained_if_its_draws_are_pathwise(name: str) -> None:
    vae, x = small_vae(), images(5)
    vae.prior = components.construct(
        components.PRIORS[name], latent_dim=2, images=(255 * images(300)).byte(), posterior=vae.posterior
    )
    WAE(1, 20.0).loss_and_grads(vae.model, vae.guide, x)
    of_prior = {name: p for name, p in vae.prior.named_parameters() if not name.startswith("posterior")}
    trained = {name for name, p in of_prior.items() if p.grad is not None and p.grad.any()}
    assert trained == (set(of_prior) if vae.prior().has_rsample else set())
    particles, prior = draw_particles(vae.model, vae.guide, x, 1), vae.prior().expand([1, 5])
    pyro.set_rng_seed(1)
    found = WAE(1, 20.0).discrepancy(particles)
    pyro.set_rng_seed(1)
    draws = prior.sample()
    torch.testing.assert_close(found, mmd(particles.q.values["z"], draws).squeeze())


def test_several_latent_sites_are_rejected() -> None:
    program = two_layer()
    with pytest.raises(ValueError, match="one latent site, and this program has 2"):
        WAE().loss(program.model, program.guide, images(4))


def test_prior_without_a_sampler_is_rejected() -> None:
    vae = small_vae()
    vae.prior.forward = lambda: dist.ImproperUniform(constraints.real_vector, (), (2,))
    with pytest.raises(ValueError, match=r"'z' \(ImproperUniform\) has no sampler"):
        WAE().loss(vae.model, vae.guide, images(4))


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weight_out_of_range_is_rejected(weight: float) -> None:
    with pytest.raises(ValueError, match=f"mmd_weight is {weight};"):
        WAE(1, weight)
