r"""What a program generates, as pictures in a folder: from the prior, from images, along its latents, from halves.

Wherever p(x|z) has a mean in closed form, both are shown, the mean and a draw: an image of the model is the draw.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae.evaluate import (
    AISConfig,
    decode_units,
    impute,
    inpaint_exact,
    interpolate,
    most_visible_units,
    sample_prior,
    traverse,
)
from pyro_vae.instruments.batches import posterior_means_batched
from pyro_vae.instruments.generated import prior_samples, reconstructions
from pyro_vae.report import images
from pyro_vae.runs import Folder
from pyro_vae.trace import Batch, Data

_LOG = logging.getLogger("pyro_vae")

_PRIOR_COLUMNS = 8
_IMAGES = 10
_UNITS = 10  # that are traversed
_STEPS = 11  # of a traversal or an interpolation
_FRAMES = 20  # of an animation, one way
_MANIFOLD_SIZE = 15  # rows and columns of the plane of two units
_TAIL = 0.01  # of the codes, on either side of where a traversal goes
_ZOOM = 3  # pixels of an animation for each of an image
_ANNEALING = AISConfig(num_chains=32, num_temperatures=50, num_leapfrogs=3)


def write_prior(folder: Folder, program: Any, x: Data, seed: int) -> None:
    """Write prior.png: images that the program generates; nothing where it has no prior."""
    if shown := prior_samples(program, x, _PRIOR_COLUMNS, seed, draws=True):
        title = "z from the prior" if shown.has_latents else "without latents"
        folder.save_figure("prior", images.side_by_side(shown.by_name(), title, _PRIOR_COLUMNS))


def write_reconstructions(folder: Folder, program: Any, x: Data, seed: int) -> None:
    """Write reconstructions.png: test images, and what comes of a draw from their posterior."""
    batch = Batch.of(x)[:_IMAGES]
    if images_shown := reconstructions(program, batch, seed, draws=True):
        rows = {"test images": batch.x, **images_shown.by_name()}
        folder.save_figure("reconstructions", images.labeled_rows(rows, "reconstructions, z from q(z|x)"))
    else:
        _LOG.info("Without latents nothing is reconstructed.")


def write_latents(folder: Folder, program: Any, x: Data, classes: np.ndarray | None, seed: int) -> None:
    """Write traversals.png and .gif, interpolations.png, and of two units manifold.png and codes.png.

    Args:
        folder: where they are written.
        program: an object with ``model(x)`` and ``guide(x)``.
        x: test images (N, *pixels); units move over the range of their codes, but for 1 % on either side.
        classes: of the images (N,), or None.
        seed: of draws.
    """
    means = posterior_means_batched(program, x, seed)
    if not means.shape[1]:
        _LOG.info("Without latents there is nothing to move along.")
        return
    read = partial(decode_units, program.model, program.guide, x, seed=seed)
    low, high = torch.quantile(means[:10_000], means.new_tensor([_TAIL, 1 - _TAIL]), dim=0)
    units = most_visible_units(program.model, program.guide, x, means[0], low, high, _UNITS)
    traversals, kind = read(traverse(means[0], low, high, units, _STEPS))
    named = {f"unit {unit}": row for unit, row in zip(units.tolist(), traversals, strict=True)}
    folder.save_figure("traversals", images.labeled_rows(named, f"one unit moved at a time ({kind} of p(x|z))"))
    paths = torch.stack([traverse(code, low, high, units, _FRAMES) for code in means[:3]])
    folder.save_animation("traversals", _forward_and_backward(read(paths)[0].movedim(2, 0).flatten(1, 2), len(units)))

    if num_pairs := min(_IMAGES, len(means)) // 2:
        ends, _ = read(interpolate(means[:num_pairs], means[num_pairs : 2 * num_pairs], _STEPS))
        pairs = {f"{row} to {row + num_pairs}": between for row, between in enumerate(ends)}
        folder.save_figure(
            "interpolations", images.labeled_rows(pairs, f"from one test image to another ({kind} of p(x|z))")
        )
    else:
        _LOG.info("There is one test image, and none to interpolate to.")
    if means.shape[1] == 2:
        folder.save_figure("codes", images.scatter(means.cpu().numpy(), classes))
        grid, _ = read(_plane(_prior_units(program, x, seed, means)))
        folder.save_figure(
            "manifold", images.side_by_side({f"{kind} of p(x|z)": grid.flatten(0, 1)}, "the plane of z", _MANIFOLD_SIZE)
        )


def write_completions(folder: Folder, program: Any, x: Data, no_density_reason: str | None, seed: int) -> None:
    """Write completions.png: test images whose lower half is missing, and what the program makes of the upper one.

    Args:
        folder: where it is written.
        program: an object with ``model(x)`` and ``guide(x)``.
        x: test images (N, *pixels), whose mean stands in the gap where the guide looks.
        no_density_reason: why the program has no densities, or None; there is no conditional distribution then.
        seed: of all noise.
    """
    if no_density_reason:
        _LOG.info("Nothing is completed: %s.", no_density_reason)
        return
    batch = Batch.of(x)
    truth = batch[:_IMAGES]
    holed = truth.x.clone()
    height = holed.shape[-2]
    holed[..., height // 2 :, :] = torch.nan
    num_observed = holed[0].numel() // height * (height // 2)
    exact = inpaint_exact(program.model, truth, num_observed, seed)
    if exact is not None:
        completed = {"draw": exact}
    else:
        bar = partial(tqdm, desc="completions", unit="temperature", disable=None, leave=False)
        try:
            holes = truth.replace_x(holed)
            fill = batch.x.mean(0)
            imputed = impute(program.model, program.guide, holes, _ANNEALING, fill_value=fill, seed=seed, progress=bar)
        except ValueError as error:
            _LOG.info("Nothing is completed: %s", error)
            return
        completed = {"mean": torch.as_tensor(imputed.mean), "draw": torch.as_tensor(imputed.draw)}
    shown = {"seen": holed.nan_to_num(0.5), **completed, "truth": truth.x}
    rows = {name: row.cpu() for name, row in shown.items()}
    folder.save_figure("completions", images.labeled_rows(rows, "the lower half, given the upper one"))


def _prior_units(program: Any, x: Data, seed: int, means: Tensor) -> Tensor:
    """Return draws of two units from the prior (N, 2), or the codes of images where there is none."""
    values = sample_prior(program.model, Batch.of(x).expand(5000), seed)
    return means if values is None else torch.cat([z.reshape(5000, -1) for z in values.values()], 1)


def _plane(units: Tensor) -> Tensor:
    """Return a grid over two units (rows, columns, 2), at the quantiles of what each is drawn from (N, 2)."""
    quantiles = (torch.arange(_MANIFOLD_SIZE, device=units.device) + 0.5) / _MANIFOLD_SIZE
    horizontal, vertical = torch.quantile(units, quantiles.to(units.dtype), dim=0).T
    return torch.stack(torch.meshgrid(horizontal, vertical.flip(0), indexing="xy"), -1)


def _forward_and_backward(frames: Tensor, per_row: int) -> list[np.ndarray]:
    """Return frames of images (T, N, height, width) in [0, 1] as grids of gray levels, forwards and backwards."""
    tiles = [images.tile(frame, per_row) for frame in (*frames, *frames.flip(0)[1:-1])]
    return [(255 * tile).round().astype(np.uint8).repeat(_ZOOM, 0).repeat(_ZOOM, 1) for tile in tiles]
