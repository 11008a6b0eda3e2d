r"""Convolutional networks of images, halved twice: 28x28 -> 14x14 -> 7x7, and 32x32, 8x8 or any other size alike.

They have no batch normalisation, which would mix particles and images; residual branches start at zero instead
(Zhang, Dauphin, Ma, "Fixup Initialization", ICLR 2019, https://arxiv.org/abs/1901.09321).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.model.nets.dense import check_pixels, linear, relu

_WIDTHS = (32, 64)  # channels after each halving


class Conv:
    """Convolutional encoders and decoders with rectified linear units (see `nets.Nets`).

    Args:
        pixel_shape: height and width of an image, after its channels where it has some.
        hidden_dim: units of the dense layer between image and code.
        blocks: residual blocks at each resolution.

    Raises:
        ValueError: images that are not of height and width.
    """

    def __init__(self, pixel_shape: Sequence[int], hidden_dim: int, blocks: int = 0) -> None:
        if len(pixel_shape) not in (2, 3):
            raise UserError(f"Images of shape {tuple(pixel_shape)} have no height and width: choose --net mlp.")
        self.pixel_shape = tuple(pixel_shape)
        self.colors = self.pixel_shape[:-2]  # their number, or nothing of gray images
        self.hidden_dim = hidden_dim
        self.blocks = blocks
        self.sizes = [self.pixel_shape[-2:]]
        for _ in _WIDTHS:
            self.sizes.append(tuple(-(-size // 2) for size in self.sizes[-1]))

    def encoder(self, outputs: int) -> nn.Module:
        """Return two halvings and a dense layer."""
        narrow, wide = _WIDTHS
        height, width = self.sizes[-1]
        return _Rows(
            nn.Sequential(
                nn.Identity() if self.colors else nn.Unflatten(1, (1, -1)),
                nn.Conv2d(math.prod(self.colors), narrow, 3, stride=2, padding=1),
                *self._residuals(narrow),
                nn.ReLU(),
                nn.Conv2d(narrow, wide, 3, stride=2, padding=1),
                *self._residuals(wide),
                nn.ReLU(),
                nn.Flatten(),
                relu(wide * height * width, self.hidden_dim),
                linear(self.hidden_dim, outputs),
            ),
            self.pixel_shape,
        )

    def decoder(self, inputs: int, channels: int) -> nn.Module:
        """Return a dense layer and two doublings."""
        narrow, wide = _WIDTHS
        height, width = self.sizes[-1]
        return _Rows(
            nn.Sequential(
                relu(inputs, self.hidden_dim),
                linear(self.hidden_dim, wide * height * width),
                nn.Unflatten(1, (wide, height, width)),
                *self._residuals(wide),
                nn.ReLU(),
                self._double(wide, narrow, 1),
                *self._residuals(narrow),
                nn.ReLU(),
                self._double(narrow, channels * math.prod(self.colors), 0, bias=False),
                *([nn.Unflatten(1, (channels, *self.colors))] if self.colors else []),
            ),
            (inputs,),
        )

    def _residuals(self, channels: int) -> list[nn.Module]:
        return [_Residual(channels) for _ in range(self.blocks)]

    def _double(self, inputs: int, outputs: int, level: int, *, bias: bool = True) -> nn.ConvTranspose2d:
        # Odd sizes were rounded up on the way down; the output padding undoes that.
        height, width = self.sizes[level]
        padding = (1 - height % 2, 1 - width % 2)
        return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=padding, bias=bias)


class _Residual(nn.Module):
    """h + A relu(B relu(h)), with A starting at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(self.first(h.relu()).relu())


class _Rows(nn.Module):
    """A network of one batch dimension, for inputs with any leading dimensions: (..., *event) as rows."""

    def __init__(self, net: nn.Module, event: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.event = event

    def forward(self, value: Tensor) -> Tensor:
        check_pixels(value, self.event)
        leading = value.shape[: -len(self.event)]
        rows = self.net(value.reshape(-1, *self.event))
        return rows.reshape(*leading, *rows.shape[1:])
