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

from pyro_vae.errors import UserError
from pyro_vae.evaluate.annealing.ais import AISConfig, AISResult, adapt_kernels, to_ais_result
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
    """Images completed.

    `mean` and `variance` (N, *pixels) are those of p(x | x_seen), the pixels seen as they are, with variance 0; `draw`
    (N, *pixels) is one image of it;
    `ais` estimates log p(x_seen); `log_missing` (N,) is log p(x_missing | x_seen) in nats where the truth was
    given.
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
    """Complete images with missing pixels.

    Args:
        model: program of p(x, z) with pixels that are independent given z.
        guide: program of q(z|x).
        x: images (B, *pixels), missing pixels NaN.
        config: how to anneal; its chains are the particles.
        fill_value: what the guide sees in the gaps, (*pixels): the mean image, for one.
        truth: the whole images (B, *pixels), to score what was missing.
        seed: of all noise.
        progress: as in `ais`.

    Raises:
        ValueError: pixels are not independent given z, or as `ais`.
    """
    batch = Batch.of(x)
    x = batch.x
    gaps = x.isnan()
    whole = batch.replace_x(torch.where(gaps, fill_value, x))
    name, order = _order(model, guide, whole, seed)
    of_seen, filled = with_missing_pixels(model, guide, fill_value, order)
    check_support(of_seen, filled, batch)
    if truth is not None:
        check_support(model, guide, batch.replace_x(truth))
    with read_only(model, guide, x=batch, seed=seed, purpose="impute", validate=False), torch.no_grad():
        kernels = adapt_kernels(of_seen, filled, batch, config, progress)
        result = kernels.forward(kernels.path.draw(config.num_chains), progress)
        values, _ = kernels.path.space.split(result.u)
        shares = result.log_w.log_softmax(0)
        if kernels.path.layout.summed:
            shares = _with_states(shares, replay_at(of_seen, batch, values, kernels.path.layout))
        site = replay_at(model, whole, values, kernels.path.layout)
        back = order.flatten().argsort()
        shape = (len(shares), *x.shape)

        def of_pixels(quantity: Any) -> Tensor:
            """Return a quantity of the site's elements as images (K, B, *pixels)."""
            elements = site.per_image(name, lambda s: quantity(s["fn"].base_dist), extra=order.dim())
            return elements.flatten(2)[..., back].reshape(shape)

        weights = shares.exp().to(x).view(*shares.shape, *[1] * (x.dim() - 1))
        pixel_means = of_pixels(lambda pixels: pixels.mean)
        mean = (weights * pixel_means).sum(0)
        second = (weights * (of_pixels(lambda pixels: pixels.variance) + pixel_means.square())).sum(0)
        log_missing = None
        if truth is not None:
            truth_elements = truth.flatten(1)[:, order.flatten()].reshape(len(x), *order.shape)
            rows = (
                truth_elements.repeat(len(shares), *[1] * order.dim()) if site.layout.kind == "rows" else truth_elements
            )
            log_p = torch.where(gaps, of_pixels(lambda pixels: pixels.log_prob(rows)), 0.0).double().flatten(2).sum(-1)
            log_missing = (shares + log_p).logsumexp(0).cpu().numpy()
        chosen = Categorical(logits=shares.T).sample(), torch.arange(len(x), device=x.device)
        drawn = of_pixels(lambda pixels: pixels.sample())[chosen].to(x)
        return Imputation(
            torch.where(gaps, mean, x).cpu().numpy(),
            torch.where(gaps, second - mean.square(), 0.0).cpu().numpy(),
            torch.where(gaps, drawn, x).cpu().numpy(),
            to_ais_result(result),
            log_missing,
        )


def _with_states(log_shares: Tensor, p: ParticleTrace) -> Tensor:
    """Divide the share of each particle (K, B) among the values of what is summed out, given z and the pixels seen."""
    joint = torch.as_tensor(sum(p.state_terms().values()))
    of_states = joint.unflatten(0, (count_states(p.layout.summed), -1)).log_softmax(0)
    return (log_shares + of_states).flatten(0, 1)


def _order(model: Program, guide: Program, batch: Batch, seed: int | None) -> tuple[str, Tensor]:
    """Return the observed site of the pixels, and which pixel of the flattened image each element of its event is.

    Raises:
        ValueError: there is none, or it is arranged otherwise than by images in its first dimension.
    """
    with read_only(model, guide, x=batch, seed=seed, purpose="impute", validate=False), torch.no_grad():
        name, index = find_image_site(model, batch, draw(guide, batch, 1)[0])
    size = batch.x[0].numel()
    first = index[0]
    offsets = torch.arange(len(batch), device=index.device).view(-1, *[1] * first.dim()) * size
    if len(index) != len(batch) or not torch.equal(index, first + offsets):
        raise UserError(f"Site {name!r} does not hold an image in each row: no pixel of it can be imputed.")
    return name, first
