r"""Hierarchical VAE with two stochastic layers.

z2 ~ p(z2)             prior()
z1 | z2 ~ p(z1|z2)     generator(z2)
x | z1 ~ p(x|z1)       likelihood(z1)
z1 | x ~ q(z1|x)       posterior(x)
z2 | z1 ~ q(z2|z1)     top_posterior(z1)
"""

from __future__ import annotations

import pyro
from torch import Tensor, nn


class TwoLayerVAE(nn.Module):
    """Hierarchical VAE: the model is p(z2) p(z1|z2) p(x|z1), the guide is bottom-up, q(z1|x) q(z2|z1).

    Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016
    (https://arxiv.org/abs/1509.00519), the architecture with two stochastic layers.

    Args:
        prior: Module; ``prior()`` returns p(z2).
        generator: Module; ``generator(z2)`` returns p(z1|z2).
        likelihood: Module; ``likelihood(z1)`` returns p(x|z1), event shape (*pixels).
        posterior: Module; ``posterior(x)`` returns q(z1|x).
        top_posterior: Module; ``top_posterior(z1)`` returns q(z2|z1).
    """

    def __init__(
        self,
        prior: nn.Module,
        generator: nn.Module,
        likelihood: nn.Module,
        posterior: nn.Module,
        top_posterior: nn.Module,
    ) -> None:
        super().__init__()
        self.prior = prior
        self.generator = generator
        self.likelihood = likelihood
        self.posterior = posterior
        self.top_posterior = top_posterior

    def model(self, x: Tensor) -> None:
        """Sample z2, then z1, and observe the images `x`, shape (B, *pixels)."""
        pyro.module("two_layer", self)
        with pyro.plate("data", x.shape[0]):
            z2 = pyro.sample("z2", self.prior())
            z1 = pyro.sample("z1", self.generator(z2))
            pyro.sample("x", self.likelihood(z1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Sample z1 from the posterior of the images `x`, shape (B, *pixels), and z2 given z1."""
        pyro.module("two_layer", self)
        with pyro.plate("data", x.shape[0]):
            z1 = pyro.sample("z1", self.posterior(x))
            pyro.sample("z2", self.top_posterior(z1))
