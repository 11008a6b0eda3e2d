r"""Likelihoods of counts, e.g. of genes in a cell: p(x|z) with mean l(z) * softmax(f(z)).

l(z) is the library size, the expected sum of a row, and the softmax distributes it over the columns, as in Lopez,
Regier, Cole, Jordan, Yosef, "Deep generative modeling for single-cell transcriptomics", Nature Methods 15 (2018)
(https://doi.org/10.1038/s41592-018-0229-2). There, l is a separate latent or the observed sum of the row. Here, the
decoder predicts it from z: a density conditioned on the sum of x is not a density of x, and its values could not be
compared with those of other likelihoods.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.model.likelihoods.base import Decoder, Likelihood

_MIN_LOG_MEAN = -30.0  # keeps the mean well above 0 in float32, where its logarithm would be infinite
# A dispersion of exp(7), about 1,100. Beyond it, the distribution is nearly Poisson, and differences of lgamma lose
# their precision in float32.
_MAX_LOG_DISPERSION = 7.0


class Poisson(Likelihood):
    """Independent counts with a Poisson distribution given z. Domain: 0, 1, 2, ...

    Args:
        decoder: Function that returns a network with the given number of output channels.
        images: Training rows of counts, floating-point, shape (N, columns).
    """

    def __init__(self, decoder: Decoder, images: Tensor) -> None:
        mean = images.double().mean(0)
        init_bias = torch.stack([(mean + 1 / len(images)).log(), mean.sum().log().expand_as(mean)])
        super().__init__(decoder, init_bias)

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (columns,)."""
        return self._independent(dist.Poisson(self._log_mean(z).exp()))

    def _log_mean(self, z: Tensor) -> Tensor:
        logits, library = self._outputs(z)
        log_mean = logits.log_softmax(-1) + library.mean(-1, keepdim=True)
        return log_mean.clamp(min=_MIN_LOG_MEAN)


class NegativeBinomial(Poisson):
    """Independent counts with a negative binomial distribution given z. Domain: 0, 1, 2, ...

    With mean m and dispersion d, the variance is m (1 + m / d). Each column has a learned dispersion, which does not
    depend on z.

    Args:
        decoder: Function that returns a network with the given number of output channels.
        images: Training rows of counts, floating-point, shape (N, columns). The dispersions are initialized from their
            means and variances.
    """

    def __init__(self, decoder: Decoder, images: Tensor) -> None:
        super().__init__(decoder, images)
        variance, mean = torch.var_mean(images.double(), 0)
        excess = (variance - mean).clamp(min=1e-6)
        init_dispersion = (mean.square() / excess).clamp(0.05, 100.0).log()
        self.log_dispersion = nn.Parameter(init_dispersion.to(torch.get_default_dtype()))

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (columns,)."""
        log_dispersion = self.log_dispersion.clamp(max=_MAX_LOG_DISPERSION)
        log_odds = self._log_mean(z) - log_dispersion
        return self._independent(dist.NegativeBinomial(log_dispersion.exp(), logits=log_odds))
