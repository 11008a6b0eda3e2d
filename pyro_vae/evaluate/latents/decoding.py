r"""What a program makes of its latents: the mean of p(x|z) and draws from it, z from the prior or the posterior.

The two differ: a draw adds the noise of single pixels to the mean, which is no image that the program would generate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.trace import Batch, Data, Program, draw, find_image_site, read_only, to_images, trace_particles

Values = dict[str, Tensor]
_DRAWS = 100


def sample_prior(model: Program, template: Data, seed: int | None = None, given: Values | None = None) -> Values | None:
    """Draw latents from the prior.

    Args:
        model: program of p(x, z).
        template: images (N, ...), of which only number and shape count.
        seed: of the draws.
        given: latents at given values, {site: (1, N, ...)}.

    Returns:
        {site: (1, N, ...)}, empty without latents; None where the prior has no sampler, being improper.
    """
    with torch.no_grad(), read_only(model, x=template, seed=seed, purpose="prior latents"):
        try:
            return trace_particles(model, template, 1, given).values
        except NotImplementedError:
            return None


def sample_posterior(guide: Program, x: Data, seed: int | None = None) -> Values:
    """Draw latents of images x (N, ...) from the posterior: {site: (1, N, ...)}."""
    with torch.no_grad(), read_only(guide, x=x, seed=seed, purpose="posterior latents"):
        return draw(guide, x, 1)[0]


def decode_mean(model: Program, template: Data, values: Values) -> Tensor | None:
    """Return the means of p(x|z) at latents {site: (1, N, ...)}, in the shape of `template` (N, ...).

    None where they have no closed form, as those of an autoregressive likelihood.

    Raises:
        ValueError: no observed site has the shape of an image.
    """
    with torch.no_grad(), read_only(model, x=template, seed=0):
        try:
            return _of_images(model, template, values, lambda pixels: pixels.mean)
        except NotImplementedError:
            return None


def decode_sample(model: Program, template: Data, values: Values, seed: int | None = None) -> Tensor:
    """Draw x from p(x|z) at latents {site: (1, N, ...)}, in the shape of `template` (N, ...).

    Raises:
        ValueError: as `decode_mean`.
    """
    with torch.no_grad(), read_only(model, x=template, seed=seed, purpose="pixels"):
        return _of_images(model, template, values, lambda pixels: pixels.sample())


def decode_average(model: Program, template: Data, values: Values, seed: int | None = None) -> Tensor | None:
    """Return means of 100 draws from p(x|z), for figures where the mean has no closed form; see `decode_sample`.

    None of an autoregressive likelihood, whose draws take a run of its network for every pixel.
    """

    def average(pixels: Any) -> Tensor:
        if hasattr(pixels, "inpaint"):
            raise NotImplementedError
        return torch.as_tensor(sum(pixels.sample() for _ in range(_DRAWS)) / _DRAWS)

    with torch.no_grad(), read_only(model, x=template, seed=seed, purpose="averages"):
        try:
            return _of_images(model, template, values, average)
        except NotImplementedError:
            return None


def decode_mean_or_sample(
    model: Program, template: Data, values: Values, seed: int | None = None
) -> tuple[Tensor, str]:
    """Return what figures show at latents, and what it is: means, means of 100 draws, or draws of p(x|z)."""
    if (means := decode_mean(model, template, values)) is not None:
        return means, "means"
    if (means := decode_average(model, template, values, seed)) is not None:
        return means, f"means of {_DRAWS} draws"
    return decode_sample(model, template, values, seed), "draws"


def inpaint_exact(model: Program, x: Data, num_observed: int, seed: int | None = None) -> Tensor | None:
    """Draw the rest of images x (N, *pixels) given their first pixels in raster order, exactly.

    None where the program has latents, or pixels that are not drawn one after the other.
    """
    batch = Batch.of(x)
    with torch.no_grad(), read_only(model, x=batch, seed=seed, purpose="completion"):
        result = trace_particles(model, batch)
        (inpaint, *others) = (getattr(pixels, "inpaint", None) for pixels, _ in result.observed.values())
        return None if inpaint is None or others or result.values else inpaint(batch.x, num_observed)


def _of_images(model: Program, template: Data, values: Values, fn: Callable[[Any], Tensor]) -> Tensor:
    """Return what a function makes of p(x|z), its mean or a draw, in the shape of x."""
    batch = Batch.of(template)
    name, index = find_image_site(model, batch, values)
    return to_images(fn(trace_particles(model, batch, 1, values).observed[name][0]), index, batch.x).to(batch.x.dtype)
