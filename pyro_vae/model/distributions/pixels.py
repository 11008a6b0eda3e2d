r"""Distributions of single pixels that Pyro lacks, or that are less accurate there."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

_MAX_LEVEL = 255  # the highest of the 256 gray levels 0, 1/255, ..., 1


class ContinuousBernoulli(dist.TorchDistribution):
    r"""Continuous Bernoulli, density exp(l x - A(l)) on [0, 1] with A(l) = log((e^l - 1) / l) and logit l.

    All quantities are computed from the logit, and are accurate for any value of it. torch's implementation clamps the
    probability: in float32, its density no longer integrates to 1 for |l| >= 16, which black pixels reach.

    Args:
        logits: Logits l, shape (...), the batch shape.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 -- as in torch
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        """Return the same distribution with batch shape `batch_shape`."""
        return ContinuousBernoulli(self.logits.expand(batch_shape), validate_args=False)

    def _series(self, near_zero: Tensor, closed_form: Any) -> Tensor:
        """Return the Taylor series `near_zero` for small logits, where the closed form is 0/0, and that otherwise."""
        small = self.logits.abs() < 0.1
        # Evaluate the closed form at 1 where the series is used: masking its value would leave NaN gradients.
        return near_zero.where(small, closed_form(self.logits.where(~small, 1.0)))

    @property
    def mean(self) -> Tensor:
        """Mean, the derivative A'(l)."""
        series = 0.5 + self.logits / 12 - self.logits**3 / 720 + self.logits**5 / 30240
        return self._series(series, lambda logits: -1 / torch.expm1(-logits) - 1 / logits)

    @property
    def variance(self) -> Tensor:
        """Variance, the second derivative A''(l)."""
        series = 1 / 12 - self.logits**2 / 240 + self.logits**4 / 6048
        return self._series(series, lambda logits: logits**-2 - (2 * (logits / 2).sinh()) ** -2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by the inverse CDF, log(1 + u (e^l - 1)) / l for negative l, and by symmetry for positive l."""
        uniform = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device)
        negative = -self.logits.abs().clamp(min=1e-5)
        value = torch.log1p(uniform * torch.expm1(negative)) / negative
        return value.where(self.logits < 0, 1 - value)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of values in [0, 1], in nats."""
        if self._validate_args:
            self._validate_sample(value)
        square = self.logits.square()
        normalizer = self._series(  # A(l) - l / 2, which is even
            square / 24 - square.square() / 2880 + square**3 / 181440,
            lambda logits: logits.abs() / 2 + (-torch.expm1(-logits.abs()) / logits.abs()).log(),
        )
        return self.logits * (value - 0.5) - normalizer


class CrossEntropy(dist.Bernoulli):
    r"""Negative binary cross-entropy of gray pixels in [0, 1], x log p + (1 - x) log(1 - p): a loss, not a log-density.

    With p = sigmoid(l), its exponential integrates to tanh(l / 2) / l <= 1/2 over [0, 1]. The continuous Bernoulli is
    its normalized counterpart. Samples are those of a Bernoulli, 0 or 1 with mean p.
    """

    support = constraints.unit_interval
    has_enumerate_support = False
    normalized = False


class _GrayLevels(constraints.Constraint):
    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        level = value * _MAX_LEVEL
        return (level >= 0) & (level <= _MAX_LEVEL) & ((level - level.round()).abs() < 1e-2)  # float32 rounding


_gray_levels = _GrayLevels()


class CategoricalPixels(dist.TorchDistribution):
    """Categorical distribution over the 256 gray levels x = 0, 1/255, ..., 1.

    Args:
        logits: Unnormalized log-probabilities, shape (..., 256).
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012 -- as in torch
    support = _gray_levels

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits.log_softmax(-1)
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CategoricalPixels:
        """Return the same distribution with batch shape `batch_shape`."""
        return CategoricalPixels(self.logits.expand(*batch_shape, -1), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean gray value, in [0, 1]."""
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
        """Return the log-probability of gray values in [0, 1], in nats."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        level = (value * _MAX_LEVEL).round().long().expand(shape).unsqueeze(-1)
        return self.logits.expand(*shape, -1).gather(-1, level).squeeze(-1)


class DiscretizedLogistic(dist.TorchDistribution):
    r"""Logistic distribution rounded to the nearest gray level, with its tails assigned to the end levels.

    The interval of level x ends at a, b = (x +- 1/510 - loc) / scale. Its probability is

        sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)),

    whose logarithm is accurate in the tails, too. Salimans, Karpathy, Chen, Kingma, "PixelCNN++", ICLR 2017
    (https://arxiv.org/abs/1701.05517).

    Args:
        loc: Location, in units of x, shape (...), the batch shape.
        scale: Scale, in units of x, same shape as `loc`.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012 -- as in torch
    support = _gray_levels

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        """Return the same distribution with batch shape `batch_shape`."""
        return DiscretizedLogistic(self.loc.expand(batch_shape), self.scale.expand(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean gray value, in [0, 1], from E[level] = sum_l P(level > l)."""
        return torch.as_tensor(sum(self._prob_above(level) for level in range(_MAX_LEVEL))) / _MAX_LEVEL

    @property
    def variance(self) -> Tensor:
        """Variance of the gray value, from E[level^2] = sum_l (2 l + 1) P(level > l)."""
        square = sum((2 * level + 1) * self._prob_above(level) for level in range(_MAX_LEVEL)) / _MAX_LEVEL**2
        return square - self.mean.square()

    def _prob_above(self, level: int) -> Tensor:
        return ((self.loc - (level + 0.5) / _MAX_LEVEL) / self.scale).sigmoid()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw gray values in [0, 1]."""
        value = dist.Logistic(self.loc, self.scale).sample(torch.Size(sample_shape))
        return (value.clamp(0, 1) * _MAX_LEVEL).round() / _MAX_LEVEL

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of gray values in [0, 1], in nats."""
        if self._validate_args:
            self._validate_sample(value)
        level = (value * _MAX_LEVEL).round()
        upper, lower = (((level + side) / _MAX_LEVEL - self.loc) / self.scale for side in (0.5, -0.5))
        # The interval of an end level extends to infinity on one side, where the corresponding terms are log 1 = 0.
        below_upper = logsigmoid(upper).where(level < _MAX_LEVEL, 0)
        above_lower = logsigmoid(-lower).where(level > 0, 0)
        within = (-(-1 / (_MAX_LEVEL * self.scale)).expm1()).log().where((level > 0) & (level < _MAX_LEVEL), 0)
        return below_upper + above_lower + within
