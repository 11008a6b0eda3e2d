r"""Images that a program generates: of latents from its prior, and of latents from the posterior of an image.

Wherever p(x|z) has a mean in closed form it can be shown, and a draw beside it: an image of the model is the draw.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.evaluate import (
    decode_mean_or_sample,
    decode_sample,
    discrete_values,
    sample_posterior,
    sample_prior,
)
from pyro_vae.evaluate.latents.decoding import Values
from pyro_vae.instruments.batches import batches
from pyro_vae.trace import Batch, Data, describe

_LOG = logging.getLogger("pyro_vae")
_MOST_ROWS = 50  # of a picture of classes


def observes_x(program: Any, x: Data) -> bool:
    """Whether a program observes x as it is, at one site, so that what it makes of x is an image."""
    return describe(program.model, program.guide, x).image is not None


class GeneratedImages(NamedTuple):
    """Images (N, ...) at latents: the means of p(x|z), or of p(x) without latents, and draws; one may be None."""

    means: Tensor | None
    kind: str
    """What the means are; see `evaluate.decode_mean_or_sample`."""
    draws: Tensor | None
    has_latents: bool

    @property
    def distribution(self) -> str:
        """What they are the means of, p(x|z) or p(x)."""
        return "p(x|z)" if self.has_latents else "p(x)"

    def by_name(self) -> dict[str, Tensor]:
        """Return both by what they are, as far as they are there."""
        both = {f"{self.kind} of {self.distribution}": self.means, f"draws from {self.distribution}": self.draws}
        return {name: images for name, images in both.items() if images is not None}

    def first(self) -> tuple[Tensor, str]:
        """Return the means, or the draws where there are none, and what they are."""
        name, images = next(iter(self.by_name().items()))
        return images, name


def generate_images(program: Any, template: Data, values: Values, seed: int, *, draws: bool) -> GeneratedImages:
    """Return images at latents.

    Args:
        program: an object with ``model(x)``.
        template: images (N, ...) of which only number and shape count.
        values: latents, {site: (1, N, ...)}, empty without latents.
        seed: of the draws.
        draws: whether there are draws beside means; there are in any case where there are no means.
    """
    shown, kind = decode_mean_or_sample(program.model, template, values, seed)
    if kind == "draws":
        return GeneratedImages(None, kind, shown, bool(values))
    drawn = decode_sample(program.model, template, values, seed) if draws else None
    return GeneratedImages(shown, kind, drawn, bool(values))


def prior_samples(program: Any, x: Data, columns: int, seed: int, *, draws: bool) -> GeneratedImages | None:
    """Generate images at latents from the prior, a row for each class (`sample_prior_grid`); None if it is improper."""
    template, values = sample_prior_grid(program, x, columns, seed)
    if values is None:
        _LOG.info("The prior is improper: there are no prior samples.")
        return None
    return generate_images(program, template, values, seed, draws=draws)


def reconstructions(program: Any, x: Data, seed: int, *, draws: bool) -> GeneratedImages | None:
    """Generate images at latents from the posterior of images x (N, ...); None where the program has no latents."""
    values = sample_posterior(program.guide, x, seed)
    return generate_images(program, x, values, seed, draws=draws) if values else None


def sample_images(program: Any, template: Data, seed: int, *, means: bool) -> Tensor | None:
    """Return images (N, ...) that a program generates, or None where it has no prior.

    Args:
        program: an object with ``model(x)``.
        template: images (N, ...) of which only number and shape count.
        seed: of the draws.
        means: whether means of p(x|z) stand for draws.
    """
    samples = []
    for batch, batch_seed in batches(template, seed):
        values = sample_prior(program.model, batch, batch_seed)
        if values is None:
            return None
        arguments = program.model, batch, values, batch_seed
        samples.append(decode_mean_or_sample(*arguments)[0] if means else decode_sample(*arguments))
    return torch.cat(samples)


def class_rows(x: Data, columns: int) -> Batch:
    """Return a batch to draw with a row of so many images for each class of the labels beside x.

    Where nothing stands beside x it is the first image throughout, as many rows as columns.
    """
    batch = Batch.of(x)
    beside = [
        leaf for leaf in (*batch.args, *batch.kwargs.values()) if isinstance(leaf, Tensor) and leaf is not batch.x
    ]
    rows = [leaf for leaf in beside if leaf.dim() and len(leaf) == len(batch) and not leaf.is_floating_point()]
    if not rows:
        return batch.expand(columns * columns)
    classes = rows[0].reshape(len(batch), -1)[:, 0]
    first = [int((classes == label).nonzero()[0]) for label in classes.unique()]  # an image of each class
    return batch[torch.tensor(first, device=batch.device).repeat_interleave(columns)]


def sample_prior_grid(program: Any, x: Data, columns: int, seed: int) -> tuple[Batch, Values | None]:
    """Draw latents from the prior, a row for each class where the program has some: labels, or a discrete latent.

    Returns:
        What the model is called with, and {site: (1, N, ...)}, or None where the prior is improper.
    """
    batch = Batch.of(x)
    classes = discrete_values(program.model, program.guide, batch[:1])
    if not classes or len(next(iter(classes.values()))) > _MOST_ROWS:
        template = class_rows(batch, columns)
        return template, sample_prior(program.model, template, seed)
    given = {name: value.repeat_interleave(columns, 0).unsqueeze(0) for name, value in classes.items()}
    template = batch.expand(next(iter(given.values())).shape[1])
    return template, sample_prior(program.model, template, seed, given)
