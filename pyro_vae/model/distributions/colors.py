r"""Color images with one mixture per pixel over its three channels: green depends on red, and blue on both.

    p(r, g, b) = sum_c pi_c P(r | c) P(g | r, c) P(b | r, g, c),

where each factor is a `DiscretizedLogistic` with its own scale, and with the locations

    m_r = mu_r,    m_g = mu_g + alpha (r - 1/2),    m_b = mu_b + beta (r - 1/2) + gamma (g - 1/2).

Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017 (https://arxiv.org/abs/1701.05517), section 2.2. They use
values y = 2 x - 1 in [-1, 1] instead of x in [0, 1]. Adding alpha y_r to a location of y amounts to adding
alpha (r - 1/2) to a location of x, so that the coefficients are identical to theirs, and zero means independence.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.model.distributions.pixels import DiscretizedLogistic


class ColorLogisticMixture(dist.TorchDistribution):
    """Independent pixels with three dependent channels, batch shape (...), event shape (3, height, width).

    The mean and the variance have no closed form, because locations depend on channels that are rounded and clamped to
    [0, 1]: e.g. the exact mean of blue is a sum over the 256^2 values of red and green.

    Args:
        logits: Unnormalized log-weights of the C components of a pixel, shape (..., height, width, C).
        loc: mu of each channel, in units of x, shape (..., 3, height, width, C).
        scale: Scale of each channel, in units of x, same shape as `loc`.
        coefficients: alpha, beta and gamma, same shape as `loc`.
    """

    arg_constraints = {  # noqa: RUF012 -- as in torch
        "logits": constraints.real_vector,
        "loc": constraints.real,
        "scale": constraints.positive,
        "coefficients": constraints.real,
    }
    support = constraints.independent(DiscretizedLogistic.support, 3)

    def __init__(
        self, logits: Tensor, loc: Tensor, scale: Tensor, coefficients: Tensor, validate_args: bool | None = None
    ) -> None:
        self.logits, self.loc, self.scale, self.coefficients = logits, loc, scale, coefficients
        super().__init__(loc.shape[:-4], loc.shape[-4:-1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ColorLogisticMixture:
        """Return the same distribution with batch shape `batch_shape`."""
        logits = self.logits.expand(*batch_shape, *self.logits.shape[-3:])
        loc, scale, coefficients = (
            part.expand(*batch_shape, *part.shape[-4:]) for part in (self.loc, self.scale, self.coefficients)
        )
        return ColorLogisticMixture(logits, loc, scale, coefficients, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of images, shape (..., 3, height, width), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x = value.unsqueeze(-1)  # the same for every component
        red, green, _ = (x - 0.5).unbind(-4)
        mu_r, mu_g, mu_b = self.loc.unbind(-4)
        alpha, beta, gamma = self.coefficients.unbind(-4)
        locs = torch.broadcast_tensors(mu_r, mu_g + alpha * red, mu_b + beta * red + gamma * green)
        channels = DiscretizedLogistic(torch.stack(locs, -4), self.scale, validate_args=False).log_prob(x)
        return (self.logits.log_softmax(-1) + channels.sum(-4)).logsumexp(-1).sum((-2, -1))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw images without gradients: for each pixel a component, then red, green and blue."""
        component = dist.Categorical(logits=self.logits).sample(torch.Size(sample_shape))
        index = component[..., None, :, :, None].expand(*self._extended_shape(sample_shape), 1)
        mu, scale, coefficients = (
            part.expand(*index.shape[:-1], -1).gather(-1, index).squeeze(-1).unbind(-3)
            for part in (self.loc, self.scale, self.coefficients)
        )
        alpha, beta, gamma = coefficients
        red = DiscretizedLogistic(mu[0], scale[0]).sample()
        green = DiscretizedLogistic(mu[1] + alpha * (red - 0.5), scale[1]).sample()
        blue = DiscretizedLogistic(mu[2] + beta * (red - 0.5) + gamma * (green - 0.5), scale[2]).sample()
        return torch.stack([red, green, blue], -3)
