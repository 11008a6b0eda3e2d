r"""Networks of tables: the columns are standardized before an encoder reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vae.model.nets.dense import NetworkFamily


class Standardize(nn.Module):
    """x -> (x - mean) / standard deviation of each column, over the training rows.

    Args:
        values: training rows (N, columns), floating-point.
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        std, mean = torch.std_mean(values.double(), 0)
        dtype = torch.get_default_dtype()
        self.register_buffer("loc", mean.to(dtype))
        # A count that is the same in every training row tells nothing apart, and is only centered.
        self.register_buffer("scale", std.where(std > 0, 1.0).to(dtype))
        self.loc: Tensor
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Standardize x (..., columns)."""
        return (x - self.loc) / self.scale


class Log1p(nn.Module):
    """x -> log(1 + x), under which counts of any size have a scale in common."""

    def forward(self, x: Tensor) -> Tensor:
        """Return log(1 + x)."""
        return x.log1p()


class StandardizedNets:
    """The networks of a kind (see `NetworkFamily`), whose encoders read standardized columns.

    Args:
        nets: networks of rows of so many columns.
        values: training rows (N, columns), floating-point.
        counts: whether the columns are counts, which are standardized on the scale of log(1 + x).
    """

    def __init__(self, nets: NetworkFamily, values: Tensor, *, counts: bool) -> None:
        self.nets = nets
        self.values = values.log1p() if counts else values
        self.counts = counts

    def encoder(self, num_outputs: int) -> nn.Module:
        """Return a network of rows, (..., columns) -> (..., num_outputs)."""
        before = [Log1p(), Standardize(self.values)] if self.counts else [Standardize(self.values)]
        return nn.Sequential(*before, self.nets.encoder(num_outputs))

    def decoder(self, num_inputs: int, channels: int) -> nn.Module:
        """Return a network of latents, (..., num_inputs) -> (..., channels, columns)."""
        return self.nets.decoder(num_inputs, channels)
