r"""Scores of images, in nats, from one set of importance weights per image.

ELBO    = mean_k log w_k = -(rate + distortion)
IWAE_k  = mean over groups of k of (logsumexp - log k)
log p(x) is estimated by IWAE_K, with all K weights: a lower bound in expectation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from pyro_vae.errors import UserError
from pyro_vae.evaluate.likelihood.bounds import error_over_groups, iwae, particle_counts, standard_error
from pyro_vae.evaluate.likelihood.diagnostics import count_khat, khat_threshold, psis
from pyro_vae.evaluate.likelihood.jackknife import jackknife
from pyro_vae.evaluate.likelihood.weights import LogWeightTerms, log_weight_terms
from pyro_vae.trace import Batch, CompiledBackend, Data, EagerBackend, Program, derive_seed

Array = np.ndarray


@dataclass(frozen=True)
class Scores:
    """Scores of N images, float64 arrays (N,) unless a shape is given; nats.

    `iwae` is (len(ladder), N), and `iwae_se` its standard error over groups, NaN for a single one.
    `relative_variance` is that of the estimate of p(x), (1/K) var(w) / mean(w)^2, which by the delta method is the
    variance of log p(x). `psis` is the Pareto-smoothed estimate of log p(x), `jvi1` and `jvi2` the jackknife-corrected
    ones; `khat` is NaN where it does not exist. A program without log weights has a distortion, and with a loss in the
    place of a likelihood a rate; all else is NaN, and `reason` says why.
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
        """N."""
        return len(self.elbo)

    @property
    def particle_counts(self) -> list[int]:
        """Group sizes of the rows of `iwae`."""
        return particle_counts(self.num_samples)

    def __str__(self) -> str:
        """Return one line: means over images, in nats, and for how many of them k-hat is too large."""
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
        """Join the scores of several batches of images."""
        scores = list(scores)
        columns = {
            name: np.concatenate([getattr(part, name) for part in scores], axis=-1)
            for name in Scores.__dataclass_fields__
            if name not in ("num_samples", "reason")
        }
        # A reason may concern one batch alone, whose draws have left the support of the prior.
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
    """Score images: ELBO, IWAE bounds, log p(x) and the diagnostics of their importance weights.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        x: images (N, ...), a tuple of the programs' arguments, or a `Batch`.
        num_samples: K.
        batch_size: images scored at once. None scores all at once, whose K x N weights then exist together.
        chunk: particles scored at once, as in `log_weight_terms`.
        seed: of the draws; with a batch size, each batch draws with a seed derived from it. None draws afresh.
        compile: whether the programs are read by compiled graphs, compiled once for all batches of the same size.
        backend: how the programs are read, instead of `compile`; a `CompiledBackend` serves later calls as well.
        progress: whether a bar shows how many batches are done, on a terminal.

    Raises:
        ValueError: the batch size is below 1, or as `log_weight_terms`.
    """
    backend = backend or (CompiledBackend() if compile else EagerBackend())
    x = Batch.of(x)
    if batch_size is None or len(x) == 0:  # which refuses no images
        return scores_from_terms(
            log_weight_terms(model, guide, x, num_samples, chunk=chunk, seed=seed, backend=backend)
        )
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
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
    """Reduce the weights of a batch, (K, B), to scores of its images."""
    log_w = terms.log_weights
    num_samples = len(log_w)
    log_sum, log_sum_squares = log_w.logsumexp(0), (2 * log_w).logsumexp(0)
    ess = (2 * log_sum - log_sum_squares).exp()
    # (1/K) var(w) / mean(w)^2 with the unbiased variance, which does not exist for one weight.
    degrees_of_freedom = num_samples - 1 if num_samples > 1 else math.nan
    relative_variance = (1 / ess - 1 / num_samples) * num_samples / degrees_of_freedom
    groups = [iwae(log_w, k) for k in particle_counts(num_samples)]
    columns = {
        "elbo": log_w.mean(0),
        "rate": (terms.log_posterior - terms.log_prior).mean(0),
        "distortion": -terms.log_likelihood.mean(0),
        "log_likelihood": log_sum - math.log(num_samples),
        "relative_variance": relative_variance.clamp(min=0.0),
        "ess": ess,
        "iwae": torch.stack([group.mean(0) for group in groups]),
        "iwae_se": torch.stack([error_over_groups(group) for group in groups]),
    }
    columns["jvi1"], columns["jvi2"] = jackknife(log_w)
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    smoothed = psis(log_w.cpu().numpy())
    return Scores(num_samples, **arrays, khat=smoothed.khat, psis=smoothed.log_mean, reason=terms.reason)
