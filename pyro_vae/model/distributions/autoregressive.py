r"""Distributions of binary images by their pixels in raster order, each given those before it.

    p(x|h) = prod_i Bernoulli(x_i; sigmoid(logits_i(x_<i, h)))

The density of an image takes one pass of a network. Drawing one takes its pixels in turn, but not a pass for each: what
the rows above say is computed once for a row, what stands to the left once for a pixel.
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
    """What gives the logits, in two parts: of the rows above a pixel, and of what stands to its left as well."""

    receptive_rows: int
    """Rows above its own that a pixel depends on."""

    @property
    def bias(self) -> Tensor:
        """Of the logits, (height, width)."""

    def vertical(self, x: Tensor, features: Tensor | None) -> Iterable[Tensor]:
        """Map rows (N, rows, width), and the feature maps of these, (N, F, rows, width), to maps (N, C, rows, width).

        Those of a row depend on the rows above it, and are those of the whole image where there are `receptive_rows`.
        """

    def logits(self, x: Tensor, above: Iterable[Tensor]) -> Tensor:
        """Map rows (N, rows, width) and what stands above them to logits (N, rows, width), less their bias."""


class Autoregressive(dist.TorchDistribution):
    """A distribution of binary images, event shape (height, width). Its mean has no closed form.

    Args:
        net: gives the logits.
        features: feature maps h, (..., F, height, width), batch shape (...), or None.
        batch_shape: of a distribution without features.
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
        """Return the same distribution under more batch dimensions."""
        features = self.features
        if features is not None:
            features = features.expand(*batch_shape, *features.shape[-3:])
        return Autoregressive(self.net, features, batch_shape, validate_args=False)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logit of each pixel of x, (..., height, width), given those before it.

        Without features they are those of x alone, whatever the batch shape.
        """
        leading = x.shape[:-2]
        if self.features is not None:
            leading = torch.broadcast_shapes(leading, self.batch_shape)
        rows, features = self._in_rows(x, leading)
        logits = self.net.logits(rows, self.net.vertical(rows, features)) + self.net.bias
        return logits.view(*leading, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Score images (..., height, width), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        total = logsigmoid((2 * value - 1) * self.logits(value)).sum((-2, -1))
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw images, without gradients."""
        return self.inpaint(self.net.bias.new_zeros(self._extended_shape(torch.Size(sample_shape))), 0)

    @torch.no_grad()
    def inpaint(self, x: Tensor, num_observed: int) -> Tensor:
        """Draw the rest of images from its exact conditional distribution given their first pixels.

        Args:
            x: images, (..., height, width).
            num_observed: number of pixels, in raster order, that are held; the others are not looked at.

        Returns:
            Images, of the leading dimensions of x and of the batch shape together.

        Raises:
            ValueError: more pixels are seen than there are, or fewer than none.
        """
        height, width = self.event_shape
        if not 0 <= num_observed <= height * width:
            raise UserError(f"num_observed is {num_observed}; it must lie between 0 and {height * width}.")
        leading = torch.broadcast_shapes(x.shape[:-2], self.batch_shape)
        rows, features = self._in_rows(x, leading)
        raster = torch.arange(height * width, device=x.device).view(height, width)
        rows = torch.where(raster < num_observed, rows, 0)
        for row in range(num_observed // width, height):
            near = slice(max(0, row - self.net.receptive_rows), row + 1)
            known = None if features is None else features[..., near, :]
            above = [part[..., -1:, :] for part in self.net.vertical(rows[:, near], known)]
            for column in range(max(0, num_observed - row * width), width):
                logits = self.net.logits(rows[:, row : row + 1], above)[:, 0, column] + self.net.bias[row, column]
                rows[:, row, column] = torch.bernoulli(logits.sigmoid())
        return rows.view(*leading, height, width)

    def _in_rows(self, x: Tensor, leading: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Bring images and features to one batch dimension, (N, height, width) and (N, F, height, width)."""
        features = self.features
        if features is not None:
            features = features.expand(*leading, *features.shape[-3:]).reshape(-1, *features.shape[-3:])
        return x.expand(*leading, *self.event_shape).reshape(-1, *self.event_shape), features
