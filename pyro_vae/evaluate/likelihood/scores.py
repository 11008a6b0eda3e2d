r"""Scores of images in nats, from K importance weights per image.

    rate + distortion  =  mean_k (log q(z_k|x) - log p(z_k))  +  mean_k (-log p(x|z_k))  =  -ELBO
    ELBO               =  mean_k log w_k
    IWAE_k             =  mean over groups of k weights of (logsumexp(log w) - log k)

These describe the guide. log p(x) is estimated by the log of the mean of K weights, those of the guide (IWAE_K) or of
an adapted proposal: a lower bound in expectation either way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pyro_vae.evaluate.likelihood.bounds import iwae_with_error, particle_counts, relative_variance, standard_error
from pyro_vae.evaluate.likelihood.diagnostics import count_khat, khat_threshold, psis
from pyro_vae.evaluate.likelihood.jackknife import jackknife
from pyro_vae.evaluate.likelihood.weights import LogWeightTerms
from pyro_vae.evaluate.proposals.adaptive import AdaptedWeights

Array = np.ndarray


@dataclass(frozen=True)
class Scores:
    """Scores of N images in nats: float64 arrays (N,), unless another shape is given.

    Attributes:
        num_samples: Number of weights per image, K.
        elbo: ELBO.
        rate: Monte Carlo estimate of KL(q(z|x) || p(z)).
        distortion: Mean of -log p(x|z).
        log_likelihood: Estimate of log p(x) from K weights of the proposal; if that is the guide, IWAE_K.
        relative_variance: (1/K) var(w) / mean(w)^2, by the delta method the variance of `log_likelihood`.
        ess: Effective sample size (sum w)^2 / sum w^2.
        khat: Tail index of the weights, NaN if undefined. See `psis`.
        psis: Pareto-smoothed estimate of log p(x).
        jvi1: First-order jackknife estimate of log p(x).
        jvi2: Second-order jackknife estimate of log p(x).
        iwae: IWAE_k for each k in `particle_counts`, shape (len(particle_counts), N).
        iwae_se: Standard error of `iwae` over groups of weights, same shape; of a single group, by the delta method.
        adapted: Whether the weights of `log_likelihood`, `relative_variance`, `ess`, `khat`, `psis`, `jvi1` and `jvi2`
            belong to a proposal adapted to the image instead of the guide, bool.
        evaluations: Number of evaluations of log p(x, z), those of the adaptation included.
        reason: Why log weights are undefined, or None. If it is set, all other arrays are NaN except `distortion` and,
            if the densities of the latents are defined, `rate`.
        proposal: Proposal that was requested, one of `PROPOSALS`.
        not_adapted: Why the guide is the proposal of some images although another one was requested, or None.
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
    adapted: Array
    evaluations: Array
    reason: str | None = None
    proposal: str = "guide"
    not_adapted: str | None = None

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
            for name, value in vars(scores[0]).items()
            if isinstance(value, np.ndarray)
        }
        # A reason may concern a single batch, e.g. one with samples outside the support of the prior.
        reason = next((part.reason for part in scores if part.reason), None)
        not_adapted = next((part.not_adapted for part in scores if part.not_adapted), None)
        first = scores[0]
        return Scores(first.num_samples, **columns, reason=reason, proposal=first.proposal, not_adapted=not_adapted)

    def with_adapted(self, proposal: str, weights: AdaptedWeights) -> Scores:
        """Return these scores with log p(x) and its diagnostics from the weights of an adapted proposal.

        Images with a weight that is NaN keep the weights of the guide.

        Args:
            proposal: Name of the proposal.
            weights: Weights of as many particles.
        """
        adapted = ~torch.isnan(weights.log_w).any(0).cpu().numpy()
        columns = {
            name: np.where(adapted, column, getattr(self, name)) for name, column in _estimates(weights.log_w).items()
        }
        return replace(
            self,
            **columns,  # type: ignore[arg-type]
            adapted=adapted,
            evaluations=self.evaluations + weights.evaluations.cpu().numpy(),
            proposal=proposal,
            not_adapted=None if adapted.all() else "a log-density near the posterior is NaN",
        )


def scores_from_terms(terms: LogWeightTerms) -> Scores:
    """Reduce the log weights (K, B) of a batch to scores of its images."""
    log_w = terms.log_weights
    num_samples, num_images = log_w.shape
    bounds, errors = zip(*(iwae_with_error(log_w, k) for k in particle_counts(num_samples)), strict=True)
    columns = {
        "elbo": log_w.mean(0),
        "rate": (terms.log_posterior - terms.log_prior).mean(0),
        "distortion": -terms.log_likelihood.mean(0),
        "iwae": torch.stack(bounds),
        "iwae_se": torch.stack(errors),
    }
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    return Scores(
        num_samples,
        **arrays | _estimates(log_w),  # type: ignore[arg-type]
        adapted=np.zeros(num_images, dtype=bool),
        evaluations=np.full(num_images, float(num_samples)),
        reason=terms.reason,
    )


def _estimates(log_w: Tensor) -> dict[str, Array]:
    """Return the estimate of log p(x) from weights (K, B) and its diagnostics, by the names of `Scores`."""
    log_sum, log_sum_squares = log_w.logsumexp(0), (2 * log_w).logsumexp(0)
    jvi1, jvi2 = jackknife(log_w)
    columns = {
        "log_likelihood": log_sum - math.log(len(log_w)),
        "relative_variance": relative_variance(log_w),
        "ess": (2 * log_sum - log_sum_squares).exp(),
        "jvi1": jvi1,
        "jvi2": jvi2,
    }
    smoothed = psis(log_w.cpu().numpy())
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    return arrays | {"khat": smoothed.khat, "psis": smoothed.log_mean}
