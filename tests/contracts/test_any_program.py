"""Third-party programs: latents shared by all images, layouts, and the modules that are run."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.any_program import Small, adam, binary
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_vae import ELBO, IWAE, SVI, log_weights, score
from pyro_vae.evaluate import posterior_means
from pyro_vae.infer import STL, BetaELBO, DReG, FreeBits, MeanFieldELBO
from pyro_vae.trace import Batch, choose_layout, describe, draw, log_density


class Offsets:
    """x = z + w with z ~ N(0, 1) for each row and a shared w ~ N(0, 1), in a plate as long as the batch or in none.

    x is N(0, 2 I + 1 1'), so that log p(x_1, ..., x_B) is known; the guide is wider than the posterior.
    """

    def __init__(self, plate: bool) -> None:
        self.plate = plate

    def w(self, size: int, loc: Tensor, scale: float) -> Tensor:
        if not self.plate:
            return pyro.sample("w", dist.Normal(loc, scale))
        with pyro.plate("others", size):  # as many as images, but unrelated to them
            return pyro.sample("w", dist.Normal(loc, scale)).sum(-1, keepdim=True) / math.sqrt(size)

    def model(self, x: Tensor) -> None:
        w = self.w(len(x), torch.zeros(()), 1.0)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        w = self.w(len(x), torch.zeros(()), 1.0)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - w) / 2, math.sqrt(0.5)))


@pytest.mark.parametrize("plate", [False, True])
def test_shared_latents_have_a_joint_weight(plate: bool) -> None:
    """Compared with the closed form at 4 s.e. of the estimate: false alarms 6e-5. Single images have no weight."""
    program, x = Offsets(plate), torch.randn(4)
    description = describe(program.model, program.guide, x)
    assert description.shared == ("w",)
    assert description.data_plate == "data"
    with pytest.raises(ValueError, match="Site 'w' is outside the data plate 'data'"):
        score(program.model, program.guide, x, 10)
    log_w = log_weights(program.model, program.guide, x, 20_000, seed=0, shared="sampled")
    assert log_w.shape == (20_000,)
    covariance = 2 * torch.eye(4) + torch.ones(4, 4)
    truth = dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(x)
    w = (log_w - log_w.max()).exp()
    error = float(w.std() / w.mean() / math.sqrt(len(w)))
    assert float(log_w.logsumexp(0) - math.log(len(log_w)) - truth) == pytest.approx(0, abs=4 * error)


def test_program_bound_to_one_batch_runs_one_particle_at_a_time() -> None:
    """Labels of the batch are in its closure, and its softmax over dim 1 would mix images in the shape (K, B, D)."""
    program, labels = Small(), torch.randn(5, 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            logits = program.dec(torch.softmax(z + labels, dim=1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    x, z = binary(5, 6), torch.randn(7, 5, 2)
    layout = choose_layout(model, Batch(x), 7, {"z": z})
    assert (layout.kind, layout.reason) == ("singly", "its densities would change")
    found = sum(log_density(model, x, {"z": z}).values())
    expected = torch.cat([sum(log_density(model, x, {"z": part}).values()) for part in z.split(1)])
    torch.testing.assert_close(found, expected)
    for objective in (ELBO(3), IWAE(3), STL(3), DReG(3), MeanFieldELBO(3), FreeBits(3), BetaELBO(3)):
        assert objective.loss(model, program.guide, x).isfinite()


def test_noise_drawn_outside_sites_differs_between_particles() -> None:
    """A guide that calls `rsample` itself and passes the value in a `Delta`: K particles need K draws."""

    def guide(x: Tensor) -> None:
        q = dist.Normal(x, 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            z = q.rsample()
            pyro.sample("z", dist.Delta(z, log_density=q.log_prob(z), event_dim=1))

    values, _ = draw(guide, torch.randn(4, 3), 6)
    assert (values["z"].std(0) > 0).all()
    torch.testing.assert_close(
        posterior_means(guide, torch.full((1, 1), 7.0), seed=0), torch.full((1, 1), 7.0), atol=0.5, rtol=0
    )


def test_scoring_a_new_autoguide_does_not_prevent_training() -> None:
    program, x = Small(), binary(8, 6)
    guide = AutoNormal(program.model)
    score(program.model, guide, x, 20, seed=0)
    svi = pyro.infer.SVI(program.model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(300):
        svi.step(x)
    values, _ = draw(guide, x, 3)
    assert values["z"].shape == (3, 8, 2)
    log_w = log_weights(program.model, guide, x, 2000, seed=0)
    assert (log_w.logsumexp(0) - math.log(2000) - program_evidence(program, x)).abs().max() < 0.2


def program_evidence(program: Small, x: Tensor) -> Tensor:
    """log p(x) by the trapezoidal rule over both latents."""
    axis = torch.linspace(-7, 7, 301)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logits = program.logits(grid)
        log_x = x @ logits.T - nn.functional.softplus(logits).sum(1)
        log_z = dist.Normal(0.0, 1.0).log_prob(grid).sum(1)
    return (log_x + log_z).logsumexp(1) + 2 * math.log(axis[1] - axis[0])


def test_modules_inside_containers_are_found() -> None:
    nets = {"enc": nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))}
    program = Small()

    class Holder:
        pass

    holder = Holder()
    holder.deep = [[[[[nets]]]]]

    def guide(x: Tensor) -> None:
        net = holder.deep[0][0][0][0][0]["enc"]
        pyro.module("enc", net)
        with pyro.plate("data", len(x)):
            loc, log_scale = net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    x, before = binary(8, 6), nets["enc"][1].running_mean.clone()
    wrapped = poutine.mask(poutine.scale(guide, scale=1.0), mask=True)
    found = log_weights(program.model, wrapped, x, 50, seed=0)
    assert nets["enc"].training
    assert torch.equal(nets["enc"][1].running_mean, before)
    nets["enc"].eval()
    torch.testing.assert_close(log_weights(program.model, guide, x, 50, seed=0), found)
    nets["enc"].train()
    svi = SVI(program.model, guide, adam(), ELBO())
    svi.step(x)
    assert any("1.running_mean" in key for table in svi.state_dict()["modules"] for key in table)


def test_scoring_keeps_requires_grad_of_a_tensor_given_to_param() -> None:
    program, start = Small(), torch.zeros(6)

    def model(x: Tensor) -> None:
        pyro.param("start", start)
        program.model(x)

    score(model, program.guide, binary(3, 6), 5)
    assert not start.requires_grad
