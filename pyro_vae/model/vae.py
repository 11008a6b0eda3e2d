r"""The variational autoencoder as a Pyro program.

z ~ p(z)          prior()
x | z ~ p(x|z)    likelihood(z)
z | x ~ q(z|x)    posterior(x)
"""

from __future__ import annotations

import pyro
from torch import Tensor, nn


class VAE(nn.Module):
    """Generative process p(z) p(x|z) as a Pyro model, amortized posterior q(z|x) as its guide.

    Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014 (https://arxiv.org/abs/1312.6114).
    It runs under any Pyro inference, ``pyro.infer.SVI(vae.model, vae.guide, optim, Trace_ELBO())`` included.

    Args:
        prior: module; ``prior()`` is a distribution of event shape (D,).
        likelihood: module; ``likelihood(z)`` is a distribution of event shape (*pixels).
        posterior: module; ``posterior(x)`` is a distribution of event shape (D,).
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior

    def model(self, x: Tensor) -> None:
        """Generate z and observe the images x, (B, *pixels)."""
        pyro.module("vae", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Infer z from the images x, (B, *pixels)."""
        pyro.module("vae", self)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.posterior(x))
