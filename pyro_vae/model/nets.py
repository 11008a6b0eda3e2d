r"""Networks without probability: vectors in, vectors out, any leading dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Sequential):
    """Fully connected layers with tanh between them, Glorot-uniform weights and zero biases.

    With two hidden layers of 200 units this is the network of Burda, Grosse, Salakhutdinov, "Importance
    Weighted Autoencoders", ICLR 2016 (https://arxiv.org/abs/1509.00519).

    Shapes: (..., sizes[0]) -> (..., sizes[-1]).

    Args:
        sizes: widths of all layers, input first.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.Tanh()]
        super().__init__(*layers[:-1])

    @property
    def last(self) -> nn.Linear:
        """The output layer, whose bias a likelihood initialises."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer


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
        if tuple(x.shape[-len(self.pixel_shape) :]) != self.pixel_shape:
            wanted = ", ".join(str(size) for size in self.pixel_shape)
            raise ValueError(f"x has shape {tuple(x.shape)}; the model expects (*, {wanted}). Reshape the images.")
        return x.flatten(-len(self.pixel_shape))
