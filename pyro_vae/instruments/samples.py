r"""Figures of samples, reconstructions, traversals, interpolations and completions.

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
from pyro_vae.instruments.batches import posterior_means_batched, progress_bar
from pyro_vae.instruments.generated import prior_samples, reconstructions
from pyro_vae.report import images
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
_ZOOM = 3  # pixels of an animation per pixel of an image
_ANNEALING = AISConfig(num_chains=32, num_temperatures=50, num_leapfrogs=3)


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
            folder.save_figure("codes", images.scatter(means.cpu().numpy(), classes))
        with folder.drawing("manifold"):
            grid, kind = decode(_plane(_prior_units(program, x, seed, means)))
            panel = {f"{kind} of p(x|z)": grid.flatten(0, 1)}
            title = "quantiles of the two latent units"
            folder.save_figure("manifold", images.side_by_side(panel, title, _MANIFOLD_SIZE))


def _write_traversals(
    folder: Folder, decode: Decode, means: Tensor, ends: tuple[Tensor, Tensor], units: Tensor
) -> None:
    """Write traversals.png and .gif: images while one of `units` moves between the two ends, each of shape (units,)."""
    traversals, kind = decode(traverse(means[0], *ends, units, _STEPS))
    rows = {f"unit {unit}": row for unit, row in zip(units.tolist(), traversals, strict=True)}
    folder.save_figure("traversals", images.labeled_rows(rows, f"traversals of single units ({kind} of p(x|z))"))
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


def write_completions(folder: Folder, program: Any, x: Data, no_density_reason: str | None, seed: int) -> None:
    """Write completions.png: test images whose lower half is imputed given the upper half.

    Args:
        folder: Folder of the figure.
        program: Object with ``model(x)`` and ``guide(x)``.
        x: Test images, shape (N, *pixels). Their mean fills the missing half in the input of the guide.
        no_density_reason: Why the log weights of the program are undefined, or None. Without them, nothing is written.
        seed: Random seed of the imputation.
    """
    if no_density_reason:
        _LOG.info("No completions: %s.", no_density_reason)
        return
    with folder.drawing("completions"):
        if shown := _completions(program, Batch.of(x), seed):
            rows = {name: row.cpu() for name, row in shown.items()}
            folder.save_figure("completions", images.labeled_rows(rows, "the lower half, given the upper half"))


def _completions(program: Any, batch: Batch, seed: int) -> dict[str, Tensor] | None:
    """Return the rows of completions.png by name, or None if the program cannot be imputed."""
    truth = batch[:_IMAGES]
    upper = truth.x.clone()
    height = upper.shape[-2]
    upper[..., height // 2 :, :] = torch.nan
    num_observed = upper[0].numel() // height * (height // 2)
    exact = inpaint_exact(program.model, truth, num_observed, seed)
    if exact is not None:
        completed = {"draw": exact}
    else:
        bar = progress_bar("completions", "temperature")
        try:
            missing = truth.replace_x(upper)
            fill = batch.x.mean(0)
            imputed = impute(
                program.model, program.guide, missing, _ANNEALING, fill_value=fill, seed=seed, progress=bar
            )
        except ValueError as error:
            _LOG.info("No completions: %s", error)
            return None
        completed = {"mean": torch.as_tensor(imputed.mean), "draw": torch.as_tensor(imputed.draw)}
    return {"observed": upper.nan_to_num(0.5), **completed, "truth": truth.x}


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
