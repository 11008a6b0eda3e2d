r"""What a density is good for: pixels that are missing.

With the pixels s seen and m missing, p(z|x_s) is reached by annealing from the guide, and its weighted particles give

    p(x_m | x_s) = E[p(x_m|z)],    E[x_m | x_s] = E[E[x_m|z]],    and p(x_s) itself.

The program is the trained one, used as it is. Rezende, Mohamed, Wierstra, "Stochastic Backpropagation and Approximate
Inference in Deep Generative Models", ICML 2014 (https://arxiv.org/abs/1401.4082), imputed by a Markov chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical

from pyro_vae.evaluate.annealing import Annealed, Annealing, annealed, kernels_of
from pyro_vae.evaluate.hmc import Progress
from pyro_vae.trace import Program, check_domain, quietly, run_at, seen

Array = np.ndarray


@dataclass(frozen=True)
class Imputed:
    """Images completed.

    `mean` and `variance` (N, *pixels) are those of p(x | x_seen), the pixels seen as they are, with variance 0; `draw`
    (N, *pixels) is one image of it;
    `annealed` estimates log p(x_seen); `log_missing` (N,) is log p(x_missing | x_seen) in nats where the truth was
    given.
    """

    mean: Array
    variance: Array
    draw: Array
    annealed: Annealed
    log_missing: Array | None


def impute(
    model: Program,
    guide: Program,
    x: Tensor,
    settings: Annealing,
    *,
    fill: Tensor,
    truth: Tensor | None = None,
    seed: int | None = None,
    progress: Progress = iter,
) -> Imputed:
    """Complete images with missing pixels.

    Args:
        model: program of p(x, z) with pixels that are independent given z.
        guide: program of q(z|x).
        x: images (B, *pixels), missing pixels NaN.
        settings: how to anneal; its chains are the particles.
        fill: what the guide sees in the gaps, (*pixels): the mean image, for one.
        truth: the whole images (B, *pixels), to score what was missing.
        seed: of all noise.
        progress: as in `anneal`.

    Raises:
        ValueError: pixels are not independent given z, or as `anneal`.
    """
    of_seen, filled = seen(model, guide, fill)
    check_domain(of_seen, filled, x)
    if truth is not None:
        check_domain(model, guide, truth)
    with quietly(model, guide, x=x, seed=seed), torch.no_grad():
        kernels = kernels_of(of_seen, filled, x, settings, progress)
        result = kernels.forward(kernels.path.draw(settings.num_chains), progress)
        values, _ = kernels.path.space.split(result.u)
        shares = result.log_w.log_softmax(0)
        gaps = x.isnan()
        (site,) = run_at(model, torch.where(gaps, fill, x), values).observed.values()
        pixels: Any = site[0].base_dist
        shape = (settings.num_chains, *x.shape)
        weights = shares.exp().to(x).view(*shares.shape, *[1] * (x.dim() - 1))
        mean = (weights * pixels.mean.reshape(shape)).sum(0)
        second = (weights * (pixels.variance + pixels.mean.square()).reshape(shape)).sum(0)
        log_missing = None
        if truth is not None:
            log_p = pixels.log_prob(truth.expand(shape).reshape(pixels.batch_shape)).reshape(shape)
            log_p = torch.where(gaps, log_p, 0.0).double().flatten(2).sum(-1)
            log_missing = (shares + log_p).logsumexp(0).cpu().numpy()
        chosen = Categorical(logits=shares.T).sample(), torch.arange(len(x), device=x.device)
        drawn = pixels.sample().reshape(shape)[chosen].to(x)
        return Imputed(
            torch.where(gaps, mean, x).cpu().numpy(),
            torch.where(gaps, second - mean.square(), 0.0).cpu().numpy(),
            torch.where(gaps, drawn, x).cpu().numpy(),
            annealed(result),
            log_missing,
        )
