r"""The parts by name: what the flags offer, and the program that is built of them.

To offer one more prior, write its module under model/priors/ and name it in `PRIORS`; likewise for the others. The
tables are plain dictionaries, so a part can be added from outside.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_vae.data import Images
from pyro_vae.infer import estimators, objectives
from pyro_vae.model import VAE, TwoLayerVAE, likelihoods, nets, posteriors
from pyro_vae.model.priors import flow, gaussian, laplace, mixture, standard, student_t, vamp

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
}
POSTERIORS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "meanfield": posteriors.MeanField,
}
# Likelihoods with the number of parameters that their net gives for each pixel.
LIKELIHOODS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "bernoulli": (likelihoods.Bernoulli, 1),
    "gaussian": (likelihoods.Gaussian, 2),
}
NETS: dict[str, Callable[..., nets.MLP]] = {
    "mlp": nets.MLP,
}
# An objective is built from the configuration and the number of steps in an epoch.
OBJECTIVES: dict[str, Callable[[Config, int], objectives.Objective]] = {
    "elbo": lambda c, steps: objectives.ELBO(c.num_particles),
    "meanfield-elbo": lambda c, steps: objectives.MeanFieldELBO(c.num_particles),
    "iwae": lambda c, steps: objectives.IWAE(c.num_particles),
    "renyi": lambda c, steps: objectives.Renyi(c.num_particles),
    "stl": lambda c, steps: estimators.STL(c.num_particles),
    "dreg": lambda c, steps: estimators.DReG(c.num_particles),
    "beta": lambda c, steps: objectives.BetaELBO(c.num_particles, c.beta, c.warmup_epochs * steps),
}


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


def _likelihood(config: Config, images: Images, latent_dim: int) -> nn.Module:
    part, per_pixel = LIKELIHOODS[config.likelihood]
    hidden = [config.hidden_dim] * 2
    decoder = NETS[config.net]([latent_dim, *hidden, per_pixel * math.prod(images.pixel_shape)])
    return part(decoder, images.pixel_shape, images.train.float().mean(0).cpu() / 255)


def _posterior(config: Config, images: Images, latent_dim: int) -> nn.Module:
    hidden = [config.hidden_dim] * 2
    encoder = NETS[config.net]([math.prod(images.pixel_shape), *hidden, 2 * latent_dim])
    return POSTERIORS[config.posterior](nn.Sequential(nets.Flatten(images.pixel_shape), encoder))


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
        generator=posteriors.MeanField(nets.MLP([top, *hidden, 2 * bottom])),
        likelihood=_likelihood(config, images, bottom),
        posterior=_posterior(config, images, bottom),
        top_posterior=posteriors.MeanField(nets.MLP([bottom, *hidden, 2 * top])),
    )


PROGRAMS: dict[str, Callable[[Config, Images], nn.Module]] = {"vae": _vae, "two-layer": _two_layer}
