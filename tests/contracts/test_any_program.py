"""Programs of other people: whatever they do, the number is right, or one line says why there is none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.any_program import SHORT, Small, adam, binary
from helpers.oracles import LinearGaussian
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_vae import ELBO, IWAE, SVI, Optim, log_weights, score
from pyro_vae.evaluate import (
    Annealing,
    ais,
    drawn_images,
    posterior_means,
    prior_latents,
)
from pyro_vae.infer import STL, BetaELBO, DReG, FreeBits, MeanFieldELBO
from pyro_vae.trace import Batch, choose_layout, describe, draw, log_density, run

# Shapes and plates


def test_a_value_that_would_be_broadcast_against_its_event_is_refused() -> None:
    """One image of (4, 4) under an event of (1, 4, 4) would add up all images of the batch."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            logits = z[..., None, None].expand(*z.shape[:-1], 1, 4, 4)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    with pyro.validation_enabled(False):
        for call in (lambda x: score(model, guide, x, 5), lambda x: ELBO().loss(model, guide, x)):
            with pytest.raises(ValueError, match=r"Site 'x' has a value of shape \(6, 4, 4\).*event shape \(1, 4, 4\)"):
                call(binary(6, 4, 4))


class Offsets:
    """x = z + w with z ~ N(0, 1) of each row and w ~ N(0, 1) of all, in a plate as long as the batch or in none.

    x is N(0, 2 I + 1 1'), so that log p(x_1, ..., x_B) is known; the guide is wide enough.
    """

    def __init__(self, plate: bool) -> None:
        self.plate = plate

    def w(self, size: int, loc: Tensor, scale: float) -> Tensor:
        if not self.plate:
            return pyro.sample("w", dist.Normal(loc, scale))
        with pyro.plate("others", size):  # as many as images, and none of them belongs to one
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
def test_latents_of_all_images_have_a_joint_weight(plate: bool) -> None:
    """Against the closed form, 4 s.e. of the estimate: false alarms 6e-5. An image alone has no weight."""
    program, x = Offsets(plate), torch.randn(4)
    described = describe(program.model, program.guide, x)
    assert described.shared == ("w",)
    assert described.data_plate == "data"
    with pytest.raises(ValueError, match="Site 'w' stands outside the data plate 'data'"):
        score(program.model, program.guide, x, 10)
    log_w = log_weights(program.model, program.guide, x, 20_000, seed=0, shared="sampled")
    assert log_w.shape == (20_000,)
    covariance = 2 * torch.eye(4) + torch.ones(4, 4)
    truth = dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(x)
    w = (log_w - log_w.max()).exp()
    error = float(w.std() / w.mean() / math.sqrt(len(w)))
    assert float(log_w.logsumexp(0) - math.log(len(log_w)) - truth) == pytest.approx(0, abs=4 * error)


def test_two_plates_of_one_size_that_nothing_tells_apart_are_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("a", 3, dim=-1), pyro.plate("b", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"both have the size of the batch"):
        run(model, torch.zeros(3, 3))


def test_a_plate_that_subsamples_x_by_itself_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[rows])

    with pytest.raises(ValueError, match="'data' draws 2 of the 6 rows of x by itself"):
        ELBO().loss(model, lambda x: None, torch.zeros(6))


# Layouts


def test_a_program_of_one_batch_is_read_one_particle_at_a_time() -> None:
    """Labels of the batch in its closure, and a softmax over what would be the images of a particle."""
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


def test_noise_beside_the_sites_is_not_shared_by_particles() -> None:
    """A guide that draws by itself and hands its draw over: K particles are K draws."""

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


def test_a_look_at_a_fresh_guide_leaves_it_to_be_trained() -> None:
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


def test_modules_are_those_that_run_whatever_holds_them() -> None:
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


def test_a_tensor_given_to_param_keeps_its_flag() -> None:
    program, start = Small(), torch.zeros(6)

    def model(x: Tensor) -> None:
        pyro.param("start", start)
        program.model(x)

    score(model, program.guide, binary(3, 6), 5)
    assert not start.requires_grad


# Terms


