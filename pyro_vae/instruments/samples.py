r"""Figures of samples, reconstructions, traversals and interpolations.

Figures of samples and reconstructions show means of p(x|z) and draws from it: only draws are images of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.evaluate import decode_units, interpolate, most_visible_units, sample_prior, traverse
from pyro_vae.instruments.batches import posterior_means_batched
from pyro_vae.instruments.generated import prior_samples, reconstructions
from pyro_vae.report import images, latents
from pyro_vae.runs import Folder
from pyro_vae.trace import Batch, Data, derive_seed

_LOG = logging.getLogger("pyro_vae")
Decode = Callable[[Tensor], tuple[Tensor, str]]
"""Function that decodes units, shape (..., units), and returns the images and their kind."""

_PRIOR_COLUMNS = 8
_IMAGES = 10
_UNITS = 10  # maximum number of units that are traversed
_STEPS = 11  # images per traversal or interpolation
_FRAMES = 20  # frames of an animation in one direction
_MANIFOLD_SIZE = 15  # rows and columns of the grid over two units
_TAIL = 0.01  # a traversal goes from this quantile of the codes to the opposite one
_VISIBLE = 0.2  # a unit is shown if its traversal changes a pixel by as much, of the range [0, 1]
_ZOOM = 3  # pixels of an animation per pixel of an image


def write_prior(folder: Folder, program: Any, x: Data, seed: int) -> None:
    """Write prior.png: images decoded from the prior. An improper prior has none."""
    with folder.drawing("prior"):
        if shown := prior_samples(program, x, _PRIOR_COLUMNS, seed, draws=True):
            title = "z from the prior" if shown.has_latents else "without latents"
            folder.save_figure("prior", images.side_by_side(shown.by_name(), title, _PRIOR_COLUMNS))


def write_reconstructions(folder: Folder, program: Any, x: Data, seed: int) -> None:
    """Write reconstructions.png: test images, and images decoded from one sample of their posterior."""
    batch = Batch.of(x)[:_IMAGES]
    with folder.drawing("reconstructions"):
        if decoded := reconstructions(program, batch, seed, draws=True):
            rows = {"test images": batch.x, **decoded.by_name()}
            folder.save_figure("reconstructions", images.labeled_rows(rows, "reconstructions, z from q(z|x)"))
        else:
            _LOG.info("No reconstructions: the program has no latents.")


def write_latents(folder: Folder, program: Any, x: Data, classes: np.ndarray | None, seed: int) -> None:
    """Write traversals.png and .gif, interpolations.png, and for two latent units manifold.png and codes.png.

    Args:
        folder: Folder of the figures.
        program: Object with ``model(x)`` and ``guide(x)``.
        x: Test images, shape (N, *pixels). Units move from the 1st to the 99th percentile of their codes.
        classes: Classes of the images, shape (N,), or None.
        seed: Random seed of posterior samples and draws.
    """
    means = posterior_means_batched(program, x, derive_seed(seed, "traversals"))
    if not means.shape[1]:
        _LOG.info("No traversals: the program has no latents.")
        return
    decode = partial(decode_units, program.model, program.guide, x, seed=derive_seed(seed, "traversals"))
    with folder.drawing("traversals"):
        low, high = torch.quantile(means[:10_000], means.new_tensor([_TAIL, 1 - _TAIL]), dim=0)
        units = most_visible_units(program.model, program.guide, x, means[0], low, high, _UNITS)
        _write_traversals(folder, decode, means, (low, high), units)
    with folder.drawing("interpolations"):
        _write_interpolations(folder, decode, means)
    if means.shape[1] == 2:
        with folder.drawing("codes"):
            folder.save_figure("codes", latents.scatter(means.cpu().numpy(), classes))
        with folder.drawing("manifold"):
            grid = _plane(_prior_units(program, x, seed, means))
            decoded, kind = decode(grid)
            title = f"{kind} of p(x|z) at quantiles of the two latent units"
            edges = grid[0, :, 0].tolist(), grid[:, 0, 1].tolist()
            folder.save_figure("manifold", latents.plane(decoded, *edges, title))


def _write_traversals(
    folder: Folder, decode: Decode, means: Tensor, ends: tuple[Tensor, Tensor], units: Tensor
) -> None:
    """Write traversals.png and .gif: images while one of `units` moves between the two ends, each of shape (units,).

    Units that change no pixel visibly are left out, except for the first.
    """
    traversals, kind = decode(traverse(means[0], *ends, units, _STEPS))
    visible = (traversals.amax(1) - traversals.amin(1)).flatten(1).amax(1).cpu() >= _VISIBLE
    visible[0] = True
    units, shown = units[visible], traversals[visible]
    names = {unit: f"unit {unit}" for unit in units.tolist()}
    title = f"traversals of {len(units)} of {means.shape[1]} units, the most visible first ({kind} of p(x|z))"
    folder.save_figure("traversals", latents.traversals(names, shown, means[0], *ends, title))
    paths = torch.stack([traverse(code, *ends, units, _FRAMES) for code in means[:3]])
    folder.save_animation("traversals", _forward_and_backward(decode(paths)[0].movedim(2, 0).flatten(1, 2), len(units)))


def _write_interpolations(folder: Folder, decode: Decode, means: Tensor) -> None:
    """Write interpolations.png: images on the lines between pairs of posterior means."""
    num_pairs = min(_IMAGES, len(means)) // 2
    if not num_pairs:
        _LOG.info("No interpolations: there is only one test image.")
        return
    interpolations, kind = decode(interpolate(means[:num_pairs], means[num_pairs : 2 * num_pairs], _STEPS))
    pairs = {f"{row} to {row + num_pairs}": path for row, path in enumerate(interpolations)}
    title = f"interpolations of test images ({kind} of p(x|z))"
    folder.save_figure("interpolations", images.labeled_rows(pairs, title))


def _prior_units(program: Any, x: Data, seed: int, means: Tensor) -> Tensor:
    """Return prior samples of two units, shape (N, 2), or the posterior means if the prior is improper."""
    batch = Batch.of(x)
    # The model decodes each of them, which takes minutes for thousands of large images.
    number = max(500, min(5000, 2**26 // batch.x[0].numel()))
    values = sample_prior(program.model, batch.expand(number), derive_seed(seed, "manifold"))
    return means if values is None else torch.cat([z.reshape(number, -1) for z in values.values()], 1)


def _plane(units: Tensor) -> Tensor:
    """Return a grid of shape (rows, columns, 2) at the quantiles of each unit of `units`, shape (N, 2)."""
    quantiles = (torch.arange(_MANIFOLD_SIZE, device=units.device) + 0.5) / _MANIFOLD_SIZE
    horizontal, vertical = torch.quantile(units, quantiles.to(units.dtype), dim=0).T
    return torch.stack(torch.meshgrid(horizontal, vertical.flip(0), indexing="xy"), -1)


def _forward_and_backward(frames: Tensor, per_row: int) -> list[np.ndarray]:
    """Convert T frames of N images in [0, 1] to uint8 grids, played forward and then backward."""
    forward = [(255 * images.tile(frame, per_row)).round().astype(np.uint8) for frame in frames]
    zoom = _ZOOM if _ZOOM * max(forward[0].shape) <= images.MOST_PIXELS else 1
    zoomed = [tile.repeat(zoom, 0).repeat(zoom, 1) for tile in forward]
    return [*zoomed, *zoomed[-2:0:-1]]
