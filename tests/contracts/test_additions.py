"""Extending the package from outside: a class and a table row each. test_evaluate.py has the same for instruments."""

from __future__ import annotations

from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.config import Config, catalog, components, presets, programs
from pyro_vae.config.run_names import run_name
from pyro_vae.errors import UserError
from pyro_vae.infer.objectives.particles import Particles

pytestmark = pytest.mark.host


class Scaled(pv.ELBO):
    """The ELBO times a factor, an option that only this objective has."""

    def __init__(self, num_particles: int = 1, factor: float = 1.0) -> None:
        super().__init__(num_particles)
        self.factor = factor

    def per_image(self, particles: Particles) -> Tensor:
        return self.factor * super().per_image(particles)


def squares(root: Path, download: bool) -> pv.data.Images:
    """Forty images of a white square on black, in four sizes."""
    images = torch.zeros(40, 6, 6, dtype=torch.uint8)
    for index, image in enumerate(images):
        image[: 2 + index % 4, : 2 + index % 4] = 255
    return pv.data.Images("squares", images, images[:8], images[:8])


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setitem(pv.data.DATASETS, "squares", pv.data.Dataset(squares, epochs=7, num_samples=11))
    return Config(data="squares", device="cpu", latent_dim=2, hidden_dim=8, batch_size=20)


def test_data_set_is_a_function_and_a_row(tiny: Config) -> None:
    """The row sets the defaults of a fit, and a program built for the data set observes its pixels."""
    settings = tiny.resolve()
    assert (settings.epochs, settings.num_samples) == (7, 11)
    run = pv.runs.prepare(settings)
    assert torch.equal(run.observed("test"), squares(Path(), False).test / 255)
    scores = pv.score(run.program.model, run.program.guide, run.observed("test"), 11, seed=0)
    assert (scores.elbo <= scores.log_likelihood).all()


def test_objective_with_an_option_is_a_class_and_two_rows(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option is the flag --beta, passed under the argument's own name; other objectives reject the flag."""
    monkeypatch.setitem(components.OBJECTIVES, "scaled", Scaled)
    monkeypatch.setitem(components.OBJECTIVE_FLAGS, "beta", "factor")
    objective = programs.build_objective(Config(objective="scaled", beta=3.0), 100)
    assert isinstance(objective, Scaled)
    assert objective.factor == 3.0
    with pytest.raises(UserError, match="--beta applies only to --objective scaled, not to elbo"):
        programs.check_flags(Config(objective="elbo", beta=3.0))
    with pytest.raises(UserError, match="--free-bits applies only to --objective free-bits, not to scaled"):
        programs.check_flags(Config(objective="scaled", free_bits=3.0))


def test_components_are_classes_and_rows(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cauchy(nn.Module):
        def __init__(self, latent_dim: int) -> None:
            super().__init__()
            self.latent_dim = latent_dim

        def forward(self) -> dist.Distribution:
            return dist.Cauchy(torch.zeros(self.latent_dim), 1.0).to_event(1)

    class Halved(pv.likelihoods.Bernoulli):
        def forward(self, z: Tensor) -> dist.Distribution:
            return super().forward(z / 2)

    class Wide(pv.posteriors.MeanField):
        def forward(self, x: Tensor) -> dist.Distribution:
            q = super().forward(x).base_dist
            return dist.Normal(q.loc, 10 * q.scale).to_event(1)

    monkeypatch.setitem(components.PRIORS, "cauchy", Cauchy)
    monkeypatch.setitem(components.LIKELIHOODS, "halved", Halved)
    monkeypatch.setitem(components.POSTERIORS, "wide", Wide)
    settings = Config(**{**vars(tiny), "prior": "cauchy", "likelihood": "halved", "posterior": "wide"}).resolve()
    program = pv.runs.prepare(settings).program
    assert [type(part) for part in (program.prior, program.likelihood, program.posterior)] == [Cauchy, Halved, Wide]


def test_program_is_a_function_whose_arguments_are_its_flags(tiny: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed_prior(latent_dim: int, posterior: catalog.Builder, likelihood: catalog.Builder) -> nn.Module:
        return pv.VAE(pv.priors.StudentT(latent_dim), likelihood(latent_dim), posterior(latent_dim))

    monkeypatch.setitem(catalog.PROGRAMS, "fixed-prior", fixed_prior)
    monkeypatch.setitem(presets.PRESETS, "blurred", {"program": "fixed-prior", "likelihood": "gaussian"})
    monkeypatch.setattr(programs, "NAMES", (*programs.NAMES, "fixed-prior", "blurred"))
    with pytest.raises(UserError, match="--prior has no effect with --program fixed-prior"):
        programs.check_flags(Config(program="fixed-prior", prior="mixture"))
    with pytest.raises(UserError, match="--likelihood has no effect with --program blurred"):
        programs.check_flags(Config(program="blurred", likelihood="categorical"))
    run = pv.runs.prepare(Config(**{**vars(tiny), "program": "blurred", "binarize": "none"}).resolve())
    assert isinstance(run.program.prior, pv.priors.StudentT)
    assert run.density  # inferred from the program; its pixels are dequantized


@pytest.mark.parametrize("objective", ["elbo", "wae-mmd"])
def test_autoencoder_equals_a_vae_with_matching_components(objective: str, tiny: Config) -> None:
    """Bit-identical, with a prior if the objective matches the codes to one."""
    chosen = {"posterior": "point-mass", "prior": "standard" if objective == "wae-mmd" else "flat"}
    runs = []
    for fields in ({"program": "autoencoder"}, chosen):
        pyro.set_rng_seed(0)
        run = pv.runs.prepare(Config(**{**vars(tiny), "objective": objective, **fields}).resolve())
        runs.append((run.program.state_dict(), type(run.program.prior)))
    assert runs[0][1] is runs[1][1] is (pv.priors.StandardNormal if objective == "wae-mmd" else pv.priors.FlatPrior)
    assert runs[0][0].keys() == runs[1][0].keys()
    assert all(torch.equal(value, runs[1][0][name]) for name, value in runs[0][0].items())


LONG = "digits-standard-elbo-iaf-categorical-conv-binarize-none-latent8"


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "digits-standard-elbo"),
        ({"prior": "mixture", "objective": "iwae", "num_particles": 5}, "digits-mixture-iwae5"),
        ({"program": "autoencoder"}, "digits-autoencoder-elbo"),
        ({"program": "autoencoder", "objective": "wae-mmd"}, "digits-autoencoder-standard-wae-mmd"),
        ({"program": "pixelcnn"}, "digits-pixelcnn"),
        ({"program": "gmvae"}, "digits-gmvae-elbo"),
        ({"program": "somewhere/mine.py:factory"}, "digits-mine-factory-standard-elbo"),
        ({"seed": 3}, "digits-standard-elbo-seed3"),
        ({"net": "conv", "likelihood": "categorical", "binarize": "none", "posterior": "iaf", "latent_dim": 8}, LONG),
    ],
)
def test_run_is_named_after_the_flags_of_its_program(fields: dict[str, object], name: str) -> None:
    assert run_name(Config(**fields)) == name
