"""The autoencoder: equivalent to PCA if linear, and without a density."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers.calls import TINY, command, inside
from helpers.oracles import LinearGaussian
from scipy.linalg import subspace_angles
from torch import Tensor, nn

from pyro_vae import config
from pyro_vae.config import programs
from pyro_vae.evaluate import elbo_surgery, log_weights, score, summarize
from pyro_vae.infer import ELBO, SVI, Fit, Optim
from pyro_vae.infer.validation import validate
from pyro_vae.model import VAE, likelihoods, nets, posteriors
from pyro_vae.model.priors.flat import FlatPrior
from pyro_vae.runs import load_images
from pyro_vae.trace import Batch, trace_particles

pytestmark = pytest.mark.host

DIM, UNITS = 6, 2


class ScaledPixels(nn.Module):
    """A Gaussian with a linear mean and a scale for each pixel."""

    def __init__(self, decoder: Callable[[int], nn.Module], images: Tensor) -> None:
        super().__init__()
        self.net = decoder(1)
        self.log_scale = nn.Parameter(torch.full((DIM,), -1.5))

    def forward(self, z: Tensor) -> dist.Distribution:
        return dist.Normal(self.net(z).squeeze(-2), self.log_scale.exp()).to_event(1)


def centred_data() -> Tensor:
    """Return 300 centered points: a plane with little noise, and two more pixels of pure noise."""
    plane = torch.randn(300, UNITS) @ torch.randn(UNITS, DIM - 2)
    x = torch.cat([plane + 0.1 * torch.randn(300, DIM - 2), torch.randn(300, 2) * torch.tensor([0.9, 0.2])], 1)
    return x - x.mean(0)


def linear_autoencoder(likelihood: Callable[..., nn.Module]) -> VAE:
    images = torch.randint(0, 256, (50, DIM), dtype=torch.uint8)
    family = nets.Dense((DIM,), 0, depth=0)
    part = likelihood(partial(family.decoder, UNITS), images)
    return VAE(FlatPrior(UNITS), part, posteriors.PointMass(family.encoder, UNITS)).to(torch.get_default_device())


def fitted_angle(likelihood: Callable[..., nn.Module], x: Tensor) -> float:
    """Fit to convergence; return the largest principal angle between the decoder's plane and that of PCA."""
    program = linear_autoencoder(likelihood)
    optim = torch.optim.LBFGS(program.parameters(), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> Tensor:
        optim.zero_grad()
        loss = ELBO().differentiable_loss(program.model, program.guide, x) / len(x)
        loss.backward()
        return loss

    optim.step(closure)
    weight = program.likelihood.net[0][0].weight.detach()
    components = torch.linalg.svd(x, full_matrices=False).Vh[:UNITS].T
    return float(subspace_angles(weight.cpu().numpy(), components.cpu().numpy()).max())


def test_linear_autoencoder_with_one_scale_finds_the_principal_plane() -> None:
    """Baldi, Hornik (1989): the squared error has no minimum other than the plane of PCA."""
    assert fitted_angle(likelihoods.IsotropicGaussian, centred_data()) < 1e-2


def test_linear_autoencoder_with_pixel_scales_does_not_find_it() -> None:
    """A noisy pixel gets a wide scale instead of a direction, as in factor analysis."""
    assert fitted_angle(ScaledPixels, centred_data()) > 0.1


def test_linear_vae_with_one_scale_is_probabilistic_pca() -> None:
    """log p(x) = N(x; b, W W' + s2 I): with the exact posterior as the guide, every weight equals it."""
    truth = LinearGaussian(UNITS, DIM)
    images = torch.randint(0, 256, (50, DIM), dtype=torch.uint8)
    part = likelihoods.IsotropicGaussian(partial(nets.Dense((DIM,), 0, depth=0).decoder, UNITS), images, 0.0)
    with torch.no_grad():
        part.net[0][0].weight.copy_(truth.weight)
        part.bias.copy_(truth.bias.unsqueeze(0))
        part.raw_scale.copy_(torch.tensor(math.sqrt(truth.noise)).expm1().log())
    part.to(torch.get_default_device())

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(UNITS), 1.0).to_event(1))
            pyro.sample("x", part(z), obs=x)

    x = truth.simulate(10)
    found = log_weights(model, truth.guide, x, 20, seed=0)
    torch.testing.assert_close(found, truth.log_evidence(x).expand_as(found), rtol=1e-9, atol=1e-9)


