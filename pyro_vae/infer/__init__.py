"""How a program is fitted: objectives, the SVI driver, the loop, and checkpoints."""

from pyro_vae.infer import checkpoint, schedules
from pyro_vae.infer.fit import Epoch, Fit
from pyro_vae.infer.objectives import ELBO, IWAE, Objective
from pyro_vae.infer.parameters import load_parameters
from pyro_vae.infer.svi import SVI, NonFiniteError, Optim

__all__ = [
    "ELBO",
    "IWAE",
    "SVI",
    "Epoch",
    "Fit",
    "NonFiniteError",
    "Objective",
    "Optim",
    "checkpoint",
    "load_parameters",
    "schedules",
]
