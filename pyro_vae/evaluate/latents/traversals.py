r"""Ways through the latents: along one unit, from image to image, and what lies on them.

Units are those of all latent sites, flattened and joined in their order, as `posterior_moments` and `posterior_means`
have them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.evaluate.latents.decoding import Values, decode_mean_or_sample, sample_posterior
from pyro_vae.trace import Batch, Data, Program


def decode_units(model: Program, guide: Program, x: Data, units: Tensor, seed: int | None = None) -> tuple[Tensor, str]:
    """Return the images at latents.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x), of which only the sites and their shapes count.
        x: an image or more (N, *pixels), of which only the shape of one counts.
        units: latents (..., units).
        seed: of draws.

    Returns:
        (..., *pixels), and what they are; see `decode_mean_or_sample`.
    """
    rows = units.flatten(0, -2)
    batch = Batch.of(x)
    template = batch.expand(len(rows))
    values = _sites(rows, sample_posterior(guide, batch[:1], seed=0))
    images, kind = decode_mean_or_sample(model, template, values, seed)
    return images.reshape(*units.shape[:-1], *batch.x.shape[1:]), kind


def traverse(base: Tensor, low: Tensor, high: Tensor, units: Tensor, steps: int) -> Tensor:
    """Move one unit at a time from its low to its high value, the others staying where they are.

    Args:
        base: where they are (units,).
        low: where each begins (units,).
        high: where each ends (units,).
        units: numbers of those that move (R,).
        steps: T.

    Returns:
        Latents (R, T, units).
    """
    progress = torch.linspace(0, 1, steps, dtype=base.dtype, device=base.device).unsqueeze(1)
    values = low[units] + progress * (high - low)[units]  # (T, R)
    moving = torch.nn.functional.one_hot(units, len(base)).bool().unsqueeze(1)
    return torch.where(moving, values.T.unsqueeze(-1), base)


def interpolate(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Return the straight ways from latents (R, units) to others: (R, T, units), both ends included."""
    progress = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).view(-1, 1)
    return torch.lerp(start.unsqueeze(1), end.unsqueeze(1), progress)


def most_visible_units(
    model: Program, guide: Program, x: Data, base: Tensor, low: Tensor, high: Tensor, num_units: int
) -> Tensor:
    """Return the units whose move from low to high changes the image most, in squared error, the first most.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        x: as `decode_units`.
        base: as `traverse`, like those that follow.
        low: where each begins.
        high: where each ends.
        num_units: of units, at most.
    """
    all_units = torch.arange(len(base), device=base.device)
    ends, _ = decode_units(model, guide, x, traverse(base, low, high, all_units, 2), seed=0)
    change = (ends[:, 0] - ends[:, 1]).double().square().flatten(1).sum(1)
    return change.argsort(descending=True, stable=True)[:num_units]


def _sites(units: Tensor, template: Values) -> Values:
    """Return latents (N, units) as {site: (1, N, ...)} with the shapes of the sites of `template`."""
    sizes = [value[0, 0].numel() for value in template.values()]
    parts = units.split(sizes, -1)
    return {
        name: part.reshape(1, len(units), *value.shape[2:]).to(value.dtype)
        for (name, value), part in zip(template.items(), parts, strict=True)
    }
