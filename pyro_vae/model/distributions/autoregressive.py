r"""Autoregressive distributions of binary images, each pixel conditioned on the preceding ones in raster order.

    p(x|h) = prod_i Bernoulli(x_i; sigmoid(logits_i(x_<i, h)))

Evaluating the probability of an image takes one pass of the network. Sampling is sequential, but does not repeat that
pass for every pixel: the features of the rows above are computed once per row, those of the current row once per pixel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_vae.errors import UserError


class RasterNetwork(Protocol):
    """Network that computes features of the rows above a pixel, and logits from these and the pixels to its left."""

    receptive_rows: int
    """Number of rows above a pixel in its receptive field."""

    @property
    def bias(self) -> Tensor:
        """Logit bias, shape (height, width)."""

    def vertical(self, x: Tensor, features: Tensor | None) -> Iterable[Tensor]:
        """Compute features of the rows above each row.

        The features of a row equal those from the whole image if `x` contains the `receptive_rows` rows above it.

        Args:
            x: Rows, shape (N, rows, width).
            features: Conditioning features of these rows, shape (N, F, rows, width), or None.

        Returns:
            Feature maps, shape (N, C, rows, width), of one or more layers.
        """

    def logits(self, x: Tensor, above: Iterable[Tensor]) -> Tensor:
        """Return logits without bias, shape (N, rows, width), for rows `x` and the features `above` from `vertical`."""


class Autoregressive(dist.TorchDistribution):
    """Autoregressive distribution of binary images, event shape (height, width). Its mean has no closed form.

    Args:
        net: Network that computes the logits.
        features: Conditioning features h, shape (..., F, height, width), or None; (...) is the batch shape.
        batch_shape: Batch shape if there are no features.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 -- as in torch
    support = constraints.independent(constraints.boolean, 2)

    def __init__(
        self,
        net: RasterNetwork,
        features: Tensor | None = None,
        batch_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        self.net, self.features = net, features
        batch_shape = torch.Size(batch_shape) if features is None else features.shape[:-3]
        super().__init__(batch_shape, net.bias.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Autoregressive:
        """Return the same distribution with batch shape `batch_shape`."""
        features = self.features
        if features is not None:
            features = features.expand(*batch_shape, *features.shape[-3:])
        return Autoregressive(self.net, features, batch_shape, validate_args=False)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logit of each pixel of `x`, shape (..., height, width), given the preceding pixels.

        Without features, the logits do not depend on the batch shape, and are not expanded to it.
        """
        leading = x.shape[:-2]
        if self.features is not None:
            leading = torch.broadcast_shapes(leading, self.batch_shape)
        rows, features = self._flatten_leading(x, leading)
        logits = self.net.logits(rows, self.net.vertical(rows, features)) + self.net.bias
        return logits.view(*leading, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of images, shape (..., height, width), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        total = logsigmoid((2 * value - 1) * self.logits(value)).sum((-2, -1))
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw images, without gradients."""
        return self.inpaint(self.net.bias.new_zeros(self._extended_shape(torch.Size(sample_shape))), 0)

    @torch.no_grad()
    def inpaint(self, x: Tensor, num_observed: int) -> Tensor:
        """Sample the remaining pixels from their exact conditional distribution given the first pixels.

        Args:
            x: Images, shape (..., height, width).
            num_observed: Number of observed pixels, in raster order. The values of the others are ignored.

        Returns:
            Completed images, whose leading dimensions are those of `x` broadcast with the batch shape.

        Raises:
            ValueError: If `num_observed` is negative or exceeds the number of pixels.
        """
        height, width = self.event_shape
        if not 0 <= num_observed <= height * width:
            raise UserError(f"num_observed is {num_observed}; it must be between 0 and {height * width}.")
        leading = torch.broadcast_shapes(x.shape[:-2], self.batch_shape)
        rows, features = self._flatten_leading(x, leading)
        raster = torch.arange(height * width, device=x.device).view(height, width)
        rows = torch.where(raster < num_observed, rows, 0)
        for row in range(num_observed // width, height):
            # The logits of a row depend only on this window, in which it is the last row.
            window = slice(max(0, row - self.net.receptive_rows), row + 1)
            window_features = None if features is None else features[..., window, :]
            above = [layer[..., -1:, :] for layer in self.net.vertical(rows[:, window], window_features)]
            for column in range(max(0, num_observed - row * width), width):
                logits = self.net.logits(rows[:, row : row + 1], above)[:, 0, column] + self.net.bias[row, column]
                rows[:, row, column] = torch.bernoulli(logits.sigmoid())
        return rows.view(*leading, height, width)

    def _flatten_leading(self, x: Tensor, leading: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Flatten the leading dimensions: images to (N, height, width), features to (N, F, height, width)."""
        features = self.features
        if features is not None:
            features = features.expand(*leading, *features.shape[-3:]).reshape(-1, *features.shape[-3:])
        return x.expand(*leading, *self.event_shape).reshape(-1, *self.event_shape), features
