r"""ELBO surgery: decompose the rate via the aggregate posterior q(z) = E_x q(z|x).

    rate = E_x KL(q(z|x) || p(z))  =  I(x; z)  +  KL(q(z) || p(z))

Hoffman, Johnson, "ELBO surgery: yet another way to carve up the variational evidence lower bound", NeurIPS workshop on
Advances in Approximate Bayesian Inference, 2016 (http://approximateinference.org/accepted/HoffmanJohnson2016.pdf).

Only N images are given, and q(z) is estimated by the mean of their posteriors. If it includes the posterior that z was
sampled from, the mutual information is bounded from below in expectation, and never exceeds log N; without it, from
above: Poole, Ozair, van den Oord, Alemi, Tucker, "On Variational Bounds of Mutual Information", ICML 2019
(https://arxiv.org/abs/1905.06922), equations 11 and 12.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from pyro_vae.evaluate.likelihood.bounds import standard_error
from pyro_vae.trace import (
    Batch,
    Data,
    Program,
    choose_layouts,
    draw,
    log_density,
    read_only,
    require_per_image,
)

Array = np.ndarray

_ROWS = 20_000  # guide densities evaluated at once
_MARGIN = 0.5  # nats below its limit where the estimate of the mutual information is not to be trusted


# Names of the numbers of `split_rate`: the terms of the rate, their standard errors, and the upper bound.
RATE_TERMS = (
    "mutual_information",
    "mutual_information_se",
    "mutual_information_upper",
    "marginal_kl",
    "marginal_kl_se",
)


@dataclass(frozen=True)
class ELBOSurgery:
    """Terms of the rate of S of N images in nats, shape (S,) each. Their means estimate the terms of the formula above.

    Attributes:
        num_images: Number of images, N.
        mutual_information: log q(z_n|x_n) - log q(z_n), with q(z) the mean of all N posteriors. Its mean is a lower
            bound in expectation, and close to it unless it approaches log N.
        mutual_information_upper: The same without posterior n in the mean; its mean is an upper bound in expectation.
            NaN for N = 1.
        marginal_kl: log q(z_n) - log p(z_n), with the same q(z) as `mutual_information`. Its mean is too large by as
            much as that of `mutual_information` is too small.
    """

    num_images: int
    mutual_information: Array
    mutual_information_upper: Array
    marginal_kl: Array

    @property
    def rate(self) -> Array:
        """Sum of mutual information and marginal KL (S,), in nats."""
        return self.mutual_information + self.marginal_kl


def elbo_surgery(
    model: Program, guide: Program, x: Data, *, num_codes: int | None = None, seed: int | None = None
) -> ELBOSurgery:
    """Split the rate of images into mutual information and marginal KL, with one sample of each posterior.

    Args:
        model: Model p(x, z).
        guide: Guide q(z|x).
        x: Images (N, ...) in one batch, a tuple of positional arguments, or a `Batch`.
        num_codes: Number of images whose terms are estimated, S: the first ones. S * N densities of the guide are
            evaluated. None is all images.
        seed: Random seed. None uses fresh entropy.

    Raises:
        ValueError: As `log_density`, or a latent site is shared by all images.
    """
    batch = Batch.of(x)
    require_per_image(model, guide, batch)
    num_images = len(batch)
    num_codes = num_images if num_codes is None else min(num_codes, num_images)
    chunk = max(1, _ROWS // num_images)
    with torch.no_grad(), read_only(model, guide, x=batch, seed=seed, purpose="surgery", validate=False):
        values, log_q = draw(guide, batch, 1)
        if not values:  # no latents: the rate is zero
            return ELBOSurgery(num_images, *(np.zeros(num_codes) for _ in range(3)))
        sites = log_density(model, batch, values)
        log_prior = torch.stack([sites[name][0] for name in values]).sum(0)[:num_codes]
        log_posterior = torch.stack(list(log_q.values())).sum(0)[0, :num_codes]
        layout = choose_layouts(model, guide, batch, 2).guide
        aggregate, others = [], []
        for indices in torch.arange(num_codes, device=batch.device).split(chunk):
            # Pair each sample with every image: (chunk, N).
            pairs = {
                name: z[0, indices].unsqueeze(1).expand(-1, num_images, *z.shape[2:]) for name, z in values.items()
            }
            log_densities = torch.stack(list(log_density(guide, batch, pairs, layout).values())).sum(0)
            aggregate.append(log_densities.logsumexp(1))
            others.append(log_densities.scatter(1, indices.unsqueeze(1), -torch.inf).logsumexp(1))
        log_aggregate = torch.cat(aggregate) - math.log(num_images)
        log_others = (
            torch.cat(others) - math.log(num_images - 1)
            if num_images > 1
            else torch.full_like(log_aggregate, torch.nan)
        )
        terms = log_posterior - log_aggregate, log_posterior - log_others, log_aggregate - log_prior
    return ELBOSurgery(num_images, *(term.cpu().numpy() for term in terms))


def split_rate(rate: Array, surgery: ELBOSurgery) -> tuple[dict[str, float | None], dict[str, str]]:
    """Split the mean rate of M images into mutual information and marginal KL, whose sum it is, with standard errors.

    The marginal KL is the difference of the other two. With S codes, its error is that of the independent means of

        S/M rate_n - mutual information_n  (n <= S)    and    (1 - S/M) rate_n  (n > S).

    Args:
        rate: Rates of the images in nats (M,); the first S are those of the images of `surgery`.
        surgery: Terms of the first S images, S at most M.

    Returns:
        The numbers, each finite or None, and the reason of each None. Both terms are None if the mutual information is
        within 0.5 nats of log N, the largest value of its estimate.
    """
    values, num_codes, num_rates = surgery.mutual_information, len(surgery.mutual_information), len(rate)
    value, limit, share = float(values.mean()), math.log(surgery.num_images), num_codes / num_rates
    rest = (1 - share) * standard_error(rate[num_codes:]) if num_rates > num_codes + 1 else 0.0
    results = (
        value,
        standard_error(values),
        float(surgery.mutual_information_upper.mean()),
        float(rate.mean()) - value,
        math.hypot(standard_error(share * rate[:num_codes] - values), rest),
    )
    numbers = dict(zip(RATE_TERMS, results, strict=True))
    reasons = {name: "it needs at least two images" for name in numbers if not math.isfinite(numbers[name])}
    if value > limit - _MARGIN:
        reason = (
            f"the estimate of the mutual information, {value:.2f} nats, is at its limit, the log of the number of "
            f"images, {limit:.2f}; use more test images"
        )
        reasons |= dict.fromkeys(set(numbers) - {"mutual_information_upper"} | reasons.keys(), reason)
    return {name: None if name in reasons else number for name, number in numbers.items()}, reasons
