"""How a program is fitted: objectives, the SVI driver, the loop, and checkpoints."""

from pyro_vae.infer import checkpoint, schedules
from pyro_vae.infer.coupled import BetaTCVAE, FreeBits
from pyro_vae.infer.durable import durably
from pyro_vae.infer.epochs import Epoch
from pyro_vae.infer.estimators import STL, DReG
from pyro_vae.infer.fit import BatchMemoryError, Fit
from pyro_vae.infer.history import History
from pyro_vae.infer.objectives import ELBO, IWAE, BetaELBO, MeanFieldELBO, Objective, Renyi
from pyro_vae.infer.optim import Optim
from pyro_vae.infer.parameters import load_parameters
from pyro_vae.infer.svi import SVI, NonFiniteError
from pyro_vae.infer.wasserstein import WAE, mmd

__all__ = [
    "ELBO",
    "IWAE",
    "STL",
    "SVI",
    "WAE",
    "BatchMemoryError",
    "BetaELBO",
    "BetaTCVAE",
    "DReG",
    "Epoch",
    "Fit",
    "FreeBits",
    "History",
    "MeanFieldELBO",
    "NonFiniteError",
    "Objective",
    "Optim",
    "Renyi",
    "checkpoint",
    "durably",
    "load_parameters",
    "mmd",
    "schedules",
]
