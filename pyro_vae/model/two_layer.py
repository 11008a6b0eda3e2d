r"""The program of two stochastic layers.

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
    """A hierarchical program whose guide climbs from x to z1 to z2.

    Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016
    (https://arxiv.org/abs/1509.00519), the network with two stochastic layers.

    Args:
        prior: module; ``prior()`` is a distribution of z2.
        generator: module; ``generator(z2)`` is a distribution of z1.
        likelihood: module; ``likelihood(z1)`` is a distribution of x.
        posterior: module; ``posterior(x)`` is a distribution of z1.
        top_posterior: module; ``top_posterior(z1)`` is a distribution of z2.
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
        """Generate z2, then z1, and observe the images x, (B, *pixels)."""
        pyro.module("two_layer", self)
        with pyro.plate("data", x.shape[0]):
            z2 = pyro.sample("z2", self.prior())
            z1 = pyro.sample("z1", self.generator(z2))
            pyro.sample("x", self.likelihood(z1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Infer z1 from the images x, (B, *pixels), and z2 from z1."""
        pyro.module("two_layer", self)
        with pyro.plate("data", x.shape[0]):
            z1 = pyro.sample("z1", self.posterior(x))
            pyro.sample("z2", self.top_posterior(z1))
