r"""Decode latents of the prior or the posterior: means of p(x|z), and samples from it.

The two differ: a sample adds the noise of single pixels to the mean, and only the sample is an image that the model
generates.

Many large images are decoded in parts, since their activations may not fit into memory. The size of a part depends on
that of an image only, so that the samples of a seed do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_vae.trace import (
    Batch,
    Data,
    Program,
    derive_seed,
    draw,
    find_image_site,
    read_only,
    to_images,
    trace_particles,
)

Values = dict[str, Tensor]
_DRAWS = 100
_PIXELS = 2**20  # of the images that are decoded at once


def sample_prior(model: Program, template: Data, seed: int | None = None, given: Values | None = None) -> Values | None:
    """Sample latents from the prior.

    Args:
        model: Model p(x, z).
        template: Images (N, ...), a tuple of positional arguments, or a `Batch`. Only the number and shape of the
            images are used.
        seed: Random seed. None uses fresh entropy.
        given: Latents held at given values, {site: (1, N, ...)}.

    Returns:
        {site: (1, N, ...)}, empty if there are no latents. None if the prior is improper and cannot be sampled.
    """
    parts: list[Values] = []
    for batch, values, part_seed in _parts(template, given or {}, seed):
        with torch.no_grad(), read_only(model, x=batch, seed=part_seed, purpose="prior latents"):
            try:
                parts.append(trace_particles(model, batch, 1, values).values)
            except NotImplementedError:
                return None
    return {site: torch.cat([values[site] for values in parts], 1) for site in parts[0]}


def sample_posterior(guide: Program, x: Data, seed: int | None = None) -> Values:
    """Sample latents {site: (1, N, ...)} of images x (N, ...) from the guide."""
    with torch.no_grad(), read_only(guide, x=x, seed=seed, purpose="posterior latents"):
        return draw(guide, x, 1)[0]


def decode_mean(model: Program, template: Data, values: Values) -> Tensor | None:
    """Return the means of p(x|z) at latents {site: (1, N, ...)}, in the shape of `template` (N, ...).

    Returns None if they have no closed form, as with an autoregressive likelihood.

    Raises:
        ValueError: No observed site has the elements of x.
    """
    try:
        return _apply_to_pixels(model, template, values, lambda pixels: pixels.mean, 0, "")
    except NotImplementedError:
        return None


def decode_sample(model: Program, template: Data, values: Values, seed: int | None = None) -> Tensor:
    """Sample x from p(x|z) at latents {site: (1, N, ...)}, in the shape of `template` (N, ...).

    Raises:
        ValueError: As `decode_mean`.
    """
    return _apply_to_pixels(model, template, values, lambda pixels: pixels.sample(), seed, "pixels")


def decode_average(model: Program, template: Data, values: Values, seed: int | None = None) -> Tensor | None:
    """Return the means of 100 samples of p(x|z), for figures if the mean has no closed form.

    Takes the arguments of `decode_sample`. Returns None with an autoregressive likelihood, each of whose samples
    evaluates a network for every pixel.
    """

    def average(pixels: Any) -> Tensor:
        if hasattr(pixels, "inpaint"):
            raise NotImplementedError
        return torch.as_tensor(sum(pixels.sample() for _ in range(_DRAWS)) / _DRAWS)

    try:
        return _apply_to_pixels(model, template, values, average, seed, "averages")
    except NotImplementedError:
        return None


def decode_mean_or_sample(
    model: Program, template: Data, values: Values, seed: int | None = None
) -> tuple[Tensor, str]:
    """Return images for figures, and their kind: means, means of 100 samples, or samples (``draws``) of p(x|z)."""
    if (means := decode_mean(model, template, values)) is not None:
        return means, "means"
    if (means := decode_average(model, template, values, seed)) is not None:
        return means, f"means of {_DRAWS} draws"
    return decode_sample(model, template, values, seed), "draws"


def inpaint_exact(model: Program, x: Data, num_observed: int, seed: int | None = None) -> Tensor | None:
    """Sample the remaining pixels of images x (N, *pixels) given the first ones in raster order, exactly.

    Returns None if the program has latents, or a likelihood that does not sample its pixels one after another.
    """
    batch = Batch.of(x)
    with torch.no_grad(), read_only(model, x=batch, seed=seed, purpose="completion"):
        result = trace_particles(model, batch)
        (inpaint, *others) = (getattr(pixels, "inpaint", None) for pixels, _ in result.observed.values())
        return None if inpaint is None or others or result.values else inpaint(batch.x, num_observed)


def _apply_to_pixels(
    model: Program, template: Data, values: Values, fn: Callable[[Any], Tensor], seed: int | None, purpose: str
) -> Tensor:
    """Return a function of p(x|z), e.g. its mean or a sample, in the shape of x."""
    images = []
    for batch, latents, part_seed in _parts(template, values, seed):
        with torch.no_grad(), read_only(model, x=batch, seed=part_seed, purpose=purpose):
            name, index = find_image_site(model, batch, latents)
            pixels = fn(trace_particles(model, batch, 1, latents).observed[name][0])
            images.append(to_images(pixels, index, batch.x).to(batch.x.dtype))
    return torch.cat(images)


def _parts(template: Data, values: Values, seed: int | None) -> Iterator[tuple[Batch, Values, int | None]]:
    """Yield images and their latents in parts, the first one with the given seed."""
    batch = Batch.of(template)
    size = max(1, _PIXELS // max(1, batch.x[0].numel()))
    for index, start in enumerate(range(0, len(batch), size)):
        rows = slice(start, start + size)
        latents = {site: z[:, rows] if z.shape[1] == len(batch) else z for site, z in values.items()}
        yield batch[rows], latents, derive_seed(seed, "part", index) if index else seed
