"""Training of programs: objectives, the SVI driver, recorded steps and the loop over epochs."""

from pyro_vae.infer import schedules
from pyro_vae.infer.epochs import Epoch
from pyro_vae.infer.fit import Fit
from pyro_vae.infer.many import FitMany
from pyro_vae.infer.objectives import (
    ELBO,
    IWAE,
    STL,
    WAE,
    BetaELBO,
    BetaTCVAE,
    DReG,
    FreeBits,
    MeanFieldELBO,
    Objective,
    Renyi,
    mmd,
)
from pyro_vae.infer.optim import Optim
from pyro_vae.infer.parameters import load_program_state
from pyro_vae.infer.rehearsal import rehearse_last_batch
from pyro_vae.infer.sharded_svi import ShardedSVI
from pyro_vae.infer.svi import SVI

__all__ = [
    "ELBO",
    "IWAE",
    "STL",
    "SVI",
    "WAE",
    "BetaELBO",
    "BetaTCVAE",
    "DReG",
    "Epoch",
    "Fit",
    "FitMany",
    "FreeBits",
    "MeanFieldELBO",
    "Objective",
    "Optim",
    "Renyi",
    "ShardedSVI",
    "load_program_state",
    "mmd",
    "rehearse_last_batch",
    "schedules",
]
