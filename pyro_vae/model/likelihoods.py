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
from collections.abc import Callable, Sequence

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.model.distributions import pixels

Decoder = Callable[[int], nn.Module]


class _Likelihood(nn.Module):
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


class Bernoulli(_Likelihood):
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


class ContinuousBernoulli(_Likelihood):
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


class Gaussian(_Likelihood):
    """Independent Gaussian pixels with learned mean and scale, p(x|z) = prod_i N(x_i; loc_i(z), scale_i(z)^2).

    Domain: real numbers. 8-bit pixels put no bound on a density, so they are dequantized uniformly,
    x = (level + u) / 256, and the scale has a floor of one grey level.

    Args:
        decoder: as above.
        images: as above.
        scale_floor: smallest scale, in the units of x.
    """

    def __init__(self, decoder: Decoder, images: Tensor, scale_floor: float = 1 / 256) -> None:
        mean = _mean(images)
        super().__init__(decoder, torch.stack([mean, torch.full_like(mean, 0.25).expm1().log()]))
        self.scale_floor = scale_floor

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        loc, raw_scale = self._outputs(z)
        return self._independent(dist.Normal(loc, self.scale_floor + softplus(raw_scale)))


class IsotropicGaussian(_Likelihood):
    """Independent Gaussian pixels with one learned scale for all of them: the squared error, and its size.

    With linear networks it is probabilistic PCA: Tipping, Bishop, "Probabilistic Principal Component Analysis", JRSS B
    61 (1999) (https://doi.org/10.1111/1467-9868.00196). Domain and floor as of `Gaussian`.
    """

    def __init__(self, decoder: Decoder, images: Tensor, scale_floor: float = 1 / 256) -> None:
        mean = _mean(images)
        super().__init__(decoder, mean.unsqueeze(0))
        # Squares are added up in float64, since there may be more of them than float32 tells apart.
        squares = sum((part / 255 - mean).square().sum(dtype=torch.float64) for part in _parts(images))
        spread = (torch.as_tensor(squares) / images.numel()).sqrt()
        self.raw_scale = nn.Parameter(spread.to(torch.get_default_dtype()).expm1().log())
        self.scale_floor = scale_floor

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        (loc,) = self._outputs(z)
        return self._independent(dist.Normal(loc, self.scale_floor + softplus(self.raw_scale)))


class LogisticMixture(_Likelihood):
    """Independent pixels, each a mixture of C logistic distributions rounded to grey levels. Domain: 0, 1/255, ..., 1.

    Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017 (https://arxiv.org/abs/1701.05517).

    Args:
        decoder: as above.
        images: as above; the locations start at quantiles of each pixel, over the first 2,000.
        num_components: C.
    """

    def __init__(self, decoder: Decoder, images: Tensor, num_components: int = 5) -> None:
        levels = (torch.arange(num_components, device=images.device) + 0.5) / num_components
        loc = torch.quantile(images[:2000].to(levels.dtype) / 255, levels, dim=0)
        start = torch.stack([torch.zeros_like(loc), loc, torch.full_like(loc, math.log(0.05))])
        super().__init__(decoder, start.flatten(0, 1))
        self.num_components = num_components

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        outputs = torch.stack(self._outputs(z), -1).unflatten(-1, (3, self.num_components))
        logits, loc, log_scale = outputs.unbind(-2)
        # A floor of a seventh of a level, far below what the data can tell apart, keeps the scale positive.
        components = pixels.DiscretizedLogistic(loc, log_scale.clamp(min=-7.5).exp())
        return self._independent(dist.MixtureSameFamily(dist.Categorical(logits=logits), components))


class Categorical(_Likelihood):
    """Independent pixels with a probability for each of the 256 grey levels. Domain: 0, 1/255, ..., 1.

    The levels start at their frequencies in each pixel, each counted half a time more than it was seen.
    """

    def __init__(self, decoder: Decoder, images: Tensor) -> None:
        number = images[0].numel()
        places = 256 * torch.arange(number, device=images.device)
        counts = sum(
            torch.bincount((part.flatten(1) + places).flatten(), minlength=256 * number) for part in _parts(images)
        )
        start = (torch.as_tensor(counts) + 0.5).log().view(*images.shape[1:], 256)
        super().__init__(decoder, start.movedim(-1, 0))

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (*pixels)."""
        return self._independent(pixels.GreyCategorical(torch.stack(self._outputs(z), -1)))


def mean_logits(images: Tensor) -> Tensor:
    """Return the logits of the mean image, kept off the infinities of pixels that are always black."""
    return _mean(images).clamp(1e-3, 1 - 1e-3).logit()


def _mean(images: Tensor) -> Tensor:
    """Return the mean image, in [0, 1], float32: sums of integers, which are exact, then one division."""
    total = torch.as_tensor(sum(part.sum(0, dtype=torch.long) for part in _parts(images)))
    return (total.double() / len(images)).float() / 255


def _parts(images: Tensor) -> Sequence[Tensor]:
    """Return images in parts of about four million pixels: all of them may be more than the memory holds."""
    return images.split(max(1, 2**22 // images[0].numel()))
