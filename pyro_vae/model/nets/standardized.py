r"""Networks for tables, whose encoders standardize the columns of their input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vae.model.nets.dense import NetworkFamily


class Standardize(nn.Module):
    """x -> (x - mean) / std, with the mean and the standard deviation of each column over the training rows.

    Args:
        values: Training rows, floating-point, shape (N, columns).
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        std, mean = torch.std_mean(values.double(), 0)
        dtype = torch.get_default_dtype()
        self.register_buffer("loc", mean.to(dtype))
        # Columns of counts that are constant over the training rows are centered, but not scaled.
        self.register_buffer("scale", std.where(std > 0, 1.0).to(dtype))
        self.loc: Tensor
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return standardized rows, shape (..., columns)."""
        return (x - self.loc) / self.scale


class Log1p(nn.Module):
    """x -> log(1 + x), which brings counts of all magnitudes to a common scale."""

    def forward(self, x: Tensor) -> Tensor:
        """Return log(1 + x) elementwise."""
        return x.log1p()


class StandardizedNets:
    """A network family (see `NetworkFamily`) whose encoders standardize the columns of their input.

    Args:
        nets: Network family for rows with the same number of columns.
        values: Training rows, floating-point, shape (N, columns).
        counts: Whether the columns are counts; if so, log(1 + x) is standardized instead of x.
    """

    def __init__(self, nets: NetworkFamily, values: Tensor, *, counts: bool) -> None:
        self.nets = nets
        self.values = values.log1p() if counts else values
        self.counts = counts

    def encoder(self, num_outputs: int) -> nn.Module:
        """Build an encoder, (..., columns) -> (..., num_outputs)."""
        preprocessing = [Log1p(), Standardize(self.values)] if self.counts else [Standardize(self.values)]
        return nn.Sequential(*preprocessing, self.nets.encoder(num_outputs))

    def decoder(self, num_inputs: int, channels: int) -> nn.Module:
        """Build a decoder, (..., num_inputs) -> (..., channels, columns)."""
        return self.nets.decoder(num_inputs, channels)
