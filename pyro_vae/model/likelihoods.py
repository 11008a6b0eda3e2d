r"""Likelihoods p(x|z): modules whose ``forward(z)`` returns a distribution over an image.

Each states its data domain through the support of its distribution; data outside it are refused by the
evaluators, not scored.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.model.nets import MLP


class Bernoulli(nn.Module):
    """Independent binary pixels, p(x|z) = prod_i Bernoulli(x_i; sigmoid(logits_i(z))). Domain: {0, 1}.

    The output bias starts at the logit of the mean training image, the authors' initialisation of Burda et
    al. (2016), worth about a nat after a short training.

    Args:
        net: decoder, (..., D) -> (..., pixels).
        pixel_shape: shape of an image.
        mean_image: mean of the training images in [0, 1], of the pixel shape.
    """

    def __init__(self, net: MLP, pixel_shape: Sequence[int], mean_image: Tensor) -> None:
        super().__init__()
        self.net = net
        self.pixel_shape = tuple(pixel_shape)
        with torch.no_grad():
            net.last.bias.copy_(mean_image.flatten().clamp(1e-3, 1 - 1e-3).logit())

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        logits = self.net(z).unflatten(-1, self.pixel_shape)
        return dist.Bernoulli(logits=logits).to_event(len(self.pixel_shape))


class Gaussian(nn.Module):
    """Independent Gaussian pixels with learned mean and scale, p(x|z) = prod_i N(x_i; loc_i(z), scale_i(z)^2).

    Domain: real numbers. 8-bit pixels put no bound on a density, so they are dequantized uniformly,
    x = (level + u) / 256, and the scale has a floor of one grey level.

    Args:
        net: decoder, (..., D) -> (..., 2 * pixels).
        pixel_shape: shape of an image.
        mean_image: mean of the training images in [0, 1], of the pixel shape; where loc starts.
        scale_floor: smallest scale, in the units of x.
    """

    def __init__(self, net: MLP, pixel_shape: Sequence[int], mean_image: Tensor, scale_floor: float = 1 / 256) -> None:
        super().__init__()
        self.net = net
        self.pixel_shape = tuple(pixel_shape)
        self.scale_floor = scale_floor
        with torch.no_grad():
            start_scale = torch.full_like(mean_image, 0.25).expm1().log()
            net.last.bias.copy_(torch.cat([mean_image.flatten(), start_scale.flatten()]))

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        loc, raw_scale = self.net(z).unflatten(-1, (2, *self.pixel_shape)).unbind(-len(self.pixel_shape) - 1)
        return dist.Normal(loc, self.scale_floor + softplus(raw_scale)).to_event(len(self.pixel_shape))
