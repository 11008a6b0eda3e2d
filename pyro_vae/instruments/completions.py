r"""The figure of completions: the lower half of images, given the upper half."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluate import AISConfig, impute, inpaint_exact
from pyro_vae.instruments.batches import progress_bar
from pyro_vae.report import images
from pyro_vae.runs import Folder
from pyro_vae.trace import Batch, Data

_LOG = logging.getLogger("pyro_vae")
_IMAGES = 10
_ANNEALING = AISConfig(num_chains=32, num_temperatures=50, num_leapfrogs=3)


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
            folder.save_figure(
                "completions", images.labeled_rows(rows, "the lower half (hatched), given the upper half")
            )


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
    return {"observed": upper, **completed, "truth": truth.x}