class Dropped(nn.Module):
    """z ~ N(m x w, 1) with a dropout mask m in {0, 2}, prior N(0, 1): d loss / d w = E[m^2] x^2 w, 2 w at x = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.drop = nn.Parameter(torch.tensor(1.0)), nn.Dropout(0.5)

    def model(self, x: Tensor) -> None:
        pyro.module("dropped", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.drop(x) * self.w, 1.0))


@pytest.mark.parametrize("graph", [None, "recorded"])
@pytest.mark.parametrize("objective", [STL, DReG])
def test_a_second_score_is_under_the_same_dropout(objective: Any, graph: str | None) -> None:
    """The mean gradient of 20,000 rows, whose standard deviation is below 4: within 5 s.e., false alarms 6e-7."""
    program, x = Dropped(), torch.ones(20_000)
    svi = SVI(program.model, program.guide, Optim(torch.optim.SGD, {"lr": 1.0 / len(x)}), objective(1), graph=graph)
    for _ in range(2):
        with torch.no_grad():
            program.w.fill_(1.0)
        svi.step(x)
    assert 1 - float(program.w.detach()) == pytest.approx(2, abs=5 * 4 / math.sqrt(len(x)))


def with_factor(program: Small, size: float, *, in_guide: bool) -> tuple[Any, Any]:
    def guide(x: Tensor) -> None:
        program.guide(x)
        with pyro.plate("again", len(x)):
            pyro.factor("loss", torch.full((len(x),), size), has_rsample=True)

    def model(x: Tensor) -> None:
        program.model(x)
        with pyro.plate("again", len(x)):
            pyro.factor("loss", torch.full((len(x),), size))

    return (program.model, guide) if in_guide else (model, program.guide)


def test_a_factor_of_the_guide_is_a_loss_and_no_density() -> None:
    program, x = Small(), binary(8, 6)
    programs = with_factor(program, -5.0, in_guide=True)
    torch.testing.assert_close(
        log_weights(*programs, x, 30, seed=0), log_weights(program.model, program.guide, x, 30, seed=0)
    )
    plain = ais(program.model, program.guide, x, SHORT, seed=0)
    np.testing.assert_allclose(ais(*programs, x, SHORT, seed=0).log_w, plain.log_w)
    for objective in (ELBO(2), BetaELBO(2, 1.0), IWAE(2), MeanFieldELBO(2)):
        values = []
        for pair in ((program.model, program.guide), programs):
            pyro.set_rng_seed(1)
            values.append(float(objective.loss(*pair, x)))
        assert values[1] - values[0] == pytest.approx(-5.0 * 8)
    assert describe(*programs, x).losses == ("loss",)


def test_a_factor_of_the_model_leaves_no_log_weight() -> None:
    programs, x = with_factor(Small(), -5.0, in_guide=False), binary(8, 6)
    found = score(*programs, x, 30, seed=0)
    assert "factor 'loss'" in found.reason
    assert np.isnan(found.log_likelihood).all()


def test_masks_count_in_the_analytic_divergence() -> None:
    """Rows that are masked out cost nothing: KL(N(1, 0.5^2) || N(0, 1)) of the others, in three dimensions."""
    seen = torch.tensor([True, False, True, True])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0 * z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            pyro.sample("z", dist.Normal(torch.ones(3), 0.5).to_event(1))

    x = torch.randn(4, 3)
    divergence = 3 * 3 * (0.5 * (0.25 + 1 - 1) - math.log(0.5))
    expected = divergence - float(dist.Normal(0.0, 1.0).log_prob(x)[seen].sum())
    assert float(MeanFieldELBO(2).loss(model, guide, x)) == pytest.approx(expected)


@pytest.mark.parametrize("rows", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("size", [1, 3])
def test_the_analytic_divergence_of_programs_that_take_rows(rows: tuple[bool, bool], size: int) -> None:
    w = torch.randn(2, 3)

    def guide(x: Tensor) -> None:
        loc = (x.view(x.shape[0], 2) if rows[1] else x) @ w
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, 0.3).to_event(1))

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            z = z.view(x.shape[0], 3) if rows[0] else z
            pyro.sample("x", dist.Normal(0 * z[..., :2], 1.0).to_event(1), obs=x)

    x = torch.randn(size, 2)
    divergence = (-math.log(0.3) + 0.5 * (0.09 + (x @ w) ** 2 - 1)).sum(-1)
    expected = dist.Normal(0.0, 1.0).log_prob(x).sum(-1) - divergence
    torch.testing.assert_close(MeanFieldELBO(4).bounds(model, guide, x)[0], expected)


def test_draws_of_x_given_z_share_no_noise_with_z() -> None:
    """Nor does the draw of a user after `manual_seed(0)`: correlations of 4,000 pairs below 5 / sqrt(4000)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    like = torch.zeros(2000, 2)
    values = prior_latents(model, like, seed=0)
    noise = drawn_images(model, like, values, seed=0) - values["z"][0]
    torch.manual_seed(0)
    users = torch.randn(2000, 2)
    for a, b in ((noise, values["z"][0]), (noise, users), (values["z"][0], users)):
        assert abs(float((a * b).mean())) < 5 / math.sqrt(4000)


