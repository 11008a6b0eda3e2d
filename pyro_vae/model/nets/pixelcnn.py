r"""Gated PixelCNN, a network of `Autoregressive` distributions: as a density of images, and as a likelihood p(x|z).

Two stacks of convolutions, without a blind spot between them: the vertical one sees the rows above a pixel, the
horizontal one what stands to its left, and at every layer what the vertical one has found. With weights W over a stack
and V over features h of the image, a layer is

    tanh(W x + V h) * sigmoid(W' x + V' h).

van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu, "Conditional Image Generation with PixelCNN
Decoders", NeurIPS 2016 (https://arxiv.org/abs/1606.05328). No weight is masked: the image goes into one stack a row
lower, into the other a column to the right, and from there kernels reach up and to the left of their own place.
Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017 (https://arxiv.org/abs/1701.05517).
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
    """Binary images, pixel by pixel. Domain: {0, 1}.

    The last layer starts at zero and the output bias, a number for each pixel, at the logits of the mean image:
    it starts as independent pixels.

    Args:
        images: training images, uint8 (N, height, width).
        channels: of each stack.
        kernels: the width of each layer's kernels, odd.
        num_features: channels of h, or 0.

    Raises:
        ValueError: images that are not of height and width.
    """

    def __init__(
        self, images: Tensor, channels: int = 16, kernels: Sequence[int] = (7, 5, 5, 5, 5), num_features: int = 0
    ) -> None:
        super().__init__()
        if images.dim() != 3:
            raise UserError(f"Images of shape {tuple(images.shape[1:])} have no height and width for a PixelCNN.")
        inputs = [1] + [channels] * (len(kernels) - 1)
        layers = [_Layer(*sizes, channels, num_features) for sizes in zip(inputs, kernels, strict=True)]
        last = nn.Conv2d(channels, 1, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.layers: Iterable[_Layer] = nn.ModuleList(layers)  # type: ignore[assignment]
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.ReLU(), last)
        self.bias = nn.Parameter(mean_logits(images).to(torch.get_default_dtype()).contiguous())
        self.receptive_rows = 1 + sum(layer.margin for layer in layers)

    def forward(self, features: Tensor | None = None) -> Autoregressive:
        """Return p(x), or p(x|h) of features (..., num_features, height, width), batch shape (...)."""
        return Autoregressive(self, features)

    def vertical(self, x: Tensor, features: Tensor | None) -> Iterator[Tensor]:
        """Yield what each layer of the vertical stack tells the horizontal one; see `autoregressive.RasterNetwork`."""
        v = pad(_signs(x), (0, 0, 1, 0))[..., :-1, :]
        for layer in self.layers:
            gates, conditioning = layer.vertical_gates(v, features)
            yield conditioning
            v = _gated(gates)

    def logits(self, x: Tensor, above: Iterable[Tensor]) -> Tensor:
        """Return the logits of the horizontal stack; see `autoregressive.RasterNetwork`."""
        h = pad(_signs(x), (1, 0))[..., :-1]
        # Layer by layer, so that no more than one is held; the vertical stack's last gate is not asked for.
        for layer, conditioning in zip(self.layers, above, strict=False):
            h = layer.horizontal_step(h, conditioning)
        return self.head(h).squeeze(1)


class ConditionalPixelCNN(nn.Module):
    """The likelihood p(x|z) whose features are what a decoder makes of z. Domain: {0, 1}.

    It has few layers: what these see of the image, z need not tell. Gulrajani, Kumar, Ahmed, Taiga, Visin, Vazquez,
    Courville, "PixelVAE: A Latent Variable Model for Natural Images", ICLR 2017 (https://arxiv.org/abs/1611.05013).

    Args:
        decoder: returns a network of so many channels, as in `likelihoods`.
        images: training images, uint8 (N, height, width).
        channels: as of `PixelCNN`.
        kernels: as of `PixelCNN`.
        num_features: channels of the decoder.
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
        """Return p(x|z), batch shape (...), event shape (height, width)."""
        return self.pixelcnn(self.net(z))


class _Layer(nn.Module):
    """A layer of both stacks; its kernels reach half their width from their own place."""

    def __init__(self, inputs: int, kernel: int, channels: int, num_features: int) -> None:
        super().__init__()
        self.margin = margin = kernel // 2
        self.vertical = nn.Conv2d(inputs, 2 * channels, (margin + 1, kernel))
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.horizontal = nn.Conv2d(inputs, 2 * channels, (1, margin + 1))
        self.condition = nn.Conv2d(num_features, 4 * channels, 1, bias=False) if num_features else None
        self.merge = nn.Conv2d(channels, channels, 1)

    def vertical_gates(self, v: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the gates of the vertical stack, and what they add to those of the horizontal one."""
        gates = self.vertical(pad(v, (self.margin, self.margin, self.margin, 0)))
        if self.condition is None:
            return gates, self.across(gates)
        vertical, horizontal = self.condition(features).chunk(2, 1)
        gates = gates + vertical
        return gates, self.across(gates) + horizontal

    def horizontal_step(self, h: Tensor, conditioning: Tensor) -> Tensor:
        """Return the horizontal stack; the first layer adds the one channel of the image to each of its own."""
        return h + self.merge(_gated(self.horizontal(pad(h, (self.margin, 0))) + conditioning))


def _gated(gates: Tensor) -> Tensor:
    value, gate = gates.chunk(2, 1)
    return value.tanh() * gate.sigmoid()


def _signs(x: Tensor) -> Tensor:
    """Return pixels as -1 and 1, (N, 1, rows, width); beyond the edges there are zeros."""
    return (2 * x - 1).unsqueeze(1)
