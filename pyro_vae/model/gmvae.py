r"""VAE with a Gaussian mixture prior, whose component is a separate discrete site.

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
    """Gaussian mixture VAE: the model is p(c) p(z|c) p(x|z), the guide is q(z|x).

    The guide omits the class c, which is summed out exactly. Densities therefore equal those of a `VAE` with the same
    mixture as its prior. In addition, `evaluate.posterior_probs` returns p(c|x), which clusters the images.
    Dilokthanakul et al., "Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders", 2016
    (https://arxiv.org/abs/1611.02648), sample the class in the guide instead.

    Args:
        prior: Mixture of C components over R^D.
        likelihood: Module; ``likelihood(z)`` returns p(x|z), event shape (*pixels).
        posterior: Module; ``posterior(x)`` returns q(z|x), event shape (D,).
    """

    def __init__(self, prior: GaussianMixture, likelihood: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior

    def model(self, x: Tensor) -> None:
        """Sample c and z from the prior, and observe the images `x`, shape (B, *pixels)."""
        pyro.module("gmvae", self)
        with pyro.plate("data", x.shape[0]):
            c = pyro.sample("c", self.prior.classes(), infer={"enumerate": "parallel"})
            z = pyro.sample("z", self.prior.component(c))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Sample z from the posterior of the images `x`, shape (B, *pixels)."""
        pyro.module("gmvae", self)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.posterior(x))
