r"""The variational autoencoder as a Pyro program.

z ~ p(z)          prior()
x | z ~ p(x|z)    likelihood(z)
z | x ~ q(z|x)    posterior(x)
"""

from __future__ import annotations

import pyro
from torch import Tensor, nn


class VAE(nn.Module):
    """Variational autoencoder: the model is p(z) p(x|z), the guide is the amortized posterior q(z|x).

    Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014 (https://arxiv.org/abs/1312.6114). It runs under any
    Pyro inference algorithm, e.g. ``pyro.infer.SVI(vae.model, vae.guide, optim, Trace_ELBO())``.

    Args:
        prior: Module; ``prior()`` returns p(z), event shape (D,).
        likelihood: Module; ``likelihood(z)`` returns p(x|z), event shape (*pixels).
        posterior: Module; ``posterior(x)`` returns q(z|x), event shape (D,).

    Example:
        >>> import pyro
        >>> from functools import partial
        >>> from pyro_vae import data, likelihoods, nets, posteriors, priors
        >>> images = data.load("digits").observed("dynamic")
        >>> net = nets.Dense((8, 8), hidden_dim=20)
        >>> likelihood = likelihoods.Bernoulli(partial(net.decoder, 2), images.pixels.train)
        >>> vae = VAE(priors.StandardNormal(2), likelihood, posteriors.MeanField(net.encoder, 2))
        >>> pyro.poutine.trace(vae.model).get_trace(images.split("test")).nodes["z"]["value"].shape
        torch.Size([256, 2])
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior

    def model(self, x: Tensor) -> None:
        """Sample z from the prior and observe the images `x`, shape (B, *pixels)."""
        pyro.module("vae", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Sample z from the posterior of the images `x`, shape (B, *pixels)."""
        pyro.module("vae", self)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.posterior(x))
