r"""Likelihoods p(x|z): modules whose ``forward(z)`` returns a distribution over an image.

Each is built from ``decoder(channels)``, which returns a network (..., D) -> (..., channels, *pixels), and from the
training images, uint8 (N, *pixels). The output bias, a number for each channel and pixel, is the likelihood's own: it
starts at what the images say of single pixels, the authors' initialization of Burda et al. (2016), worth about a nat
after a short training.

Each states its data domain through the support of its distribution; data outside it are refused by the evaluators,
not scored.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.memory import split_images

Decoder = Callable[[int], nn.Module]


class Likelihood(nn.Module):
    """A network and its output bias.

    Args:
        decoder: as above.
        init_bias: the output bias, (channels, *pixels).
    """

    def __init__(self, decoder: Decoder, init_bias: Tensor) -> None:
        super().__init__()
        self.net = decoder(len(init_bias))
        self.bias = nn.Parameter(init_bias.to(torch.get_default_dtype()).contiguous())

    def _outputs(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the channels, (..., *pixels) each."""
        return (self.net(z) + self.bias).unbind(-self.bias.dim())

    def _independent(self, pixel: dist.TorchDistribution) -> dist.Distribution:
        return pixel.to_event(self.bias.dim() - 1)


def mean_logits(images: Tensor) -> Tensor:
    """Return the logits of the mean image, kept off the infinities of pixels that are always black."""
    return mean_image(images).clamp(1e-3, 1 - 1e-3).logit()


def mean_image(images: Tensor) -> Tensor:
    """Return the mean of images, uint8 (N, *pixels), in [0, 1] and float32: an exact sum, then one division."""
    total = torch.as_tensor(sum(part.sum(0, dtype=torch.long) for part in split_images(images)))
    return (total.double() / len(images)).float() / 255
