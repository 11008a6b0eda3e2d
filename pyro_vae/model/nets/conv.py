r"""Convolutional networks for images of any size, with strided stages that halve it: 28x28 -> 14x14 -> 7x7.

There are two stages for images with a longer side below 64 pixels, and one more whenever that side doubles from 64 on
(64: three, 128: four). That side then ends at 8 to 16 pixels, so that the dense layer does not grow with the image. The
number of channels doubles at each stage, up to 256.

There is no batch normalization, because it would couple particles and images. Residual branches are initialized to zero
instead (Zhang, Dauphin, Ma, "Fixup Initialization", ICLR 2019, https://arxiv.org/abs/1901.09321). If a stage has more
than two of them, each is scaled by 2/depth: Adam changes every weight by about the learning rate, so that the first
updates of many branches would add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.model.nets.dense import check_pixels, linear, relu

_MAX_CHANNELS = 256  # per stage, unless `width` is larger


class Conv:
    """Convolutional encoders and decoders with rectified linear units (see `nets.NetworkFamily`).

    Args:
        pixel_shape: (height, width) or (colors, height, width).
        hidden_dim: Width of the dense layer between the convolutions and the code.
        depth: Number of residual blocks per stage.
        width: Number of channels of the first stage, which has half the resolution of the image.

    Raises:
        ValueError: If `pixel_shape` has fewer than two or more than three dimensions.
    """

    def __init__(self, pixel_shape: Sequence[int], hidden_dim: int, depth: int = 0, width: int = 32) -> None:
        if len(pixel_shape) not in (2, 3):
            raise UserError(f"Images of shape {tuple(pixel_shape)} have no height and width; use --net mlp.")
        self.pixel_shape = tuple(pixel_shape)
        self.colors = self.pixel_shape[:-2]  # (colors,), or () for grayscale images
        self.hidden_dim = hidden_dim
        self.depth = depth
        halvings = max(2, max(self.pixel_shape[-2:]).bit_length() - 4)
        self.widths = [min(width * 2**level, max(width, _MAX_CHANNELS)) for level in range(halvings)]
        self.sizes = [self.pixel_shape[-2:]]
        for _ in self.widths:
            self.sizes.append(tuple(-(-size // 2) for size in self.sizes[-1]))

    def encoder(self, num_outputs: int) -> nn.Module:
        """Build the encoder: stages of strided convolutions and residual blocks, then two dense layers."""
        layers: list[nn.Module] = [nn.Identity() if self.colors else nn.Unflatten(1, (1, -1))]
        channels = math.prod(self.colors)
        for width in self.widths:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), *self._residuals(width), nn.ReLU()]
            channels = width
        layers += [
            nn.Flatten(),
            relu(channels * math.prod(self.sizes[-1]), self.hidden_dim),
            linear(self.hidden_dim, num_outputs),
        ]
        return _FlattenLeading(nn.Sequential(*layers), self.pixel_shape)

    def decoder(self, num_inputs: int, channels: int) -> nn.Module:
        """Build the decoder: two dense layers, then stages of residual blocks and transposed convolutions."""
        smallest = (self.widths[-1], *self.sizes[-1])
        layers: list[nn.Module] = [
            relu(num_inputs, self.hidden_dim),
            linear(self.hidden_dim, math.prod(smallest)),
            nn.Unflatten(1, smallest),
        ]
        outputs = [channels * math.prod(self.colors), *self.widths]  # output channels of each stage
        for level in reversed(range(len(self.widths))):
            width = self.widths[level]
            layers += [
                *self._residuals(width),
                nn.ReLU(),
                self._double(width, outputs[level], level, bias=level > 0),
            ]
        if self.colors:
            layers.append(nn.Unflatten(1, (channels, *self.colors)))
        return _FlattenLeading(nn.Sequential(*layers), (num_inputs,))

    def _residuals(self, channels: int) -> list[nn.Module]:
        return [_Residual(channels, min(1.0, 2 / self.depth)) for _ in range(self.depth)]

    def _double(self, num_inputs: int, num_outputs: int, level: int, *, bias: bool) -> nn.ConvTranspose2d:
        # The encoder rounds odd sizes up when it halves them; the output padding reverses that.
        height, width = self.sizes[level]
        padding = (1 - height % 2, 1 - width % 2)
        return nn.ConvTranspose2d(num_inputs, num_outputs, 3, stride=2, padding=1, output_padding=padding, bias=bias)


class ResNet(Conv):
    """`Conv` with two residual blocks per stage by default."""

    def __init__(self, pixel_shape: Sequence[int], hidden_dim: int, depth: int = 2, width: int = 32) -> None:
        super().__init__(pixel_shape, hidden_dim, depth, width)


class _Residual(nn.Module):
    """h + scale * A relu(B relu(h)), where A is initialized to zero."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor) -> Tensor:
        return torch.add(h, self.second(self.first(h.relu()).relu()), alpha=self.scale)


class _FlattenLeading(nn.Module):
    """Wrap a network with a single batch dimension to take inputs (..., *event), by flattening leading dimensions."""

    def __init__(self, net: nn.Module, event: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.event = event

    def forward(self, value: Tensor) -> Tensor:
        check_pixels(value, self.event)
        leading = value.shape[: -len(self.event)]
        rows = self.net(value.reshape(-1, *self.event))
        return rows.reshape(*leading, *rows.shape[1:])
