"""Priors p(z): modules whose ``forward()`` returns a distribution, batch shape (), event shape (D,). One file each."""

from pyro_vae.model.priors.flat import FlatPrior
from pyro_vae.model.priors.flow import Flow, maf, nsf, realnvp
from pyro_vae.model.priors.gaussian import DiagonalGaussian
from pyro_vae.model.priors.laplace import Laplace
from pyro_vae.model.priors.lars import LARS
from pyro_vae.model.priors.mixture import GaussianMixture
from pyro_vae.model.priors.standard import StandardNormal
from pyro_vae.model.priors.student_t import StudentT
from pyro_vae.model.priors.vamp import VampPrior

__all__ = [
    "LARS",
    "DiagonalGaussian",
    "FlatPrior",
    "Flow",
    "GaussianMixture",
    "Laplace",
    "StandardNormal",
    "StudentT",
    "VampPrior",
    "maf",
    "nsf",
    "realnvp",
]