def an_autoencoder() -> tuple[VAE, Tensor]:
    family = nets.Dense((2, 3), 5)
    images = torch.randint(0, 256, (50, 2, 3), dtype=torch.uint8)
    likelihood = likelihoods.Bernoulli(partial(family.decoder, UNITS), images)
    program = VAE(FlatPrior(UNITS), likelihood, posteriors.PointMass(family.encoder, UNITS))
    return program.to(torch.get_default_device()), torch.bernoulli(torch.full((30, 2, 3), 0.5))


def cross_entropy(program: VAE, x: Tensor) -> Tensor:
    logits = program.likelihood.net(program.posterior.net(x)).squeeze(1) + program.likelihood.bias
    return nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((-2, -1))


def test_objective_is_the_reconstruction_error_without_an_elbo() -> None:
    program, x = an_autoencoder()
    objective, elbo = ELBO(3).bounds(program.model, program.guide, x)
    torch.testing.assert_close(-objective, cross_entropy(program, x).double())
    assert elbo.isnan().all()


def test_scores_contain_only_the_reconstruction_error() -> None:
    program, x = an_autoencoder()
    scores = score(program.model, program.guide, x, 100, seed=0)
    expected = cross_entropy(program, x).detach().cpu().numpy()
    assert scores.distortion == pytest.approx(expected, rel=1e-6)
    numbers = summarize(scores, 0, 6)
    assert numbers["distortion"] == pytest.approx(expected.mean(), rel=1e-6)
    nothing = {"elbo", "elbo_se", "log_likelihood", "log_likelihood_se", "log_likelihood_mc_se", "psis", "jvi1", "jvi2"}
    nothing |= {"bits_per_dim", "rate", "ess_median", "khat_median", "khat_bad_fraction"}
    assert {name for name, value in numbers.items() if value is None} == nothing
    assert set(numbers["iwae"].values()) == {None}
    assert set(numbers["reasons"]) == nothing | {"iwae"}
    assert all("'z' is a point mass" in reason for reason in numbers["reasons"].values())
    assert log_weights(program.model, program.guide, x, 4).isnan().all()


def test_particles_are_scored_once() -> None:
    program, x = an_autoencoder()
    shapes = []
    program.likelihood.net.register_forward_hook(lambda module, inputs, output: shapes.append(inputs[0].shape))
    score(program.model, program.guide, x, 1000, chunk=10, seed=0)
    rows = [math.prod(shape[:-1]) for shape in shapes]
    assert max(rows) <= len(x)
    assert len(rows) <= 4  # the support check, two calls for the dependence on other images, the score


def test_point_mass_does_not_prevent_the_particle_layout() -> None:
    """In single precision different layouts never agree bit for bit, so that the density at the point would be zero."""
    program, x = an_autoencoder()
    program, x = program.float(), x.float()
    result = trace_particles(program.guide, x, 7)
    assert result.sites["z"]["value"].shape == (7, 30, UNITS)
    torch.testing.assert_close(result.deltas["z"].v, program.posterior.net(x).expand(7, 30, UNITS))


def test_point_mass_has_no_density_even_under_a_proper_prior() -> None:
    program, x = an_autoencoder()
    guide = program.guide

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(UNITS), 1.0).to_event(1))
            pyro.sample("x", program.likelihood(z), obs=x)

    scores = score(model, guide, x, 5)
    assert math.isnan(scores.rate.mean())
    assert math.isfinite(scores.distortion.mean())


def test_delta_with_the_density_of_a_draw_is_not_a_point_mass() -> None:
    """As in Pyro's own guides: drawn from the exact posterior, every log weight is log p(x)."""
    truth = LinearGaussian(UNITS)

    def guide(x: Tensor) -> None:
        posterior = dist.MultivariateNormal(truth.posterior_mean(x), scale_tril=truth.scale_tril)
        z = posterior.rsample()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(z, log_density=posterior.log_prob(z), event_dim=1))

    x = truth.simulate(5)
    weights = log_weights(truth.model, guide, x, 20, seed=0)
    torch.testing.assert_close(weights, truth.log_evidence(x).expand(20, 5))
    torch.testing.assert_close(ELBO().bounds(truth.model, guide, x)[1], truth.log_evidence(x))