def test_tied_weights_train_by_a_record_and_are_restored() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(6, 4)
            self.encoder = nn.ModuleList([self.shared, nn.Linear(4, 4)])
            self.decoder = nn.ModuleList([nn.Linear(2, 4), self.shared])

        def model(self, x: Tensor) -> None:
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                logits = self.decoder[0](z).tanh() @ self.shared.weight
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", len(x)):
                loc, log_scale = self.encoder[1](self.shared(x).tanh()).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    x, runs = binary(8, 6), []
    for graph in (None, "recorded"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        program = Tied()
        svi = SVI(program.model, program.guide, adam(), ELBO(), graph=graph)
        runs.append([float(svi.step(x)) for _ in range(4)])
    assert runs[1] == pytest.approx(runs[0], rel=1e-12)
    state = torch.utils._pytree.tree_map_only(Tensor, torch.clone, svi.state_dict())
    pyro.clear_param_store()
    again = Tied()
    SVI(again.model, again.guide, adam(), ELBO()).load_state_dict(state, x)
    assert torch.equal(again.shared.weight, program.shared.weight)


# Numbers that are none


def test_a_draw_outside_the_prior_has_no_weight_and_a_reason() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    found = score(model, guide, torch.zeros(3), 50, seed=0)
    assert found.reason == "the guide draws 'z' outside the support of its prior"
    assert np.isnan(found.log_likelihood).all()


def test_a_score_of_an_image_by_those_beside_it_is_refused() -> None:
    program = Small()
    norm = nn.BatchNorm1d(6, track_running_stats=False)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=norm(program.dec(z))).to_event(1), obs=x)

    with pytest.raises(ValueError, match="scores an image at site 'x' by the images beside it"):
        score(model, program.guide, binary(5, 6), 10, seed=0)


def test_an_edge_that_float32_does_not_hold_is_refused_and_float64_is_right() -> None:
    """Dirichlet-multinomial: log p(x) in closed form. Guide and prior put much mass near the corners."""
    alpha = torch.tensor([0.05, 0.3, 1.0, 0.05])
    x = torch.tensor([[10.0, 0, 0, 0], [0, 4, 6, 0], [0, 0, 10, 0], [1, 2, 3, 4]])

    def programs(dtype: torch.dtype) -> tuple[Any, Any, Tensor]:
        a, counts = alpha.to(dtype), x.to(dtype)

        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                theta = pyro.sample("theta", dist.Dirichlet(a))
                pyro.sample("x", dist.Multinomial(10, theta, validate_args=False), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("theta", dist.Dirichlet(0.5 * (a + x)))

        return model, guide, counts

    with pytest.raises(ValueError, match="near the edge of their support"):
        ais(*programs(torch.float32), Annealing(32, 50, 3), seed=0)


def test_a_guide_of_other_noise_at_every_call_is_no_start_of_a_path() -> None:
    program = LinearGaussian(2)
    x = program.simulate(4)

    def guide(x: Tensor) -> None:
        program.guide(x + torch.randn_like(x))

    with pytest.raises(ValueError, match="changes from call to call"):
        ais(program.model, guide, x, SHORT, seed=0)
    assert np.isfinite(ais(program.model, guide, x, Annealing(4, 10, 2, start="prior"), seed=0).lower).all()
