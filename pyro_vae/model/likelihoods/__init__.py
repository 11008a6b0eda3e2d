"""Likelihoods p(x|z): modules whose ``forward(z)`` returns a distribution over an image or a row of a table."""

from pyro_vae.model.likelihoods.base import Decoder, Likelihood, mean_logits
from pyro_vae.model.likelihoods.binary import Bernoulli, ContinuousBernoulli, CrossEntropy
from pyro_vae.model.likelihoods.counts import NegativeBinomial, Poisson
from pyro_vae.model.likelihoods.gaussian import Gaussian, IsotropicGaussian
from pyro_vae.model.likelihoods.levels import Categorical, LogisticMixture

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "CrossEntropy",
    "Decoder",
    "Gaussian",
    "IsotropicGaussian",
    "Likelihood",
    "LogisticMixture",
    "NegativeBinomial",
    "Poisson",
    "mean_logits",
]
