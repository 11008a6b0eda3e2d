r"""Likelihoods p(x|z): modules whose ``forward(z)`` returns a distribution over an image.

Each is built from ``decoder(channels)``, which returns a network (..., D) -> (..., channels, *pixels), and from the
training images, uint8 (N, *pixels). The output bias, a number for each channel and pixel, is the likelihood's own: it
starts at what the images say of single pixels, the authors' initialisation of Burda et al. (2016), worth about a nat
after a short training.

Each states its data domain through the support of its distribution; data outside it are refused by the evaluators,
not scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.model.distributions import pixels
from pyro_vae.model.distributions.colors import ColorLogisticMixture
from pyro_vae.model.nets.standardized import Standardize

Decoder = Callable[[int], nn.Module]


class Likelihood(nn.Module):
    """A network and its output bias.

    Args:
        decoder: as above.
        start: the output bias, (channels, *pixels).
    """

    def __init__(self, decoder: Decoder, start: Tensor) -> None:
        super().__init__()
        self.net = decoder(len(start))
        self.bias = nn.Parameter(start.to(torch.get_default_dtype()).contiguous())

    def _outputs(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the channels, (..., *pixels) each."""
        return (self.net(z) + self.bias).unbind(-self.bias.dim())

    def _independent(self, pixel: dist.TorchDistribution) -> dist.Distribution:
        return pixel.to_event(self.bias.dim() - 1)


class Bernoulli(Likelihood):
    """Independent binary pixels, p(x|z) = prod_i Bernoulli(x_i; sigmoid(logits_i(z))). Domain: {0, 1}."""

    def __init__(self, decoder: Decoder, images: Tensor) -> None:
        super().__init__(decoder, mean_logits(images).unsqueeze(0))

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        (logits,) = self._outputs(z)
        return self._independent(dist.Bernoulli(logits=logits))


class CrossEntropy(Bernoulli):
    """The binary cross-entropy of grey pixels, in the place of log p(x|z): a loss, and no likelihood. Domain: [0, 1].

    It is what many introductions train on grey MNIST. It has no normalisation, so that there is a rate and a distortion
    but neither an ELBO nor log p(x); `ContinuousBernoulli` is the likelihood that it lacks.
    """

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return the loss as a distribution, batch shape (...), event shape (*pixels)."""
        (logits,) = self._outputs(z)
        return self._independent(pixels.CrossEntropy(logits=logits))


class ContinuousBernoulli(Likelihood):
    r"""Independent pixels of density C(l) exp(l x) on [0, 1], l the logit. Domain: [0, 1].

    Loaiza-Ganem, Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational autoencoders",
    NeurIPS 2019 (https://arxiv.org/abs/1907.06845).
    """

    def __init__(self, decoder: Decoder, images: Tensor) -> None:
        # Of the mean there is no closed-form inverse; it rises from 0.02 to 0.98 over this table.
        logits = torch.linspace(-50, 50, 10_001, dtype=torch.float64, device=images.device)
        means = pixels.ContinuousBernoulli(logits).mean
        start = np.interp(_mean(images).cpu(), means.cpu(), logits.cpu())
        super().__init__(decoder, torch.as_tensor(start, device=images.device).unsqueeze(0))

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        (logits,) = self._outputs(z)
        return self._independent(pixels.ContinuousBernoulli(logits))


class _Normal(Likelihood):
    """Independent Gaussian values. Of a table, networks and scales are in standard deviations of each column."""

    def __init__(self, decoder: Decoder, start: Tensor, images: Tensor, scale_floor: float) -> None:
        super().__init__(decoder, start)
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
    x = (level + u) / 256, and the scale has a floor of one grey level.

    Args:
        decoder: as above.
        images: as above, or the training rows (N, columns) of a table, floating-point.
        scale_floor: smallest scale, in the units of pixels, or in standard deviations of a column.
    """

    def __init__(self, decoder: Decoder, images: Tensor, scale_floor: float = 1 / 256) -> None:
        mean = _first_mean(images)
        start = torch.stack([mean, torch.full_like(mean, 0.25).expm1().log()])
        super().__init__(decoder, start, images, scale_floor)

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
            spread = (images.float() / 255 - mean).square().mean().sqrt()
        self.raw_scale = nn.Parameter(spread.to(torch.get_default_dtype()).expm1().log())

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        (loc,) = self._outputs(z)
        return self._normal(loc, self.raw_scale)


class LogisticMixture(Likelihood):
    """Independent pixels, each a mixture of C logistic distributions rounded to grey levels. Domain: 0, 1/255, ..., 1.

    Of color images (3, height, width) a pixel is one mixture over its three channels, green given red and blue given
    both, by coefficients tanh(a(z)): see `ColorLogisticMixture`. With another number of channels than three, they are
    independent pixels.

    Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017 (https://arxiv.org/abs/1701.05517).

    Args:
        decoder: as above. It gives each channel of a color image a log-weight for each component, and that of the pixel
            is their mean.
        images: as above; the locations start at quantiles of each pixel, over the first 2,000, so that a component of a
            color pixel starts as dark, medium or bright in all channels; the coefficients start at zero.
        num_components: C.
    """

    def __init__(self, decoder: Decoder, images: Tensor, num_components: int = 5) -> None:
        levels = (torch.arange(num_components, device=images.device) + 0.5) / num_components
        loc = torch.quantile(images[:2000].to(levels.dtype) / 255, levels, dim=0)
        start = [torch.zeros_like(loc), loc, torch.full_like(loc, math.log(0.05))]
        if images.dim() == 4 and images.shape[1] == 3:
            start.append(torch.zeros_like(loc))  # of the coefficients
        super().__init__(decoder, torch.cat(start))
        self.num_components = num_components

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        outputs = torch.stack(self._outputs(z), -1).unflatten(-1, (-1, self.num_components))
        logits, loc, log_scale, *coefficients = outputs.unbind(-2)
        # A floor of a seventh of a level, far below what the data can tell apart, keeps the scale positive.
        scale = log_scale.clamp(min=-7.5).exp()
        if coefficients:
            return ColorLogisticMixture(logits.mean(-4), loc, scale, coefficients[0].tanh())
        components = pixels.DiscretizedLogistic(loc, scale)
        return self._independent(dist.MixtureSameFamily(dist.Categorical(logits=logits), components))


class Categorical(Likelihood):
    """Independent pixels with a probability for each of the 256 grey levels. Domain: 0, 1/255, ..., 1.

    The levels start at their frequencies in each pixel, each counted half a time more than it was seen.
    """

    def __init__(self, decoder: Decoder, images: Tensor) -> None:
        number = images[0].numel()
        places = 256 * torch.arange(number, device=images.device)
        counts = sum(
            torch.bincount((part.flatten(1) + places).flatten(), minlength=256 * number) for part in images.split(5000)
        )
        start = (torch.as_tensor(counts) + 0.5).log().view(*images.shape[1:], 256)
        super().__init__(decoder, start.movedim(-1, 0))

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        return self._independent(pixels.GreyCategorical(torch.stack(self._outputs(z), -1)))


def mean_logits(images: Tensor) -> Tensor:
    """Return the logits of the mean image, kept off the infinities of pixels that are always black."""
    return _mean(images).clamp(1e-3, 1 - 1e-3).logit()


def _first_mean(images: Tensor) -> Tensor:
    """Return the mean image, or that of standardized columns."""
    return torch.zeros_like(images[0]) if images.is_floating_point() else _mean(images)


def _mean(images: Tensor) -> Tensor:
    """Return the mean image, in [0, 1]."""
    return images.float().mean(0) / 255
