r"""Gated PixelCNN, a network for `Autoregressive` distributions: a density of images, and a likelihood p(x|z).

It consists of two convolutional stacks without a blind spot. The vertical stack covers the rows above a pixel. The
horizontal stack covers the pixels to its left and, at every layer, adds features of the vertical stack. With weights W
of the input and V of conditioning features h, a layer computes

    tanh(W x + V h) * sigmoid(W' x + V' h).

van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu, "Conditional Image Generation with PixelCNN
Decoders", NeurIPS 2016 (https://arxiv.org/abs/1606.05328). No weights are masked. Instead, the input is shifted down by
one row (vertical stack) or right by one column (horizontal stack), and kernels cover no rows below and, in the
horizontal stack, no columns to the right: Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017
(https://arxiv.org/abs/1701.05517).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pyro_vae.errors import UserError
from pyro_vae.model.distributions.autoregressive import Autoregressive
from pyro_vae.model.likelihoods import Decoder, mean_logits


class PixelCNN(nn.Module):
    """Autoregressive density of binary images. Domain: {0, 1}.

    The last layer is initialized to zero, and the output bias, shape (height, width), to the logits of the mean image.
    Initially, the pixels are therefore independent.

    Args:
        images: Training images, uint8, shape (N, height, width).
        channels: Number of channels of each stack.
        kernels: Kernel width of each layer; odd.
        num_features: Number of channels of the conditioning features, or 0 without any.

    Raises:
        ValueError: If the images are not of shape (N, height, width).
    """

    def __init__(
        self, images: Tensor, channels: int = 16, kernels: Sequence[int] = (7, 5, 5, 5, 5), num_features: int = 0
    ) -> None:
        super().__init__()
        if images.dim() != 3:
            raise UserError(f"A PixelCNN requires images of shape (height, width), not {tuple(images.shape[1:])}.")
        inputs = [1] + [channels] * (len(kernels) - 1)
        layers = [_Layer(*sizes, channels, num_features) for sizes in zip(inputs, kernels, strict=True)]
        last = nn.Conv2d(channels, 1, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.layers: Iterable[_Layer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), last)
        self.bias = nn.Parameter(mean_logits(images).to(torch.get_default_dtype()).contiguous())
        self.receptive_rows = 1 + sum(layer.margin for layer in layers)

    def forward(self, features: Tensor | None = None) -> Autoregressive:
        """Return p(x), or p(x|h) for features h, shape (..., num_features, height, width), batch shape (...)."""
        return Autoregressive(self, features)

    def vertical(self, x: Tensor, features: Tensor | None) -> Iterator[Tensor]:
        """Yield the contribution of each vertical layer to the horizontal stack; see `autoregressive.RasterNetwork`."""
        v = pad(_signs(x), (0, 0, 1, 0))[..., :-1, :]
        for layer in self.layers:
            gates, conditioning = layer.vertical_gates(v, features)
            yield conditioning
            v = _gated(gates)

    def logits(self, x: Tensor, above: Iterable[Tensor]) -> Tensor:
        """Return the logits computed by the horizontal stack; see `autoregressive.RasterNetwork`."""
        h = pad(_signs(x), (1, 0))[..., :-1]
        # `above` may be a generator: zip holds one of its layers at a time, and skips the last vertical activations.
        for layer, conditioning in zip(self.layers, above, strict=False):
            h = layer.horizontal_step(h, conditioning)
        return self.head(h).squeeze(1)


class ConditionalPixelCNN(nn.Module):
    """Likelihood p(x|z): a PixelCNN conditioned on the feature maps that a decoder computes from z. Domain: {0, 1}.

    It has few layers, so that it models local structure only and z encodes the rest. Gulrajani, Kumar, Ahmed, Taiga,
    Visin, Vazquez, Courville, "PixelVAE: A Latent Variable Model for Natural Images", ICLR 2017
    (https://arxiv.org/abs/1611.05013).

    Args:
        decoder: Function that returns a network with the given number of output channels, as in `likelihoods`.
        images: Training images, uint8, shape (N, height, width).
        channels: Number of channels of each stack.
        kernels: Kernel width of each layer; odd.
        num_features: Number of feature maps, the output channels of the decoder.
    """

    def __init__(
        self,
        decoder: Decoder,
        images: Tensor,
        channels: int = 16,
        kernels: Sequence[int] = (5, 3),
        num_features: int = 8,
    ) -> None:
        super().__init__()
        self.net = decoder(num_features)
        self.pixelcnn = PixelCNN(images, channels, kernels, num_features)

    def forward(self, z: Tensor) -> Autoregressive:
        """Return p(x|z) for `z`, shape (..., D): batch shape (...), event shape (height, width)."""
        return self.pixelcnn(self.net(z))


class _Layer(nn.Module):
    """One layer of both stacks. Kernels extend from their position by `margin`, half their width."""

    def __init__(self, inputs: int, kernel: int, channels: int, num_features: int) -> None:
        super().__init__()
        self.margin = margin = kernel // 2
        self.vertical = nn.Conv2d(inputs, 2 * channels, (margin + 1, kernel))
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.horizontal = nn.Conv2d(inputs, 2 * channels, (1, margin + 1))
        self.condition = nn.Conv2d(num_features, 4 * channels, 1, bias=False) if num_features else None
        self.merge = nn.Conv2d(channels, channels, 1)

    def vertical_gates(self, v: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the gates of the vertical stack and their contribution to those of the horizontal one."""
        gates = self.vertical(pad(v, (self.margin, self.margin, self.margin, 0)))
        if self.condition is None:
            return gates, self.across(gates)
        vertical, horizontal = self.condition(features).chunk(2, 1)
        gates = gates + vertical
        return gates, self.across(gates) + horizontal

    def horizontal_step(self, h: Tensor, conditioning: Tensor) -> Tensor:
        """Return the next horizontal activations. The single input channel of the first layer broadcasts."""
        return h + self.merge(_gated(self.horizontal(pad(h, (self.margin, 0))) + conditioning))


def _gated(gates: Tensor) -> Tensor:
    value, gate = gates.chunk(2, 1)
    return value.tanh() * gate.sigmoid()


def _signs(x: Tensor) -> Tensor:
    """Map {0, 1} to {-1, 1}, shape (N, 1, rows, width), so that zero padding marks pixels outside the image."""
    return (2 * x - 1).unsqueeze(1)
