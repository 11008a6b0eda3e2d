r"""Likelihoods with one logit per pixel, for pixels in {0, 1} or in [0, 1]."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.model.distributions import pixels
from pyro_vae.model.likelihoods.base import Decoder, Likelihood, mean_image, mean_logits


class Bernoulli(Likelihood):
    """Independent binary pixels, p(x|z) = prod_i Bernoulli(x_i; sigmoid(logits_i(z))). Domain: {0, 1}."""

    def __init__(self, decoder: Decoder, images: Tensor) -> None:
        super().__init__(decoder, mean_logits(images).unsqueeze(0))

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        (logits,) = self._outputs(z)
        return self._independent(dist.Bernoulli(logits=logits))


class CrossEntropy(Bernoulli):
    """Binary cross-entropy of gray pixels, used instead of -log p(x|z): a loss, not a likelihood. Domain: [0, 1].

    Many introductions train it on gray MNIST. It is unnormalized, so that rate and distortion exist, but the ELBO and
    log p(x) do not. `ContinuousBernoulli` is its normalized counterpart.
    """

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return the unnormalized distribution of the loss, batch shape (...), event shape (*pixels)."""
        (logits,) = self._outputs(z)
        return self._independent(pixels.CrossEntropy(logits=logits))


class ContinuousBernoulli(Likelihood):
    r"""Independent pixels with the density C(l) exp(l x) on [0, 1], where l is the logit. Domain: [0, 1].

    Loaiza-Ganem, Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders",
    NeurIPS 2019 (https://arxiv.org/abs/1907.06845).
    """

    def __init__(self, decoder: Decoder, images: Tensor) -> None:
        # The mean has no closed-form inverse: interpolate a table, over which it rises from 0.02 to 0.98.
        logits = torch.linspace(-50, 50, 10_001, dtype=torch.float64, device=images.device)
        means = pixels.ContinuousBernoulli(logits).mean
        init_bias = np.interp(mean_image(images).cpu(), means.cpu(), logits.cpu())
        super().__init__(decoder, torch.as_tensor(init_bias, device=images.device).unsqueeze(0))

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        (logits,) = self._outputs(z)
        return self._independent(pixels.ContinuousBernoulli(logits))
