"""Priors p(z): modules whose ``forward()`` returns a distribution over one latent vector, one file each."""

from pyro_vae.model.priors.mixture import GaussianMixture
from pyro_vae.model.priors.standard import StandardNormal

__all__ = ["GaussianMixture", "StandardNormal"]
