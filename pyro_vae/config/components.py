r"""Components by name, as offered by the flags. Each is built from the arguments in its own signature.

To add a prior, write its module in model/priors/ and add it to `PRIORS`; likewise for other components. The tables are
plain dictionaries, so that users can register components at run time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.infer import objectives
from pyro_vae.model import likelihoods, nets, posteriors
from pyro_vae.model.nets.pixelcnn import ConditionalPixelCNN
from pyro_vae.model.priors import flat, flow, gaussian, laplace, lars, mixture, standard, student_t, vamp


def argument_names(build: Callable[..., Any]) -> set[str]:
    """Return the names of the arguments that a component takes, except those already set by a `partial`."""
    preset = build.keywords if isinstance(build, partial) else {}
    return set(inspect.signature(build).parameters) - preset.keys()


def construct(build: Callable[..., Any], **available: Any) -> Any:
    """Build a component from those of the available arguments that its signature names."""
    names = argument_names(build)
    return build(**{name: value for name, value in available.items() if name in names})


# A prior may take latent_dim, the posterior of its program, and the training images, uint8 (N, *pixels).
PRIORS: dict[str, Callable[..., nn.Module]] = {
    "standard": standard.StandardNormal,
    "gaussian": gaussian.DiagonalGaussian,
    "student-t": student_t.StudentT,
    "laplace": laplace.Laplace,
    "mixture": mixture.GaussianMixture,
    "vamp": vamp.from_images,
    "nsf": flow.nsf,
    "realnvp": flow.realnvp,
    "maf": flow.maf,
    "lars": lars.LARS,
    "flat": flat.FlatPrior,
}
# A posterior takes the builder of its encoder, a function of the number of outputs, and the latent dimension.
POSTERIORS: dict[str, Callable[[posteriors.Encoder, int], nn.Module]] = {
    "meanfield": posteriors.MeanField,
    "full-rank": posteriors.FullRank,
    "low-rank": posteriors.LowRank,
    "iaf": posteriors.IAF,
    "mixture": posteriors.Mixture,
    "point-mass": posteriors.PointMass,
}


def pixelcnn_channels(hidden_dim: int) -> int:
    """Return the number of channels of a PixelCNN for a width of the hidden layers: 16 for 200 units."""
    return max(1, hidden_dim // 12)


def _pixelcnn(decoder: likelihoods.Decoder, images: Tensor, hidden_dim: int) -> nn.Module:
    return ConditionalPixelCNN(decoder, images, channels=pixelcnn_channels(hidden_dim))


# A likelihood may take the builder of its decoder, a function of the number of channels, the images, and hidden_dim.
LIKELIHOODS: dict[str, Callable[..., nn.Module]] = {
    "bernoulli": likelihoods.Bernoulli,
    "cross-entropy": likelihoods.CrossEntropy,
    "continuous-bernoulli": likelihoods.ContinuousBernoulli,
    "gaussian": likelihoods.Gaussian,
    "isotropic-gaussian": likelihoods.IsotropicGaussian,
    "logistic-mixture": likelihoods.LogisticMixture,
    "categorical": likelihoods.Categorical,
    "pixelcnn": _pixelcnn,
    "poisson": likelihoods.Poisson,
    "negative-binomial": likelihoods.NegativeBinomial,
}
# A network family takes the shape of an image and the width of the hidden layers, and may take the flags in
# `NET_FLAGS`, for which it has its own defaults. Setting a flag that it does not take is an error.
NETS: dict[str, Callable[..., nets.NetworkFamily]] = {
    "linear": partial(nets.Dense, depth=0),
    "mlp": nets.Dense,
    "relu": partial(nets.Dense, layer=nets.relu),
    "gated": partial(nets.Dense, layer=nets.Gated),
    "funnel": partial(nets.Dense, layer=nets.relu, shrink=2),
    "conv": nets.Conv,
    "resnet": nets.ResNet,
}
NET_FLAGS = ("depth", "width")
# An objective may take num_particles, num_images (of the training split), and the arguments in `OBJECTIVE_FLAGS`.
# Setting a flag that it does not take is an error.
OBJECTIVES: dict[str, Callable[..., objectives.Objective]] = {
    "elbo": objectives.ELBO,
    "meanfield-elbo": objectives.MeanFieldELBO,
    "iwae": objectives.IWAE,
    "renyi": objectives.Renyi,
    "stl": objectives.STL,
    "dreg": objectives.DReG,
    "beta": objectives.BetaELBO,
    "free-bits": objectives.FreeBits,
    "beta-tcvae": objectives.BetaTCVAE,
    "wae-mmd": objectives.WAE,
}
# Flags, and the arguments of objectives that they set.
OBJECTIVE_FLAGS = {
    "beta": "beta",
    "warmup_epochs": "warmup_steps",
    "free_bits": "free_bits",
    "mmd_weight": "mmd_weight",
}
# Optimizers, and their arguments in addition to the learning rate.
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {"fused": True}),
    "adamax": (torch.optim.Adamax, {"foreach": True}),
}
