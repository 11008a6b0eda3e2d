r"""The VAE of images given their class.

z ~ p(z)                    prior()
x | z, y ~ p(x|z,y)         likelihood(z, y)
z | x, y ~ q(z|x,y)         posterior(features(x), y)

A class enters as C numbers, one of them 1, beside what the networks take otherwise.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot


class CVAE(nn.Module):
    """Generative process p(z) p(x|z,y) with the class y given, and its amortized posterior q(z|x,y).

    Sohn, Lee, Yan, "Learning Structured Output Representation using Deep Conditional Generative Models", NeurIPS 2015.

    Args:
        prior: module; ``prior()`` is a distribution of event shape (D,).
        likelihood: module; ``likelihood(h)`` of h (..., D + C) is a distribution of event shape (*pixels).
        features: module; ``features(x)`` is (..., H).
        posterior: module; ``posterior(h)`` of h (..., H + C) is a distribution of event shape (D,).
        num_classes: C.
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
        """Generate z and observe the images x, (B, *pixels), of classes y, (B,)."""
        pyro.module("cvae", self)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self._with_class(z, y)), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Infer z from the images x, (B, *pixels), of classes y, (B,)."""
        pyro.module("cvae", self)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.posterior(self._with_class(self.features(x), y)))

    def _with_class(self, h: Tensor, y: Tensor) -> Tensor:
        classes = one_hot(y, self.num_classes).to(h)
        shape = torch.broadcast_shapes(h.shape[:-1], classes.shape[:-1])
        return torch.cat([h.expand(*shape, -1), classes.expand(*shape, -1)], -1)
