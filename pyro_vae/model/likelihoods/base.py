r"""Likelihoods p(x|z): modules whose ``forward(z)`` returns a distribution over an image.

A likelihood is built from the training images, uint8, shape (N, *pixels), and from a function ``decoder(channels)``,
which returns a network (..., D) -> (..., channels, *pixels). The likelihood owns the output bias, shape
(channels, *pixels), and initializes it from per-pixel statistics of the training images, as in the code of Burda et
al. (2016). After short training, this is worth about one nat.

The support of the returned distribution defines the domain of the data. Evaluation rejects data outside the support
instead of scoring them.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.memory import split_images

Decoder = Callable[[int], nn.Module]


class Likelihood(nn.Module):
    """Base class of likelihoods: a decoder network and its output bias.

    Args:
        decoder: Function that returns a network with the given number of output channels.
        init_bias: Initial output bias, shape (channels, *pixels).
    """

    def __init__(self, decoder: Decoder, init_bias: Tensor) -> None:
        super().__init__()
        self.net = decoder(len(init_bias))
        self.bias = nn.Parameter(init_bias.to(torch.get_default_dtype()).contiguous())

    def _outputs(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return one tensor (..., *pixels) per output channel."""
        return (self.net(z) + self.bias).unbind(-self.bias.dim())

    def _independent(self, pixel: dist.TorchDistribution) -> dist.Distribution:
        return pixel.to_event(self.bias.dim() - 1)


def mean_logits(images: Tensor) -> Tensor:
    """Return the logits of the mean image, clamped so that those of constant pixels are finite."""
    return mean_image(images).clamp(1e-3, 1 - 1e-3).logit()


def mean_image(images: Tensor) -> Tensor:
    """Return the mean image in [0, 1], float32, shape (*pixels).

    The sum is exact, so that the mean does not depend on how the images are split.

    Args:
        images: Images, uint8, shape (N, *pixels).
    """
    total = torch.as_tensor(sum(part.sum(0, dtype=torch.long) for part in split_images(images)))
    return (total.double() / len(images)).float() / 255
