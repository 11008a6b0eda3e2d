r"""Deterministic networks over any leading dimensions (K, B, ...): the common interface, and fully connected networks.

A network family is bound to an image shape and builds the networks that posteriors and likelihoods request:

    encoder(num_outputs)              (..., *pixels)    -> (..., num_outputs)
    decoder(num_inputs, channels)     (..., num_inputs) -> (..., channels, *pixels)

The last layer of a decoder has no bias: the likelihood owns the output bias, shape (channels, *pixels).
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
    """Builder of encoders and decoders for one image shape."""

    def encoder(self, num_outputs: int) -> nn.Module:
        """Build an encoder, (..., *pixels) -> (..., num_outputs)."""

    def decoder(self, num_inputs: int, channels: int) -> nn.Module:
        """Build a decoder, (..., num_inputs) -> (..., channels, *pixels)."""


def linear(num_inputs: int, num_outputs: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer with Glorot-uniform weights and zero biases."""
    layer = nn.Linear(num_inputs, num_outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def tanh(num_inputs: int, num_outputs: int) -> nn.Module:
    """Return a hidden layer of tanh units, as in Burda et al. (2016)."""
    return nn.Sequential(linear(num_inputs, num_outputs), nn.Tanh())


def relu(num_inputs: int, num_outputs: int) -> nn.Module:
    """Return a hidden layer of rectified linear units."""
    return nn.Sequential(linear(num_inputs, num_outputs), nn.ReLU())


class Gated(nn.Module):
    """Gated hidden layer, (A h + a) * sigmoid(G h + g), (..., num_inputs) -> (..., num_outputs).

    Tomczak, Welling, "VAE with a VampPrior", AISTATS 2018 (https://arxiv.org/abs/1705.07120).
    """

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.value = linear(num_inputs, num_outputs)
        self.gate = linear(num_inputs, num_outputs)

    def forward(self, h: Tensor) -> Tensor:
        """Return the activations for inputs `h`, shape (..., num_inputs)."""
        return self.value(h) * self.gate(h).sigmoid()


class MLP(nn.Sequential):
    """Fully connected layers, (..., sizes[0]) -> (..., sizes[-1]).

    With two hidden layers of 200 tanh units, this is the network of Burda, Grosse, Salakhutdinov, "Importance Weighted
    Autoencoders", ICLR 2016 (https://arxiv.org/abs/1509.00519).

    Args:
        sizes: Widths of all layers, from input to output.
        layer: Builder of a hidden layer from its numbers of inputs and outputs.
        bias: Whether the last layer has a bias.
    """

    def __init__(self, sizes: Sequence[int], layer: Layer = tanh, *, bias: bool = True) -> None:
        hidden = [layer(*widths) for widths in pairwise(sizes[:-1])]
        super().__init__(*hidden, linear(*sizes[-2:], bias=bias))


class Dense:
    """Fully connected encoders and decoders (see `NetworkFamily`).

    Args:
        pixel_shape: Shape of an image.
        hidden_dim: Width of the hidden layer next to the image.
        layer: Builder of a hidden layer from its numbers of inputs and outputs.
        depth: Number of hidden layers; with 0 the networks are linear.
        shrink: Factor by which the width decreases from one hidden layer to the next, towards the code.
    """

    def __init__(
        self, pixel_shape: Sequence[int], hidden_dim: int, layer: Layer = tanh, depth: int = 2, shrink: int = 1
    ) -> None:
        self.pixel_shape = tuple(pixel_shape)
        self.layer = layer
        self.hidden = [max(1, hidden_dim // shrink**index) for index in range(depth)]

    def encoder(self, num_outputs: int) -> nn.Module:
        """Build the encoder: flattened pixels, hidden layers and a linear output layer."""
        sizes = [math.prod(self.pixel_shape), *self.hidden, num_outputs]
        return nn.Sequential(Flatten(self.pixel_shape), MLP(sizes, self.layer))

    def decoder(self, num_inputs: int, channels: int) -> nn.Module:
        """Build the decoder: hidden layers in reverse order and a linear output layer without bias."""
        sizes = [num_inputs, *reversed(self.hidden), channels * math.prod(self.pixel_shape)]
        return nn.Sequential(MLP(sizes, self.layer, bias=False), nn.Unflatten(-1, (channels, *self.pixel_shape)))


class Flatten(nn.Module):
    """Merge the pixel dimensions: (..., *pixel_shape) -> (..., prod(pixel_shape)).

    Raises:
        ValueError: If the trailing dimensions of the input are not `pixel_shape`.
    """

    def __init__(self, pixel_shape: Sequence[int]) -> None:
        super().__init__()
        self.pixel_shape = tuple(pixel_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, shape (..., *pixel_shape), with its pixel dimensions merged."""
        check_pixels(x, self.pixel_shape)
        return x.flatten(-len(self.pixel_shape))


def check_pixels(x: Tensor, pixel_shape: tuple[int, ...]) -> None:
    """Raise `ValueError` if the trailing dimensions of `x` are not `pixel_shape`."""
    if tuple(x.shape[-len(pixel_shape) :]) != pixel_shape:
        expected = ", ".join(str(size) for size in pixel_shape)
        raise UserError(f"x has shape {tuple(x.shape)}; the model expects (*, {expected}). Reshape the images.")
