r"""Impute missing pixels given the observed ones.

With the pixels of an image split into observed ones s and missing ones m, AIS gives weighted particles of p(z|x_s).
Averages over them estimate

    p(x_m | x_s) = E[p(x_m|z)],    E[x_m | x_s] = E[E[x_m|z]],    and the weights estimate p(x_s).

The trained program is used unchanged. Rezende, Mohamed, Wierstra, "Stochastic Backpropagation and Approximate Inference
in Deep Generative Models", ICML 2014 (https://arxiv.org/abs/1401.4082), imputed with a Markov chain instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical

from pyro_vae.errors import UserError
from pyro_vae.evaluate.annealing.ais import AISConfig, AISResult, prepare_chains, run_forward
from pyro_vae.evaluate.annealing.hmc import Progress
from pyro_vae.trace import (
    Batch,
    Data,
    ParticleTrace,
    Program,
    check_support,
    draw,
    find_image_site,
    read_only,
    replay_at,
    with_missing_pixels,
)
from pyro_vae.trace.enumeration import count_states

Array = np.ndarray


@dataclass(frozen=True)
class Imputation:
    """Imputed images.

    Attributes:
        mean: Mean of p(x | x_seen), shape (N, *pixels). Observed pixels are unchanged.
        variance: Variance of p(x | x_seen), shape (N, *pixels), 0 at observed pixels.
        draw: One sample of p(x | x_seen), shape (N, *pixels).
        ais: Chains that estimate log p(x_seen).
        log_missing: log p(x_missing | x_seen) in nats, shape (N,), if the true images were given, else None.
    """

    mean: Array
    variance: Array
    draw: Array
    ais: AISResult
    log_missing: Array | None


def impute(
    model: Program,
    guide: Program,
    x: Data,
    config: AISConfig,
    *,
    fill_value: Tensor,
    truth: Tensor | None = None,
    seed: int | None = None,
    progress: Progress = iter,
) -> Imputation:
    """Impute the missing pixels of images.

    Args:
        model: Model p(x, z) whose pixels are independent given z.
        guide: Guide q(z|x).
        x: Images (B, *pixels) with missing pixels set to NaN, a tuple of positional arguments, or a `Batch`.
        config: AIS settings. The chains are the particles.
        fill_value: Values (*pixels) that replace missing pixels in the input of the guide, e.g. the mean image.
        truth: Complete images (B, *pixels), to score the missing pixels.
        seed: Random seed. ``None`` uses fresh entropy.
        progress: Wrapper of the loops over temperatures.

    Raises:
        ValueError: Pixels are not independent given z, or as `ais`.

    Example:
        A model of two equal pixels, up to noise of scale 0.1, and an image with one of them missing:

        >>> import pyro, pyro.distributions as dist, torch
        >>> from pyro_vae.evaluate import AISConfig
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 2), 0.1).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        >>> x, config = torch.tensor([[1.0, torch.nan]]), AISConfig(num_chains=200, num_temperatures=20)
        >>> impute(model, guide, x, config, fill_value=torch.zeros(2), seed=0).mean.round(1)
        array([[1., 1.]], dtype=float32)
    """
    batch = Batch.of(x)
    x = batch.x
    gaps = x.isnan()
    filled_batch = batch.replace_x(torch.where(gaps, fill_value, x))
    name, order = _find_pixel_site(model, guide, filled_batch, seed)
    masked_model, filled_guide = with_missing_pixels(model, guide, fill_value, order)
    check_support(masked_model, filled_guide, batch)
    if truth is not None:
        check_support(model, guide, batch.replace_x(truth))
    with read_only(model, guide, x=batch, seed=seed, purpose="impute", validate=False), torch.no_grad():
        chains = prepare_chains(masked_model, filled_guide, batch, config, progress)
        result, annealed = run_forward(chains, config, progress)
        values, _ = chains.path.space.split(result.u)
        if (lost := (result.log_w == -torch.inf).all(0)).any():
            raise UserError(
                f"All chains of image {int(lost.nonzero()[0])} have weight 0: the guide samples outside the support of "
                'the prior. Impute from the prior, start="prior", or with more chains.'
            )
        log_weights = result.log_w.log_softmax(0)  # normalized
        if chains.path.layout.summed:
            log_weights = _expand_over_states(log_weights, replay_at(masked_model, batch, values, chains.path.layout))
        site = replay_at(model, filled_batch, values, chains.path.layout)
        inverse_order = order.flatten().argsort()
        shape = (len(log_weights), *x.shape)

        def to_pixels(quantity: Any) -> Tensor:
            """Return a quantity of each particle's pixel distributions as images (K, B, *pixels)."""
            elements = site.per_image(name, lambda s: quantity(s["fn"].base_dist), extra=order.dim())
            return elements.flatten(2)[..., inverse_order].reshape(shape)

        weights = log_weights.exp().to(x).view(*log_weights.shape, *[1] * (x.dim() - 1))
        pixel_means = to_pixels(lambda pixels: pixels.mean)
        mean = (weights * pixel_means).sum(0)
        # The variance of the mixture is its second moment minus the square of its mean.
        second_moment = (weights * (to_pixels(lambda pixels: pixels.variance) + pixel_means.square())).sum(0)
        log_missing = None
        if truth is not None:
            truth_elements = truth.flatten(1)[:, order.flatten()].reshape(len(x), *order.shape)
            rows = (
                truth_elements.repeat(len(log_weights), *[1] * order.dim())
                if site.layout.kind == "rows"
                else truth_elements
            )
            log_p = torch.where(gaps, to_pixels(lambda pixels: pixels.log_prob(rows)), 0.0).double().flatten(2).sum(-1)
            log_missing = (log_weights + log_p).logsumexp(0).cpu().numpy()
        # One sample: a particle by its weight, then the pixels given that particle.
        chosen = Categorical(logits=log_weights.T).sample(), torch.arange(len(x), device=x.device)
        drawn = to_pixels(lambda pixels: pixels.sample())[chosen].to(x)
        return Imputation(
            torch.where(gaps, mean, x).cpu().numpy(),
            torch.where(gaps, second_moment - mean.square(), 0.0).cpu().numpy(),
            torch.where(gaps, drawn, x).cpu().numpy(),
            annealed,
            log_missing,
        )


def _expand_over_states(log_weights: Tensor, p: ParticleTrace) -> Tensor:
    """Return normalized log weights of particles and summed-out states (S * K, B) from those of particles (K, B)."""
    joint = torch.as_tensor(sum(p.state_terms().values()))
    log_probs = joint.unflatten(0, (count_states(p.layout.summed), -1)).log_softmax(0)
    return (log_weights + log_probs).flatten(0, 1)


def _find_pixel_site(model: Program, guide: Program, batch: Batch, seed: int | None) -> tuple[str, Tensor]:
    """Return the observed site of the pixels, and the index of each element of its event in the flattened image.

    Raises:
        ValueError: No observed site holds the pixels, or its rows are not the images.
    """
    with read_only(model, guide, x=batch, seed=seed, purpose="pixel site", validate=False), torch.no_grad():
        name, index = find_image_site(model, batch, draw(guide, batch, 1)[0])
    size = batch.x[0].numel()
    first = index[0]
    offsets = torch.arange(len(batch), device=index.device).view(-1, *[1] * first.dim()) * size
    if len(index) != len(batch) or not torch.equal(index, first + offsets):
        raise UserError(f"Site {name!r} does not hold one image per row, so its pixels cannot be imputed.")
    return name, first
