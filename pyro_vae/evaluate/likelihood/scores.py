r"""Scores of images in nats, from one set of K importance weights per image.

    rate + distortion  =  mean_k (log q(z_k|x) - log p(z_k))  +  mean_k (-log p(x|z_k))  =  -ELBO
    ELBO               =  mean_k log w_k
    IWAE_k             =  mean over groups of k weights of (logsumexp(log w) - log k)

log p(x) is estimated by IWAE_K, from all K weights: a lower bound in expectation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from pyro_vae.errors import check_count
from pyro_vae.evaluate.likelihood.bounds import iwae_with_error, particle_counts, relative_variance, standard_error
from pyro_vae.evaluate.likelihood.diagnostics import count_khat, khat_threshold, psis
from pyro_vae.evaluate.likelihood.jackknife import jackknife
from pyro_vae.evaluate.likelihood.weights import LogWeightTerms, log_weight_terms
from pyro_vae.trace import Batch, CompiledBackend, Data, EagerBackend, Program, derive_seed

Array = np.ndarray


@dataclass(frozen=True)
class Scores:
    """Scores of N images in nats: float64 arrays (N,), unless another shape is given.

    Attributes:
        num_samples: Number of weights per image, K.
        elbo: ELBO.
        rate: Monte Carlo estimate of KL(q(z|x) || p(z)).
        distortion: Mean of -log p(x|z).
        log_likelihood: Estimate of log p(x), IWAE_K.
        relative_variance: (1/K) var(w) / mean(w)^2, by the delta method the variance of `log_likelihood`.
        ess: Effective sample size (sum w)^2 / sum w^2.
        khat: Tail index of the weights, NaN if undefined. See `psis`.
        psis: Pareto-smoothed estimate of log p(x).
        jvi1: First-order jackknife estimate of log p(x).
        jvi2: Second-order jackknife estimate of log p(x).
        iwae: IWAE_k for each k in `particle_counts`, shape (len(particle_counts), N).
        iwae_se: Standard error of `iwae` over groups of weights, same shape; of a single group, by the delta method.
        reason: Why log weights are undefined, or None. If it is set, all arrays are NaN except `distortion` and, if the
            densities of the latents are defined, `rate`.
    """

    num_samples: int
    elbo: Array
    rate: Array
    distortion: Array
    log_likelihood: Array
    relative_variance: Array
    ess: Array
    khat: Array
    psis: Array
    jvi1: Array
    jvi2: Array
    iwae: Array
    iwae_se: Array
    reason: str | None = None

    @property
    def num_images(self) -> int:
        """Number of images, N."""
        return len(self.elbo)

    @property
    def particle_counts(self) -> list[int]:
        """Group sizes k of the rows of `iwae`."""
        return particle_counts(self.num_samples)

    def __str__(self) -> str:
        """Return one line: means over images in nats, and the number of images whose k-hat is too large."""
        images = f"{self.num_images} image" + "s" * (self.num_images != 1)
        if self.reason:
            distortion = self.distortion.mean()
            return f"no log p(x): {self.reason} (distortion {distortion:.2f} nats, K = {self.num_samples}, {images})"
        error = standard_error(self.log_likelihood)
        mean = f"{self.log_likelihood.mean():.2f}" + ("" if math.isnan(error) else f" +- {error:.2f}")
        bad, num_khat = count_khat(self.khat, self.num_samples)
        khat = f"k-hat > {khat_threshold(self.num_samples):.2f} for {bad} of {num_khat}" if num_khat else "no k-hat"
        return f"log p(x) {mean} nats (ELBO {self.elbo.mean():.2f}, K = {self.num_samples}, {images}); {khat}"

    @staticmethod
    def concatenate(scores: Iterable[Scores]) -> Scores:
        """Concatenate the scores of several batches of images."""
        scores = list(scores)
        columns = {
            name: np.concatenate([getattr(part, name) for part in scores], axis=-1)
            for name in Scores.__dataclass_fields__
            if name not in ("num_samples", "reason")
        }
        # A reason may concern a single batch, e.g. one with samples outside the support of the prior.
        reason = next((part.reason for part in scores if part.reason), None)
        return Scores(scores[0].num_samples, **columns, reason=reason)


def score(
    model: Program,
    guide: Program,
    x: Data,
    num_samples: int,
    *,
    batch_size: int | None = None,
    chunk: int | None = None,
    seed: int | None = None,
    compile: bool = False,
    backend: EagerBackend | None = None,
    progress: bool = False,
) -> Scores:
    """Score images: ELBO, IWAE bounds, log p(x), and diagnostics of the importance weights.

    Args:
        model: Model p(x, z).
        guide: Guide q(z|x).
        x: Images (N, ...), a tuple of positional arguments, or a `Batch`.
        num_samples: Number of weights per image, K.
        batch_size: Images scored at once. None scores all of them, and holds K x N weights in memory. Samples are drawn
            batch by batch: another batch size gives other samples of the same distribution, hence other estimates.
        chunk: Particles scored at once, as in `log_weight_terms`.
        seed: Random seed. With `batch_size`, each batch uses a seed derived from it. None uses fresh entropy.
        compile: Evaluate the program with compiled graphs, compiled once for all batches of the same size.
        backend: Backend that evaluates the program, which overrides `compile`. A `CompiledBackend` that is passed to
            several calls compiles once.
        progress: Show a progress bar over batches, if on a terminal.

    Raises:
        ValueError: `batch_size` is below 1, or as `log_weight_terms`.

    Example:
        With the exact posterior as the guide, every weight is p(x) = N(x; 0, 2 I), here 1 / (4 pi):

        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))
        >>> print(score(model, guide, torch.zeros(3, 2), num_samples=100, seed=0))
        log p(x) -2.53 +- 0.00 nats (ELBO -2.53, K = 100, 3 images); no k-hat
    """
    backend = backend or (CompiledBackend() if compile else EagerBackend())
    x = Batch.of(x)
    if batch_size is None or len(x) == 0:  # an empty batch raises below
        return scores_from_terms(
            log_weight_terms(model, guide, x, num_samples, chunk=chunk, seed=seed, backend=backend)
        )
    check_count("batch_size", batch_size, 1)
    bar = tqdm(
        x.split(batch_size),
        desc="log p(x)",
        unit="batch",
        disable=None if progress else True,
        leave=False,
    )
    return Scores.concatenate(
        scores_from_terms(
            log_weight_terms(
                model, guide, batch, num_samples, chunk=chunk, seed=derive_seed(seed, "batch", index), backend=backend
            )
        )
        for index, batch in enumerate(bar)
    )


def scores_from_terms(terms: LogWeightTerms) -> Scores:
    """Reduce the log weights (K, B) of a batch to scores of its images."""
    log_w = terms.log_weights
    num_samples = len(log_w)
    log_sum, log_sum_squares = log_w.logsumexp(0), (2 * log_w).logsumexp(0)
    ess = (2 * log_sum - log_sum_squares).exp()
    bounds, errors = zip(*(iwae_with_error(log_w, k) for k in particle_counts(num_samples)), strict=True)
    columns = {
        "elbo": log_w.mean(0),
        "rate": (terms.log_posterior - terms.log_prior).mean(0),
        "distortion": -terms.log_likelihood.mean(0),
        "log_likelihood": log_sum - math.log(num_samples),
        "relative_variance": relative_variance(log_w),
        "ess": ess,
        "iwae": torch.stack(bounds),
        "iwae_se": torch.stack(errors),
    }
    columns["jvi1"], columns["jvi2"] = jackknife(log_w)
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    smoothed = psis(log_w.cpu().numpy())
    return Scores(num_samples, **arrays, khat=smoothed.khat, psis=smoothed.log_mean, reason=terms.reason)
