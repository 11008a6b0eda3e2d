r"""Distributions of single pixels that Pyro lacks, or has with fewer digits."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

_MAX_LEVEL = 255  # the highest of the 256 gray levels 0, 1/255, ..., 1


class ContinuousBernoulli(dist.TorchDistribution):
    r"""The density exp(l x - A(l)) on [0, 1], A(l) = log((e^l - 1) / l), with logit l.

    Everything is computed from the logit, exact at any of them: torch's own clamps the probability, and in float32
    no longer integrates to 1 from logits of 16 on, which black pixels reach.

    Args:
        logits: l.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 -- as in torch
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        """Return the same distribution under more batch dimensions."""
        return ContinuousBernoulli(self.logits.expand(batch_shape), validate_args=False)

    def _series(self, near_zero: Tensor, elsewhere: Any) -> Tensor:
        """Return a function of the logit: its series about zero, where its formula is 0/0, and that elsewhere."""
        small = self.logits.abs() < 0.1
        return near_zero.where(small, elsewhere(self.logits.where(~small, 1.0)))

    @property
    def mean(self) -> Tensor:
        """The derivative of A."""
        series = 0.5 + self.logits / 12 - self.logits**3 / 720 + self.logits**5 / 30240
        return self._series(series, lambda logits: -1 / torch.expm1(-logits) - 1 / logits)

    @property
    def variance(self) -> Tensor:
        """The second derivative of A."""
        series = 1 / 12 - self.logits**2 / 240 + self.logits**4 / 6048
        return self._series(series, lambda logits: logits**-2 - (2 * (logits / 2).sinh()) ** -2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by the inverse of the distribution function, log(1 + u (e^l - 1)) / l for negative l."""
        uniform = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device)
        negative = -self.logits.abs().clamp(min=1e-5)
        value = torch.log1p(uniform * torch.expm1(negative)) / negative
        return value.where(self.logits < 0, 1 - value)

    def log_prob(self, value: Tensor) -> Tensor:
        """Score values in [0, 1], in nats."""
        if self._validate_args:
            self._validate_sample(value)
        square = self.logits.square()
        normalizer = self._series(  # A(l) - l / 2, which is even
            square / 24 - square.square() / 2880 + square**3 / 181440,
            lambda logits: logits.abs() / 2 + (-torch.expm1(-logits.abs()) / logits.abs()).log(),
        )
        return self.logits * (value - 0.5) - normalizer


class CrossEntropy(dist.Bernoulli):
    r"""The binary cross-entropy of gray pixels in [0, 1], log p(x) = x log p + (1 - x) log(1 - p): a loss.

    With p = sigmoid(l) its exponential integrates to tanh(l / 2) / l, which is 1/2 at most: the continuous Bernoulli is
    what normalizes it. What is drawn are the 0 and 1 of a Bernoulli, whose mean is p.
    """

    support = constraints.unit_interval
    has_enumerate_support = False
    normalized = False


class _GrayLevels(constraints.Constraint):
    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        level = value * _MAX_LEVEL
        return (level >= 0) & (level <= _MAX_LEVEL) & ((level - level.round()).abs() < 1e-2)  # room for float32


_gray_levels = _GrayLevels()


class CategoricalPixels(dist.TorchDistribution):
    """A probability for each of the 256 gray levels x = 0, 1/255, ..., 1.

    Args:
        logits: unnormalized log-probabilities, (..., 256).
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012 -- as in torch
    support = _gray_levels

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits.log_softmax(-1)
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CategoricalPixels:
        """Return the same distribution under more batch dimensions."""
        return CategoricalPixels(self.logits.expand(*batch_shape, -1), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean gray, in [0, 1]."""
        return self.logits.exp() @ self._levels

    @property
    def variance(self) -> Tensor:
        """Variance of the gray value."""
        return (self.logits.exp() @ self._levels.square()) - self.mean.square()

    @property
    def _levels(self) -> Tensor:
        return torch.linspace(0, 1, _MAX_LEVEL + 1, dtype=self.logits.dtype, device=self.logits.device)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw gray values in [0, 1]."""
        level = dist.Categorical(logits=self.logits).sample(torch.Size(sample_shape))
        return level.to(self.logits.dtype) / _MAX_LEVEL

    def log_prob(self, value: Tensor) -> Tensor:
        """Score gray values in [0, 1], in nats."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        level = (value * _MAX_LEVEL).round().long().expand(shape).unsqueeze(-1)
        return self.logits.expand(*shape, -1).gather(-1, level).squeeze(-1)


class DiscretizedLogistic(dist.TorchDistribution):
    r"""The logistic distribution rounded to the nearest gray level, the end levels taking what lies beyond them.

    With a, b = (x +- 1/510 - loc) / scale the ends of a level's interval, its probability is

        sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)),

    whose logarithm loses no digits in the tails. Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017
    (https://arxiv.org/abs/1701.05517).

    Args:
        loc: in units of x.
        scale: of the shape of loc.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012 -- as in torch
    support = _gray_levels

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        """Return the same distribution under more batch dimensions."""
        return DiscretizedLogistic(self.loc.expand(batch_shape), self.scale.expand(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean gray, in [0, 1]: the sum over levels of the chance to lie above."""
        return torch.as_tensor(sum(self._above(level) for level in range(_MAX_LEVEL))) / _MAX_LEVEL

    @property
    def variance(self) -> Tensor:
        """Variance of the gray value, from its square: the sum over levels of 2 level + 1 times that chance."""
        square = sum((2 * level + 1) * self._above(level) for level in range(_MAX_LEVEL)) / _MAX_LEVEL**2
        return square - self.mean.square()

    def _above(self, level: int) -> Tensor:
        return ((self.loc - (level + 0.5) / _MAX_LEVEL) / self.scale).sigmoid()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw gray values in [0, 1]."""
        value = dist.Logistic(self.loc, self.scale).sample(torch.Size(sample_shape))
        return (value.clamp(0, 1) * _MAX_LEVEL).round() / _MAX_LEVEL

    def log_prob(self, value: Tensor) -> Tensor:
        """Score gray values in [0, 1], in nats."""
        if self._validate_args:
            self._validate_sample(value)
        level = (value * _MAX_LEVEL).round()
        upper, lower = (((level + side) / _MAX_LEVEL - self.loc) / self.scale for side in (0.5, -0.5))
        # Of an end level one end lies at infinity, and its terms are 0.
        below_upper = logsigmoid(upper).where(level < _MAX_LEVEL, 0)
        above_lower = logsigmoid(-lower).where(level > 0, 0)
        within = (-(-1 / (_MAX_LEVEL * self.scale)).expm1()).log().where((level > 0) & (level < _MAX_LEVEL), 0)
        return below_upper + above_lower + within
