r"""Conditional VAE: a generative model of images given their class.

z ~ p(z)                    prior()
x | z, y ~ p(x|z,y)         likelihood(z, y)
z | x, y ~ q(z|x,y)         posterior(features(x), y)

The class is one-hot encoded, and its C values are appended to the other inputs of a network.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot


class CVAE(nn.Module):
    """Conditional VAE: the model is p(z) p(x|z,y) for given classes y, the guide is q(z|x,y).

    Sohn, Lee, Yan, "Learning Structured Output Representation using Deep Conditional Generative Models", NeurIPS 2015.

    Args:
        prior: Module; ``prior()`` returns p(z), event shape (D,).
        likelihood: Module; ``likelihood(h)``, h of shape (..., D + C), returns p(x|z,y), event shape (*pixels).
        features: Module; ``features(x)`` returns features of images, shape (..., H).
        posterior: Module; ``posterior(h)``, h of shape (..., H + C), returns q(z|x,y), event shape (D,).
        num_classes: C, the number of classes.
    """

    def __init__(
        self, prior: nn.Module, likelihood: nn.Module, features: nn.Module, posterior: nn.Module, num_classes: int
    ) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood
        self.features = features
        self.posterior = posterior
        self.num_classes = num_classes

    def model(self, x: Tensor, y: Tensor) -> None:
        """Sample z and observe the images `x`, shape (B, *pixels), of classes `y`, shape (B,)."""
        pyro.module("cvae", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self._with_class(z, y)), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Sample z from the posterior of the images `x`, shape (B, *pixels), of classes `y`, shape (B,)."""
        pyro.module("cvae", self)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.posterior(self._with_class(self.features(x), y)))

    def _with_class(self, h: Tensor, y: Tensor) -> Tensor:
        classes = one_hot(y, self.num_classes).to(h)
        shape = torch.broadcast_shapes(h.shape[:-1], classes.shape[:-1])
        return torch.cat([h.expand(*shape, -1), classes.expand(*shape, -1)], -1)
