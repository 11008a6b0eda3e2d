r"""Likelihoods of counts, such as of genes in a cell: p(x|z) with mean l(z) * softmax(f(z)).

l(z) is the library size, the expected sum of a row, and the softmax says how it is shared among the columns, as in
Lopez, Regier, Cole, Jordan, Yosef, "Deep generative modeling for single-cell transcriptomics", Nature Methods 15 (2018)
(https://doi.org/10.1038/s41592-018-0229-2). There l is a latent of its own, or the observed sum of the row. Here it is
read off z: a density that is given the sum of x is not one of x, and its numbers would compare with no other's.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.model.likelihoods.base import Decoder, Likelihood

_MIN_LOG_MEAN = -30.0  # the exponential of less is 0 in float32, and its logarithm infinite
_MAX_LOG_DISPERSION = 7.0  # beyond 1,100 the distribution is a Poisson one, and lgamma has no digits left in float32


class Poisson(Likelihood):
    """Independent counts, Poisson given z. Domain: 0, 1, 2, ...

    Args:
        decoder: as in `likelihoods`.
        images: training rows (N, columns) of counts, floating-point.
    """

    def __init__(self, decoder: Decoder, images: Tensor) -> None:
        mean = images.double().mean(0)
        init_bias = torch.stack([(mean + 1 / len(images)).log(), mean.sum().log().expand_as(mean)])
        super().__init__(decoder, init_bias)

    def forward(self, z: Tensor) -> dist.Distribution:
        """Return p(x|z), batch shape (...), event shape (columns,)."""
        return self._independent(dist.Poisson(self._log_mean(z).exp()))

    def _log_mean(self, z: Tensor) -> Tensor:
        shares, library = self._outputs(z)
        log_mean = shares.log_softmax(-1) + library.mean(-1, keepdim=True)
        return log_mean.clamp(min=_MIN_LOG_MEAN)


class NegativeBinomial(Poisson):
    """Independent counts, negative binomial given z, with a dispersion for each column. Domain: 0, 1, 2, ...

    With mean m and dispersion d the variance is m (1 + m / d).

    Args:
        decoder: as in `likelihoods`.
        images: training rows (N, columns) of counts, floating-point; the dispersions start at their moments.
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
