r"""What a program makes of its latents: the mean of p(x|z) and draws from it, z from the prior or the posterior.

The two differ: a draw adds the noise of single pixels to the mean, which is no image that the program would generate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.trace import Program, draw, reading, run

Values = dict[str, Tensor]


def prior_latents(model: Program, like: Tensor, seed: int | None = None) -> Values | None:
    """Draw latents from the prior.

    Args:
        model: program of p(x, z).
        like: images (N, ...), of which only number and shape count.
        seed: of the draws.

    Returns:
        {site: (1, N, ...)}, empty without latents; None where the prior has no sampler, being improper.
    """
    with torch.no_grad(), reading(model, x=like, seed=seed):
        try:
            return run(model, like).values
        except NotImplementedError:
            return None


def posterior_latents(guide: Program, x: Tensor, seed: int | None = None) -> Values:
    """Draw latents of images x (N, ...) from the posterior: {site: (1, N, ...)}."""
    with torch.no_grad(), reading(guide, x=x, seed=seed):
        return draw(guide, x, 1)[0]


def mean_images(model: Program, like: Tensor, values: Values) -> Tensor | None:
    """Return the means of p(x|z) at latents {site: (1, N, ...)}, in the shape of `like` (N, ...).

    None where they have no closed form, as those of an autoregressive likelihood.

    Raises:
        ValueError: no observed site has the shape of an image.
    """
    with torch.no_grad(), reading(model, x=like, seed=0):
        try:
            return _of_images(model, like, values).mean
        except NotImplementedError:
            return None


def drawn_images(model: Program, like: Tensor, values: Values, seed: int | None = None) -> Tensor:
    """Draw x from p(x|z) at latents {site: (1, N, ...)}, in the shape of `like` (N, ...).

    Raises:
        ValueError: as `mean_images`.
    """
    with torch.no_grad(), reading(model, x=like, seed=seed):
        return _of_images(model, like, values).sample().to(like.dtype).reshape(like.shape)


def shown_images(model: Program, like: Tensor, values: Values, seed: int | None = None) -> tuple[Tensor, bool]:
    """Return `mean_images`, or `drawn_images` where there is no mean, and whether they are means."""
    means = mean_images(model, like, values)
    return (drawn_images(model, like, values, seed), False) if means is None else (means, True)


def completed_images(model: Program, x: Tensor, seen: int, seed: int | None = None) -> Tensor | None:
    """Draw the rest of images x (N, *pixels) given their first pixels in raster order, exactly.

    None where the program has latents, or pixels that are not drawn one after the other.
    """
    with torch.no_grad(), reading(model, x=x, seed=seed):
        complete = getattr(_of_images(model, x, {}), "complete", None)
        return None if complete is None or run(model, x).values else complete(x, seen)


def _of_images(model: Program, like: Tensor, values: Values) -> Any:
    """Return the distribution of the observed site of the shape of `like`."""
    for distribution, value in run(model, like, 1, values).observed.values():
        if value.shape == like.shape:
            return distribution
    shape = tuple(like.shape)
    raise ValueError(f"The program observes no site of the shape of x, {shape}: there is no image to show.")
