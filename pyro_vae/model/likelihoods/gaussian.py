r"""Gaussian likelihoods, of dequantized pixels and of real numbers."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.memory import split_images
from pyro_vae.model.likelihoods.base import Decoder, Likelihood, mean_image
from pyro_vae.model.nets.standardized import Standardize


class _Normal(Likelihood):
    """Independent Gaussian values. Of a table, networks and scales are in standard deviations of each column."""

    def __init__(self, decoder: Decoder, init_bias: Tensor, images: Tensor, scale_floor: float) -> None:
        super().__init__(decoder, init_bias)
        self.units = Standardize(images) if images.is_floating_point() else None
        self.scale_floor = scale_floor

    def _normal(self, loc: Tensor, raw_scale: Tensor) -> dist.Distribution:
        scale = self.scale_floor + softplus(raw_scale)
        if self.units is not None:  # to the units of the data, so that the density is one of these
            loc, scale = self.units.loc + self.units.scale * loc, self.units.scale * scale
        return self._independent(dist.Normal(loc, scale))


class Gaussian(_Normal):
    """Independent Gaussian values with learned mean and scale, p(x|z) = prod_i N(x_i; loc_i(z), scale_i(z)^2).

    Domain: real numbers. 8-bit pixels put no bound on a density, so they are dequantized uniformly,
    x = (level + u) / 256, and the scale has a floor of one gray level.

    Args:
        decoder: as above.
        images: as above, or the training rows (N, columns) of a table, floating-point.
        scale_floor: smallest scale, in the units of pixels, or in standard deviations of a column.
    """

    def __init__(self, decoder: Decoder, images: Tensor, scale_floor: float = 1 / 256) -> None:
        mean = _first_mean(images)
        init_bias = torch.stack([mean, torch.full_like(mean, 0.25).expm1().log()])
        super().__init__(decoder, init_bias, images, scale_floor)

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        return self._normal(*self._outputs(z))


class IsotropicGaussian(_Normal):
    """Independent Gaussian values with one learned scale for all of them: the squared error, and its size.

    With linear networks it is probabilistic PCA: Tipping, Bishop, "Probabilistic Principal Component Analysis", JRSS B
    61 (1999) (https://doi.org/10.1111/1467-9868.00196). Domain and floor as of `Gaussian`; of a table the scale is the
    same share of the standard deviation of every column.
    """

    def __init__(self, decoder: Decoder, images: Tensor, scale_floor: float = 1 / 256) -> None:
        mean = _first_mean(images)
        super().__init__(decoder, mean.unsqueeze(0), images, scale_floor)
        if images.is_floating_point():
            spread = torch.ones((), device=images.device)
        else:
            # Squares are added up in float64, since there may be more of them than float32 tells apart.
            squares = sum((part / 255 - mean).square().sum(dtype=torch.float64) for part in split_images(images))
            spread = (torch.as_tensor(squares) / images.numel()).sqrt()
        self.raw_scale = nn.Parameter(spread.to(torch.get_default_dtype()).expm1().log())

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        (loc,) = self._outputs(z)
        return self._normal(loc, self.raw_scale)


def _first_mean(images: Tensor) -> Tensor:
    """Return the mean image, or that of standardized columns."""
    return torch.zeros_like(images[0]) if images.is_floating_point() else mean_image(images)
