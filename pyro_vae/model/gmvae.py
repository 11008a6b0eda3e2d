r"""The VAE of a Gaussian mixture, its class a site of its own.

c ~ p(c)              prior.classes()
z | c ~ p(z|c)        prior.component(c)
x | z ~ p(x|z)        likelihood(z)
z | x ~ q(z|x)        posterior(x)
"""

from __future__ import annotations

import pyro
from torch import Tensor, nn

from pyro_vae.model.priors.mixture import GaussianMixture


class GMVAE(nn.Module):
    """Generative process p(c) p(z|c) p(x|z), whose guide leaves the class c out: it is summed out exactly.

    Its densities are those of a `VAE` with the same mixture as its prior; beside them, p(c|x) says to which class an
    image belongs (`evaluate.posterior_probs`). Dilokthanakul et al., "Deep Unsupervised Clustering with Gaussian
    Mixture Variational Autoencoders", 2016 (https://arxiv.org/abs/1611.02648), draw the class in the guide.

    Args:
        prior: mixture of C components over R^D.
        likelihood: module; ``likelihood(z)`` is a distribution of event shape (*pixels).
        posterior: module; ``posterior(x)`` is a distribution of event shape (D,).
    """

    def __init__(self, prior: GaussianMixture, likelihood: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior

    def model(self, x: Tensor) -> None:
        """Generate c and z and observe the images x, (B, *pixels)."""
        pyro.module("gmvae", self)
        with pyro.plate("data", x.shape[0]):
            c = pyro.sample("c", self.prior.classes(), infer={"enumerate": "parallel"})
            z = pyro.sample("z", self.prior.component(c))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Infer z from the images x, (B, *pixels)."""
        pyro.module("gmvae", self)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.posterior(x))