def test_loss_has_a_rate_but_no_likelihood() -> None:
    truth = LinearGaussian(UNITS)

    class Loss(dist.Normal):
        normalized = False

        def expand(self, batch_shape: torch.Size, _instance: object = None) -> Loss:
            return Loss(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(UNITS), 1.0).to_event(1))
            loc = z @ truth.weight.T + truth.bias
            pyro.sample("x", Loss(loc, torch.full_like(loc, math.sqrt(truth.noise))).to_event(1), obs=x)

    x = truth.simulate(5)
    scores, proper = (score(m, truth.guide, x, 50, seed=0) for m in (model, truth.model))
    assert "not normalized" in scores.reason
    assert math.isnan(scores.elbo.mean())
    assert scores.rate == pytest.approx(proper.rate, rel=1e-9)
    assert scores.distortion == pytest.approx(proper.distortion, rel=1e-9)
    assert elbo_surgery(model, truth.guide, x, seed=0).rate == pytest.approx(
        elbo_surgery(truth.model, truth.guide, x, seed=0).rate
    )


def test_patience_uses_the_distortion() -> None:
    """Without an ELBO, the best epoch is that with the best reconstructions of validation images."""
    settings = config.Config(program="autoencoder", train_images=200, epochs=40, latent_dim=8, learning_rate=0.05)
    images = load_images(settings.resolve())
    program = programs.build(settings.resolve(), images.pixels)
    driver = SVI(program.model, program.guide, Optim(torch.optim.Adam, {"lr": 0.05}), ELBO())
    fit = Fit(driver, images.batches(50), 40, valid=images.split("valid"), patience=5)
    records = list(fit)
    distortions = [record.valid_distortion for record in records]
    assert all(record.elbo is None and record.valid_elbo is None for record in records)
    assert fit.best.epoch == min(range(len(distortions)), key=distortions.__getitem__)
    assert len(records) == min(40, fit.best.epoch + 6)
    distortion = validate(program.model, program.guide, Batch(images.split("valid")), fit.seed)[1]
    assert distortion == pytest.approx(min(distortions), rel=1e-9)


def test_run_has_no_density_and_reconstructs(tmp_path: Path) -> None:
    """Better than the mean image, whose cross-entropy is 27.3 nats; a second evaluation gives the same value."""
    flags = ["--program", "autoencoder", "--epochs", 60, "--learning-rate", 0.01, "--latent-dim", 8]
    result = inside("fit", *TINY, *flags, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    numbers = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert numbers["elbo"] is numbers["log_likelihood"] is numbers["rate"] is numbers["mutual_information"] is None
    assert numbers["distortion"] < 24
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["elbo"] is lines[-1]["valid_elbo"] is None
    assert lines[-1]["valid_distortion"] < lines[0]["valid_distortion"]
    figures = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert figures == {"learning_curve", "reconstructions", "khat"}
    assert inside("evaluate", tmp_path / "run").returncode == 0
    again = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text())
    assert again["distortion"] == pytest.approx(numbers["distortion"], rel=1e-6)
    assert again["squared_error"] == pytest.approx(numbers["squared_error"], rel=1e-6)


@pytest.mark.parametrize("flags", [("--prior", "mixture"), ("--posterior", "iaf")])
def test_flags_without_effect_on_an_autoencoder_are_rejected(
    flags: tuple[str, str], tmp_path: Path, refused: Callable[..., None]
) -> None:
    call = command("fit", *TINY, "--program", "autoencoder", *flags, "--out", tmp_path / "run")
    refused(call, flags[0], "has no effect with --program autoencoder")


@pytest.mark.parametrize("flags", [("--ais-temperatures", 5), ("--local-vi-steps", 5), ("--sbc-images", 5)])
def test_instruments_that_need_a_density_reject_an_autoencoder(
    flags: tuple[str, int], tmp_path: Path, refused: Callable[..., None]
) -> None:
    inside("fit", *TINY, "--program", "autoencoder", "--out", tmp_path / "run")
    refused(command("evaluate", tmp_path / "run", *flags), flags[0], "point mass")
