r"""Networks without probability, for any leading dimensions (K, B, ...).

A kind of network knows the shape of an image and builds what the parts ask for:

    encoder(num_outputs)              (..., *pixels)    -> (..., num_outputs)
    decoder(num_inputs, channels)     (..., num_inputs) -> (..., channels, *pixels)

A decoder's last layer has no bias: that is one number for each pixel, and the likelihood's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from torch import Tensor, nn

from pyro_vae.errors import UserError

Layer = Callable[[int, int], nn.Module]


class NetworkFamily(Protocol):
    """The networks of one kind, for images of one shape."""

    def encoder(self, num_outputs: int) -> nn.Module:
        """Return a network of images, (..., *pixels) -> (..., num_outputs)."""

    def decoder(self, num_inputs: int, channels: int) -> nn.Module:
        """Return a network of latents, (..., num_inputs) -> (..., channels, *pixels)."""


def linear(num_inputs: int, num_outputs: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer with Glorot-uniform weights and zero biases."""
    layer = nn.Linear(num_inputs, num_outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def tanh(num_inputs: int, num_outputs: int) -> nn.Module:
    """Return a hidden layer of tanh units, those of Burda et al. (2016)."""
    return nn.Sequential(linear(num_inputs, num_outputs), nn.Tanh())


def relu(num_inputs: int, num_outputs: int) -> nn.Module:
    """Return a hidden layer of rectified linear units."""
    return nn.Sequential(linear(num_inputs, num_outputs), nn.ReLU())


class Gated(nn.Module):
    """A hidden layer (A h + a) * sigmoid(G h + g), (..., num_inputs) -> (..., num_outputs).

    Tomczak, Welling, "VAE with a VampPrior", AISTATS 2018 (https://arxiv.org/abs/1705.07120).
    """

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.value = linear(num_inputs, num_outputs)
        self.gate = linear(num_inputs, num_outputs)

    def forward(self, h: Tensor) -> Tensor:
        """Apply the layer."""
        return self.value(h) * self.gate(h).sigmoid()


class MLP(nn.Sequential):
    """Fully connected layers, (..., sizes[0]) -> (..., sizes[-1]).

    With two hidden layers of 200 tanh units this is the network of Burda, Grosse, Salakhutdinov, "Importance
    Weighted Autoencoders", ICLR 2016 (https://arxiv.org/abs/1509.00519).

    Args:
        sizes: widths of all layers, input first.
        layer: builds a hidden layer.
        bias: whether the last layer has one.
    """

    def __init__(self, sizes: Sequence[int], layer: Layer = tanh, *, bias: bool = True) -> None:
        hidden = [layer(*widths) for widths in pairwise(sizes[:-1])]
        super().__init__(*hidden, linear(*sizes[-2:], bias=bias))


class Dense:
    """Fully connected encoders and decoders (see `NetworkFamily`).

    Args:
        pixel_shape: shape of an image.
        hidden_dim: units of the hidden layer beside the image.
        layer: builds a hidden layer.
        depth: number of hidden layers; without any the networks are linear.
        shrink: how many times as wide as the next towards the code a hidden layer is.
    """

    def __init__(
        self, pixel_shape: Sequence[int], hidden_dim: int, layer: Layer = tanh, depth: int = 2, shrink: int = 1
    ) -> None:
        self.pixel_shape = tuple(pixel_shape)
        self.layer = layer
        self.hidden = [max(1, hidden_dim // shrink**index) for index in range(depth)]

    def encoder(self, num_outputs: int) -> nn.Module:
        """Return flattening, hidden layers and a linear one."""
        sizes = [math.prod(self.pixel_shape), *self.hidden, num_outputs]
        return nn.Sequential(Flatten(self.pixel_shape), MLP(sizes, self.layer))

    def decoder(self, num_inputs: int, channels: int) -> nn.Module:
        """Return hidden layers and a linear one."""
        sizes = [num_inputs, *reversed(self.hidden), channels * math.prod(self.pixel_shape)]
        return nn.Sequential(MLP(sizes, self.layer, bias=False), nn.Unflatten(-1, (channels, *self.pixel_shape)))


class Flatten(nn.Module):
    """Merge the pixel dimensions: (..., *pixel_shape) -> (..., prod(pixel_shape)).

    Raises:
        ValueError: x does not end in the pixel shape.
    """

    def __init__(self, pixel_shape: Sequence[int]) -> None:
        super().__init__()
        self.pixel_shape = tuple(pixel_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Flatten x."""
        check_pixels(x, self.pixel_shape)
        return x.flatten(-len(self.pixel_shape))


def check_pixels(x: Tensor, pixel_shape: tuple[int, ...]) -> None:
    """Raise ValueError where x does not end in the pixel shape."""
    if tuple(x.shape[-len(pixel_shape) :]) != pixel_shape:
        wanted = ", ".join(str(size) for size in pixel_shape)
        raise UserError(f"x has shape {tuple(x.shape)}; the model expects (*, {wanted}). Reshape the images.")
