r"""A training step that is computed only to see whether it can be."""

from __future__ import annotations

from pyro_vae.infer.epochs import EpochProgress, first_batch
from pyro_vae.infer.fit import Fit
from pyro_vae.infer.location import locate_errors
from pyro_vae.infer.objectives import Objective
from pyro_vae.trace import read_only


def rehearse_last_batch(fit: Fit, num_images: int, batch_size: int) -> None:
    """Evaluate the objective on as many images as the last batch of an epoch holds, if these are fewer.

    Errors of that batch, e.g. of batch normalization given a single image, would otherwise end a run after its first
    epoch. Nothing changes, and no gradient is taken.

    Args:
        fit: Fit under an `Objective`.
        num_images: Number of training images.
        batch_size: Number of images of the other batches.

    Raises:
        ValueError: If the objective cannot be evaluated.
    """
    size = num_images % batch_size
    if not size:
        return
    assert isinstance(fit.svi.objective, Objective)
    batch, progress = first_batch(fit.batches)[:size], EpochProgress(batches=num_images // batch_size)
    model, guide = fit.svi.model, fit.svi.guide
    with (
        fit.scope(),
        locate_errors(0, progress, 0, batch),
        read_only(model, guide, x=batch, seed=0, purpose="rehearsal"),
    ):
        for root in fit.svi.modules:
            root.train()
        fit.svi.objective.bounds(model, guide, batch)
