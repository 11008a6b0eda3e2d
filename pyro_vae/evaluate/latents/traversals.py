r"""Latent traversals and interpolations, and the images along them.

Units are the elements of all latent sites, flattened and concatenated in order, as in `posterior_moments` and
`posterior_means`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.evaluate.latents.decoding import Values, decode_mean_or_sample, sample_posterior
from pyro_vae.trace import Batch, Data, Program


def decode_units(model: Program, guide: Program, x: Data, units: Tensor, seed: int | None = None) -> tuple[Tensor, str]:
    """Decode latents to images.

    Args:
        model: Model p(x, z).
        guide: Guide q(z|x), used only for its sites and their shapes.
        x: At least one image (N, *pixels), used only for its shape.
        units: Latents (..., units).
        seed: Random seed of pixels that are sampled. None uses fresh entropy.

    Returns:
        Images (..., *pixels), and their kind as returned by `decode_mean_or_sample`.
    """
    rows = units.flatten(0, -2)
    batch = Batch.of(x)
    template = batch.expand(len(rows))
    values = _sites(rows, sample_posterior(guide, batch[:1], seed=0))
    images, kind = decode_mean_or_sample(model, template, values, seed)
    return images.reshape(*units.shape[:-1], *batch.x.shape[1:]), kind


def traverse(base: Tensor, low: Tensor, high: Tensor, units: Tensor, steps: int) -> Tensor:
    """Move one unit at a time from its low to its high value, with all others fixed at `base`.

    Args:
        base: Values of the fixed units (units,).
        low: Start values (units,).
        high: End values (units,).
        units: Indices of the R units to move (R,).
        steps: Number of points per unit, T.

    Returns:
        Latents (R, T, units).
    """
    progress = torch.linspace(0, 1, steps, dtype=base.dtype, device=base.device).unsqueeze(1)
    values = low[units] + progress * (high - low)[units]  # (T, R)
    is_moved = torch.nn.functional.one_hot(units, len(base)).bool().unsqueeze(1)
    return torch.where(is_moved, values.T.unsqueeze(-1), base)


def interpolate(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Interpolate linearly between latents `start` and `end` (R, units): (R, T, units), both included."""
    progress = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).view(-1, 1)
    return torch.lerp(start.unsqueeze(1), end.unsqueeze(1), progress)


def most_visible_units(
    model: Program, guide: Program, x: Data, base: Tensor, low: Tensor, high: Tensor, num_units: int
) -> Tensor:
    """Return the units whose move from low to high changes the image most in squared error, in decreasing order.

    Args:
        model: Model p(x, z).
        guide: Guide q(z|x).
        x: Images (N, *pixels), used only for their shape.
        base: Values of the fixed units (units,).
        low: Start values (units,).
        high: End values (units,).
        num_units: Maximum number of units to return.
    """
    all_units = torch.arange(len(base), device=base.device)
    ends, _ = decode_units(model, guide, x, traverse(base, low, high, all_units, 2), seed=0)
    change = (ends[:, 0] - ends[:, 1]).double().square().flatten(1).sum(1)
    return change.argsort(descending=True, stable=True)[:num_units]


def _sites(units: Tensor, template: Values) -> Values:
    """Split latents (N, units) into {site: (1, N, ...)} with the site shapes of `template`."""
    sizes = [value[0, 0].numel() for value in template.values()]
    parts = units.split(sizes, -1)
    return {
        name: part.reshape(1, len(units), *value.shape[2:]).to(value.dtype)
        for (name, value), part in zip(template.items(), parts, strict=True)
    }
