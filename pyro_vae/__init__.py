r"""Variational autoencoders as probabilistic programs, and the honest measurement of how good they are.

The generative process p(z) p(x|z) is a Pyro model and the amortized posterior q(z|x) its guide. With
log w = log p(x, z) - log q(z|x) and z ~ q(z|x), Pyro's SVI maximises the ELBO, E[log w], or the IWAE bound,
E[log (1/K) sum_k w_k], and importance sampling estimates log p(x) = log E[w]:

    ELBO <= IWAE_K <= log p(x),    in nats per image.
"""

from pyro_vae.evaluate import log_weights, score
from pyro_vae.infer import ELBO, IWAE, SVI, Fit, Optim
from pyro_vae.model import VAE
from pyro_vae.trace import Batch

__version__ = "0.1.0"

__all__ = ["ELBO", "IWAE", "SVI", "VAE", "Batch", "Fit", "Optim", "log_weights", "score"]
