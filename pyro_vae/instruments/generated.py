r"""Images that a program generates, from latents sampled from the prior or from the posterior of an image.

Decoder means and samples are kept apart: means of p(x|z) look smoother, but only samples include the noise of the
pixels and are distributed as the images of the model.
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
from pyro_vae.trace import Batch, Data, derive_seed, describe

_LOG = logging.getLogger("pyro_vae")
_MOST_ROWS = 50  # maximum number of classes, one row each, in a figure


def observes_x(program: Any, x: Data) -> bool:
    """Return whether a site of the program observes x unchanged, so that its samples can be shown as images."""
    return describe(program.model, program.guide, x).image is not None


class GeneratedImages(NamedTuple):
    """Means and draws of p(x|z), or of p(x) for a program without latents, shape (N, ...). One of them may be None."""

    means: Tensor | None
    kind: str
    """Kind of the means; see `evaluate.decode_mean_or_sample`."""
    draws: Tensor | None
    has_latents: bool

    @property
    def distribution(self) -> str:
        """Name of the distribution, ``p(x|z)`` or ``p(x)``."""
        return "p(x|z)" if self.has_latents else "p(x)"

    def by_name(self) -> dict[str, Tensor]:
        """Return the images that exist by their titles, means first."""
        both = {f"{self.kind} of {self.distribution}": self.means, f"draws from {self.distribution}": self.draws}
        return {name: images for name, images in both.items() if images is not None}

    def first(self) -> tuple[Tensor, str]:
        """Return the means, or the draws if there are no means, and their title."""
        name, images = next(iter(self.by_name().items()))
        return images, name


def generate_images(program: Any, template: Data, values: Values, seed: int, *, draws: bool) -> GeneratedImages:
    """Decode latents.

    Args:
        program: Object with ``model(x)``.
        template: Images of shape (N, ...). Only their number and shape are used.
        values: Latents, {site: (1, N, ...)}. Empty for a program without latents.
        seed: Random seed of the draws.
        draws: Whether to return draws in addition to means. If there are no means, draws are returned in any case.
    """
    decoded, kind = decode_mean_or_sample(program.model, template, values, seed)
    if kind == "draws":
        return GeneratedImages(None, kind, decoded, bool(values))
    drawn = decode_sample(program.model, template, values, seed) if draws else None
    return GeneratedImages(decoded, kind, drawn, bool(values))


def prior_samples(program: Any, x: Data, columns: int, seed: int, *, draws: bool) -> GeneratedImages | None:
    """Decode latents sampled from the prior, see `sample_prior_grid`. Return None for an improper prior."""
    seed = derive_seed(seed, "prior samples")
    template, values = sample_prior_grid(program, x, columns, seed)
    if values is None:
        _LOG.info("No prior samples: the prior is improper.")
        return None
    return generate_images(program, template, values, seed, draws=draws)


def reconstructions(program: Any, x: Data, seed: int, *, draws: bool) -> GeneratedImages | None:
    """Decode latents sampled from the posterior of x, shape (N, ...). Return None for a program without latents."""
    seed = derive_seed(seed, "reconstructions")
    values = sample_posterior(program.guide, x, seed)
    return generate_images(program, x, values, seed, draws=draws) if values else None


def sample_images(program: Any, template: Data, seed: int, *, means: bool) -> Tensor | None:
    """Sample images, shape (N, ...), from a program. Return None for an improper prior.

    Args:
        program: Object with ``model(x)``.
        template: Images of shape (N, ...). Only their number and shape are used.
        seed: Random seed of the draws.
        means: Whether to return means of p(x|z), if they are available, instead of draws.

    Several processes do not share the batches: figures and `gallery`, for which they are drawn, are made by one.
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
    """Return a template of `columns` images for each class of the integer labels that the program takes with x.

    Without labels, the template repeats the first image, for as many rows as columns.
    """
    batch = Batch.of(x)
    others = [
        leaf for leaf in (*batch.args, *batch.kwargs.values()) if isinstance(leaf, Tensor) and leaf is not batch.x
    ]
    labels = [leaf for leaf in others if leaf.dim() and len(leaf) == len(batch) and not leaf.is_floating_point()]
    if not labels:
        return batch.expand(columns * columns)
    classes = labels[0].reshape(len(batch), -1)[:, 0]
    indices = [int((classes == label).nonzero()[0]) for label in classes.unique()]  # one image of each class
    return batch[torch.tensor(indices, device=batch.device).repeat_interleave(columns)]


def sample_prior_grid(program: Any, x: Data, columns: int, seed: int) -> tuple[Batch, Values | None]:
    """Sample latents from the prior, `columns` for each class if the program takes labels or has a discrete latent.

    Returns:
        The arguments of the model, and the latents {site: (1, N, ...)}, or None for an improper prior.
    """
    batch = Batch.of(x)
    classes = discrete_values(program.model, program.guide, batch[:1])
    if not classes or len(next(iter(classes.values()))) > _MOST_ROWS:
        template = class_rows(batch, columns)
        return template, sample_prior(program.model, template, seed)
    given = {name: value.repeat_interleave(columns, 0).unsqueeze(0) for name, value in classes.items()}
    template = batch.expand(next(iter(given.values())).shape[1])
    return template, sample_prior(program.model, template, seed, given)
