r"""Likelihoods of 8-bit pixels as 256 discrete gray levels, without dequantization."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.memory import split_images
from pyro_vae.model.distributions import pixels
from pyro_vae.model.distributions.colors import ColorLogisticMixture
from pyro_vae.model.likelihoods.base import Decoder, Likelihood


class LogisticMixture(Likelihood):
    """Independent pixels, each a mixture of C logistic distributions rounded to gray levels. Domain: 0, 1/255, ..., 1.

    For color images, shape (3, height, width), each pixel is one mixture over its three channels, in which green
    depends on red, and blue on both, with coefficients tanh(a(z)): see `ColorLogisticMixture`. Channels are independent
    if their number is not three.

    Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017 (https://arxiv.org/abs/1701.05517).

    Args:
        decoder: Function that returns a network with the given number of output channels. For color images, the network
            returns log-weights of the components for each color channel, which are averaged over the three.
        images: Training images, uint8, shape (N, *pixels). The biases of the locations are initialized to quantiles of
            each pixel over the first 2,000 images, so that a component of a color pixel is initially dark, medium or
            bright in all three channels. Those of the coefficients are initialized to zero.
        num_components: C, the number of components.
    """

    def __init__(self, decoder: Decoder, images: Tensor, num_components: int = 5) -> None:
        levels = (torch.arange(num_components, device=images.device) + 0.5) / num_components
        loc = torch.quantile(images[:2000].to(levels.dtype) / 255, levels, dim=0)
        init_bias = [torch.zeros_like(loc), loc, torch.full_like(loc, math.log(0.05))]
        if images.dim() == 4 and images.shape[1] == 3:
            init_bias.append(torch.zeros_like(loc))  # coefficients
        super().__init__(decoder, torch.cat(init_bias))
        self.num_components = num_components

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        outputs = torch.stack(self._outputs(z), -1).unflatten(-1, (-1, self.num_components))
        logits, loc, log_scale, *coefficients = outputs.unbind(-2)
        # Clamping at a seventh of a gray level, far below the resolution of the data, keeps the scale positive.
        scale = log_scale.clamp(min=-7.5).exp()
        if coefficients:
            return ColorLogisticMixture(logits.mean(-4), loc, scale, coefficients[0].tanh())
        components = pixels.DiscretizedLogistic(loc, scale)
        return self._independent(dist.MixtureSameFamily(dist.Categorical(logits=logits), components))


class Categorical(Likelihood):
    """Independent pixels, categorical over the 256 gray levels. Domain: 0, 1/255, ..., 1.

    The biases are initialized to the log-frequencies of the levels in each pixel, with add-1/2 smoothing.
    """

    def __init__(self, decoder: Decoder, images: Tensor) -> None:
        num_pixels = images[0].numel()
        offsets = 256 * torch.arange(num_pixels, device=images.device)
        counts = sum(
            torch.bincount((part.flatten(1) + offsets).flatten(), minlength=256 * num_pixels)
            for part in split_images(images)
        )
        init_bias = (torch.as_tensor(counts) + 0.5).log().view(*images.shape[1:], 256)
        super().__init__(decoder, init_bias.movedim(-1, 0))

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        return self._independent(pixels.CategoricalPixels(torch.stack(self._outputs(z), -1)))
