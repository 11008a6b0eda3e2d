r"""Gaussian likelihoods, for dequantized pixels and for real-valued columns of tables."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.memory import split_images
from pyro_vae.model.likelihoods.base import Decoder, Likelihood, mean_image
from pyro_vae.model.nets.standardized import Standardize


class _Normal(Likelihood):
    """Independent Gaussian values. For a table, the network and the scale refer to standardized columns."""

    def __init__(self, decoder: Decoder, init_bias: Tensor, images: Tensor, scale_floor: float) -> None:
        super().__init__(decoder, init_bias)
        self.units = Standardize(images) if images.is_floating_point() else None
        self.scale_floor = scale_floor

    def _normal(self, loc: Tensor, raw_scale: Tensor) -> dist.Distribution:
        scale = self.scale_floor + softplus(raw_scale)
        if self.units is not None:  # convert to the units of the data, in which the density is defined
            loc, scale = self.units.loc + self.units.scale * loc, self.units.scale * scale
        return self._independent(dist.Normal(loc, scale))


class Gaussian(_Normal):
    """Independent Gaussian values with learned mean and scale, p(x|z) = prod_i N(x_i; loc_i(z), scale_i(z)^2).

    Domain: real numbers. The density of 8-bit pixels would be unbounded, so they are dequantized uniformly,
    x = (level + u) / 256 with u ~ U(0, 1), and the scale has a floor of one gray level.

    Args:
        decoder: Function that returns a network with the given number of output channels.
        images: Training images, uint8, shape (N, *pixels), or rows of a table, floating-point, shape (N, columns).
        scale_floor: Minimum scale, in units of pixels, or in standard deviations of a column.
    """

    def __init__(self, decoder: Decoder, images: Tensor, scale_floor: float = 1 / 256) -> None:
        mean = _initial_mean(images)
        init_bias = torch.stack([mean, torch.full_like(mean, 0.25).expm1().log()])
        super().__init__(decoder, init_bias, images, scale_floor)

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        return self._normal(*self._outputs(z))


class IsotropicGaussian(_Normal):
    """Independent Gaussian values with a single learned scale: a squared error with a learned weight.

    With linear networks this is probabilistic PCA: Tipping, Bishop, "Probabilistic Principal Component Analysis", JRSS
    B 61 (1999) (https://doi.org/10.1111/1467-9868.00196). The arguments, the domain and the scale floor are those of
    `Gaussian`. For a table, the scale is the same fraction of the standard deviation of every column.
    """

    def __init__(self, decoder: Decoder, images: Tensor, scale_floor: float = 1 / 256) -> None:
        mean = _initial_mean(images)
        super().__init__(decoder, mean.unsqueeze(0), images, scale_floor)
        if images.is_floating_point():
            spread = torch.ones((), device=images.device)
        else:
            # Sum in float64, because float32 loses precision over this many squares.
            squares = sum((part / 255 - mean).square().sum(dtype=torch.float64) for part in split_images(images))
            spread = (torch.as_tensor(squares) / images.numel()).sqrt()
        self.raw_scale = nn.Parameter(spread.to(torch.get_default_dtype()).expm1().log())

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        (loc,) = self._outputs(z)
        return self._normal(loc, self.raw_scale)


def _initial_mean(images: Tensor) -> Tensor:
    """Return the mean image, or zeros for a table, whose columns are standardized."""
    return torch.zeros_like(images[0]) if images.is_floating_point() else mean_image(images)
