"""Training objectives, as Pyro ELBO objects that any `pyro.infer.SVI` accepts.

For an image x with z_1, ..., z_K ~ q(z|x) and w_k = p(x, z_k) / q(z_k|x), in nats,

    class            name              maximized
    ELBO             elbo              E[(1/K) sum_k log w_k]
    MeanFieldELBO    meanfield-elbo    E[log p(x|z)] - KL(q(z|x) || p(z)), the KL in closed form
    STL              stl               the ELBO, with a path-derivative gradient
    IWAE             iwae              E[log (1/K) sum_k w_k]
    DReG             dreg              the IWAE bound, with a doubly reparameterized gradient
    Renyi            renyi             E[log (1/K) sum_k w_k^(1 - alpha)] / (1 - alpha)
    BetaELBO         beta              E[log p(x|z)] - beta KL(q(z|x) || p(z))
    FreeBits         free-bits         E[log p(x|z)] - sum_u max(free_bits, KL of unit u)
    BetaTCVAE        beta-tcvae        ELBO - (beta - 1) KL(q(z) || prod_u q(z_u))
    WAE              wae-mmd           E[log p(x|z)] - mmd_weight MMD^2(q(z), p(z))

where q(z) is the aggregate posterior. The first six are lower bounds on log p(x). FreeBits, BetaTCVAE and WAE couple
the images of a batch. `name` is the value of --objective.
"""

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
