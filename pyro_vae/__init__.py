r"""Variational autoencoders as probabilistic programs, and trustworthy measurement of their likelihoods.

The generative process p(z) p(x|z) is a Pyro model, and the amortized posterior q(z|x) is its guide. With
log w = log p(x, z) - log q(z|x) and z ~ q(z|x), Pyro's SVI maximizes the ELBO, E[log w], or the IWAE bound over K
particles, E[log (1/K) sum_k w_k]. Importance sampling estimates log p(x) = log E[w]. The bounds are ordered:

    ELBO <= IWAE_K <= log p(x),    in nats per image.
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from pyro_vae import config, data, evaluate, infer, model, runs, trace
from pyro_vae.evaluate import (
    Scores,
    ais,
    bdmc,
    impute,
    log_weights,
    per_image_elbos,
    posterior_probs,
    psis,
    score,
)
from pyro_vae.infer import (
    ELBO,
    IWAE,
    STL,
    SVI,
    WAE,
    BetaELBO,
    BetaTCVAE,
    DReG,
    Fit,
    FitMany,
    FreeBits,
    MeanFieldELBO,
    Optim,
    Renyi,
)
from pyro_vae.model import (
    CVAE,
    GMVAE,
    M2,
    VAE,
    DensityModel,
    TwoLayerVAE,
    likelihoods,
    nets,
    posteriors,
    priors,
)
from pyro_vae.runs import load_run
from pyro_vae.trace import Batch

if TYPE_CHECKING:
    from pyro_vae.estimator import VAEEstimator

__version__ = _version("pyro_vae")

__all__ = [
    "CVAE",
    "ELBO",
    "GMVAE",
    "IWAE",
    "M2",
    "STL",
    "SVI",
    "VAE",
    "WAE",
    "Batch",
    "BetaELBO",
    "BetaTCVAE",
    "DReG",
    "DensityModel",
    "Fit",
    "FitMany",
    "FreeBits",
    "MeanFieldELBO",
    "Optim",
    "Renyi",
    "Scores",
    "TwoLayerVAE",
    "VAEEstimator",
    "ais",
    "bdmc",
    "config",
    "data",
    "evaluate",
    "impute",
    "infer",
    "likelihoods",
    "load_run",
    "log_weights",
    "model",
    "nets",
    "per_image_elbos",
    "posterior_probs",
    "posteriors",
    "priors",
    "psis",
    "runs",
    "score",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name == "VAEEstimator":  # scikit-learn is imported only by those who use it: that takes half a second
        from pyro_vae.estimator import VAEEstimator

        return VAEEstimator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
