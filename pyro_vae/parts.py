r"""The parts by name: what the flags offer, and the program that is built of them.

To offer one more prior, write its module under model/priors/ and name it in `PRIORS`; likewise for the others. The
tables are plain dictionaries, so a part can be added from outside.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_vae.data import Images
from pyro_vae.infer import coupled, estimators, objectives
from pyro_vae.model import VAE, TwoLayerVAE, convnets, likelihoods, nets, posteriors
from pyro_vae.model.priors import flow, gaussian, laplace, lars, mixture, standard, student_t, vamp

if TYPE_CHECKING:
    from pyro_vae.config import Config


@dataclass(frozen=True)
class Blueprint:
    """What a prior may be built from, besides the posterior of its program."""

    latent_dim: int
    images: Tensor
    """Training images, uint8 (N, *pixels)."""

    def some_images(self, number: int) -> Tensor:
        """Return training images drawn at random, in [0, 1]."""
        return self.images[torch.randperm(len(self.images))[:number]].cpu() / 255


# A prior is built from the blueprint and the posterior.
PRIORS: dict[str, Callable[[Blueprint, nn.Module], nn.Module]] = {
    "standard": lambda plan, posterior: standard.StandardNormal(plan.latent_dim),
    "gaussian": lambda plan, posterior: gaussian.DiagonalGaussian(plan.latent_dim),
    "student-t": lambda plan, posterior: student_t.StudentT(plan.latent_dim),
    "laplace": lambda plan, posterior: laplace.Laplace(plan.latent_dim),
    "mixture": lambda plan, posterior: mixture.GaussianMixture(plan.latent_dim),
    "vamp": lambda plan, posterior: vamp.VampPrior(posterior, plan.some_images(200)),
    "nsf": lambda plan, posterior: flow.nsf(plan.latent_dim),
    "realnvp": lambda plan, posterior: flow.realnvp(plan.latent_dim),
    "maf": lambda plan, posterior: flow.maf(plan.latent_dim),
    "lars": lambda plan, posterior: lars.LARS(plan.latent_dim),
}
# A posterior is built from its encoder, by number of outputs, and the latent dimension.
POSTERIORS: dict[str, Callable[[posteriors.Encoder, int], nn.Module]] = {
    "meanfield": posteriors.MeanField,
    "full-rank": posteriors.FullRank,
    "low-rank": posteriors.LowRank,
    "iaf": posteriors.InverseAutoregressive,
    "mixture": posteriors.Mixture,
}
# A likelihood is built from its decoder, by number of channels, and the training images.
LIKELIHOODS: dict[str, Callable[[likelihoods.Decoder, Tensor], nn.Module]] = {
    "bernoulli": likelihoods.Bernoulli,
    "continuous-bernoulli": likelihoods.ContinuousBernoulli,
    "gaussian": likelihoods.Gaussian,
    "logistic-mixture": likelihoods.LogisticMixture,
    "categorical": likelihoods.Categorical,
}
# A kind of network is built from the shape of an image and the units of a hidden layer.
NETS: dict[str, Callable[[tuple[int, ...], int], nets.Nets]] = {
    "linear": partial(nets.Dense, depth=0),
    "mlp": nets.Dense,
    "relu": partial(nets.Dense, layer=nets.relu),
    "gated": partial(nets.Dense, layer=nets.Gated),
    "conv": convnets.Conv,
    "resnet": partial(convnets.Conv, blocks=2),
}
# An objective is built from the configuration and the number of training images.
OBJECTIVES: dict[str, Callable[[Config, int], objectives.Objective]] = {
    "elbo": lambda c, n: objectives.ELBO(c.num_particles),
    "meanfield-elbo": lambda c, n: objectives.MeanFieldELBO(c.num_particles),
    "iwae": lambda c, n: objectives.IWAE(c.num_particles),
    "renyi": lambda c, n: objectives.Renyi(c.num_particles),
    "stl": lambda c, n: estimators.STL(c.num_particles),
    "dreg": lambda c, n: estimators.DReG(c.num_particles),
    "beta": lambda c, n: objectives.BetaELBO(c.num_particles, c.beta, c.warmup_epochs * c.epoch_steps(n)),
    "free-bits": lambda c, n: coupled.FreeBits(c.num_particles, c.free_bits),
    "beta-tcvae": lambda c, n: coupled.BetaTCVAE(
        c.num_particles, c.beta, c.warmup_epochs * c.epoch_steps(n), num_images=n
    ),
}

# Flags that only some objectives read.
_FLAGS_OF = {"beta": ("beta", "beta-tcvae"), "warmup_epochs": ("beta", "beta-tcvae"), "free_bits": ("free-bits",)}


def flag(name: str) -> str:
    """Return the flag of a field of the configuration."""
    return "--" + name.replace("_", "-")


def unread(config: Config) -> dict[str, Any]:
    """Return the fields that the objective does not read, with their defaults."""
    return {name: getattr(type(config), name) for name, of in _FLAGS_OF.items() if config.objective not in of}


def build_objective(config: Config, num_images: int) -> objectives.Objective:
    """Build the objective of a configuration for so many training images.

    Raises:
        ValueError: a flag is set that the objective does not read.
    """
    for name, default in unread(config).items():
        if getattr(config, name) != default:
            of = " and ".join(_FLAGS_OF[name])
            raise ValueError(f"{flag(name)} is of --objective {of}, not of {config.objective}.")
    return OBJECTIVES[config.objective](config, num_images)


def build(config: Config, images: Images) -> Any:
    """Build the program of a configuration for the images it will see, on the device of the configuration.

    Random initial weights come from torch's global stream.

    Returns:
        An object with ``model(x)`` and ``guide(x)``.

    Raises:
        ValueError: the file of the program, its factory, or what that returns is not there.
    """
    if config.program in PROGRAMS:
        return PROGRAMS[config.program](config, images).to(config.device)
    program = _factory(config.program)(config, images)
    for part in ("model", "guide"):
        if not callable(getattr(program, part, None)):
            raise ValueError(f"--program {config.program}: what the factory returns has no {part}(x).")
    return program.to(config.device) if isinstance(program, nn.Module) else program


def _factory(program: str) -> Callable[[Config, Images], Any]:
    path, _, name = program.rpartition(":")
    spec = importlib.util.spec_from_file_location("program", path) if Path(path).is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(f"--program {program}: no Python file {path!r}; write path/to/file.py:factory.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"--program {program}: {path} defines no function {name!r}.")
    return getattr(module, name)


def _posterior(config: Config, images: Images, latent_dim: int) -> nn.Module:
    family = NETS[config.net](images.pixel_shape, config.hidden_dim)
    return POSTERIORS[config.posterior](family.encoder, latent_dim)


def _likelihood(config: Config, images: Images, latent_dim: int) -> nn.Module:
    family = NETS[config.net](images.pixel_shape, config.hidden_dim)
    return LIKELIHOODS[config.likelihood](partial(family.decoder, latent_dim), images.train)


def _vae(config: Config, images: Images) -> nn.Module:
    posterior = _posterior(config, images, config.latent_dim)
    likelihood = _likelihood(config, images, config.latent_dim)
    prior = PRIORS[config.prior](Blueprint(config.latent_dim, images.train), posterior)
    return VAE(prior, likelihood, posterior)


def _two_layer(config: Config, images: Images) -> nn.Module:
    if config.prior == "vamp":
        raise ValueError(
            "A VampPrior is of a posterior of images, and z2 of two-layer has none: choose another --prior."
        )
    # Burda et al.: twice as many units in z1 as in z2, and half as many hidden ones between them as below.
    top, bottom, hidden = config.latent_dim, 2 * config.latent_dim, [max(1, config.hidden_dim // 2)] * 2
    return TwoLayerVAE(
        prior=PRIORS[config.prior](Blueprint(top, images.train), nn.Identity()),
        generator=posteriors.MeanField(lambda outputs: nets.MLP([top, *hidden, outputs]), bottom),
        likelihood=_likelihood(config, images, bottom),
        posterior=_posterior(config, images, bottom),
        top_posterior=POSTERIORS[config.posterior](lambda outputs: nets.MLP([bottom, *hidden, outputs]), top),
    )


PROGRAMS: dict[str, Callable[[Config, Images], nn.Module]] = {"vae": _vae, "two-layer": _two_layer}
