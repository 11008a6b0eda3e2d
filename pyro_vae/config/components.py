r"""The parts by name: what the flags offer.

To offer one more prior, write its module under model/priors/ and name it in `PRIORS`; likewise for the others. The
tables are plain dictionaries, so a part can be added from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pyro_vae.infer import objectives
from pyro_vae.infer.objectives import coupled, estimators, wae
from pyro_vae.model import likelihoods, nets, posteriors
from pyro_vae.model.priors import flow, gaussian, laplace, lars, mixture, standard, student_t, vamp


@dataclass(frozen=True)
class Blueprint:
    """What a prior may be built from, besides the posterior of its program."""

    latent_dim: int
    images: Tensor
    """Training images, uint8 (N, *pixels)."""

    def some_images(self, number: int) -> Tensor:
        """Return training images drawn at random, in [0, 1]."""
        return self.images[torch.randperm(len(self.images))[:number]].cpu() / 255


@dataclass(frozen=True)
class Course:
    """What an objective may be built from: how the fit will go."""

    num_particles: int
    num_images: int
    """Training images."""
    beta: float
    warmup_steps: int
    free_bits: float
    mmd_weight: float


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
    "cross-entropy": likelihoods.CrossEntropy,
    "continuous-bernoulli": likelihoods.ContinuousBernoulli,
    "gaussian": likelihoods.Gaussian,
    "isotropic-gaussian": likelihoods.IsotropicGaussian,
    "logistic-mixture": likelihoods.LogisticMixture,
    "categorical": likelihoods.Categorical,
}
# A kind of network is built from the shape of an image and the units of a hidden layer.
NETS: dict[str, Callable[[tuple[int, ...], int], nets.Nets]] = {
    "linear": partial(nets.Dense, depth=0),
    "mlp": nets.Dense,
    "relu": partial(nets.Dense, layer=nets.relu),
    "gated": partial(nets.Dense, layer=nets.Gated),
    "funnel": partial(nets.Dense, layer=nets.relu, narrowing=2),
    "conv": nets.Conv,
    "resnet": partial(nets.Conv, blocks=2),
}
# An objective is built from the course of the fit.
OBJECTIVES: dict[str, Callable[[Course], objectives.Objective]] = {
    "elbo": lambda c: objectives.ELBO(c.num_particles),
    "meanfield-elbo": lambda c: objectives.MeanFieldELBO(c.num_particles),
    "iwae": lambda c: objectives.IWAE(c.num_particles),
    "renyi": lambda c: objectives.Renyi(c.num_particles),
    "stl": lambda c: estimators.STL(c.num_particles),
    "dreg": lambda c: estimators.DReG(c.num_particles),
    "beta": lambda c: objectives.BetaELBO(c.num_particles, c.beta, c.warmup_steps),
    "free-bits": lambda c: coupled.FreeBits(c.num_particles, c.free_bits),
    "beta-tcvae": lambda c: coupled.BetaTCVAE(c.num_particles, c.beta, c.warmup_steps, num_images=c.num_images),
    "wae-mmd": lambda c: wae.WAE(c.num_particles, c.mmd_weight),
}
