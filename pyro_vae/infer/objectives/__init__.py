"""What is maximized, one file for each kind, as Pyro ELBO objects that any `pyro.infer.SVI` takes."""

from pyro_vae.infer.objectives.bounds import ELBO, IWAE, BetaELBO, MeanFieldELBO, Renyi
from pyro_vae.infer.objectives.coupled import BetaTCVAE, FreeBits
from pyro_vae.infer.objectives.estimators import STL, DReG
from pyro_vae.infer.objectives.objective import Objective, require_nonnegative
from pyro_vae.infer.objectives.particles import draw_particles
from pyro_vae.infer.objectives.wae import WAE, mmd

__all__ = [
    "ELBO",
    "IWAE",
    "STL",
    "WAE",
    "BetaELBO",
    "BetaTCVAE",
    "DReG",
    "FreeBits",
    "MeanFieldELBO",
    "Objective",
    "Renyi",
    "draw_particles",
    "mmd",
    "require_nonnegative",
]
