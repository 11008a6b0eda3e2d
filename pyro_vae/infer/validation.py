r"""What an epoch is worth on the validation images, and the best epoch so far."""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.infer.epochs import Epoch
from pyro_vae.infer.objectives.particles import draw_particles
from pyro_vae.infer.parameters import State, program_state
from pyro_vae.infer.svi import SVI
from pyro_vae.trace import Batch, Program, read_only

_VALID_BATCH = 1000


def validate(model: Program, guide: Program, valid: Batch, seed: int) -> tuple[float | None, float]:
    """Estimate the ELBO and the distortion of the validation images with one particle each.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        valid: the images, of any number.
        seed: of the noise, the same at every call.

    Returns:
        (ELBO, None where the program has no log weights; distortion), in nats per image.
    """
    description, elbo, distortion = None, 0.0, 0.0
    # Where a fit diverges, this may be the first to see it: it is NaN then, and the next step says so.
    with (
        torch.no_grad(),
        pyro.validation_enabled(False),
        read_only(model, guide, x=valid, seed=seed, purpose="validation"),
    ):
        for batch in valid.split(_VALID_BATCH):
            particles = draw_particles(model, guide, batch, 1, description=description)
            description = particles.description
            elbo += float(particles.log_w.sum()) / len(valid)
            distortion -= float(particles.log_likelihood.sum()) / len(valid)
    return None if description is None or description.no_density_reason else elbo, distortion


class Best(NamedTuple):
    """The best epoch so far: its validation ELBO, its number, and the parameters after it.

    Where there is no ELBO, minus the distortion takes its place.
    """

    value: float = -math.inf
    epoch: int = -1
    parameters: State | None = None

    def keep_better(self, record: Epoch, svi: SVI) -> Best:
        """Return this, or the epoch that has just ended, with a copy of the parameters, where that is better."""
        if record.valid_distortion is None:
            return self
        value = -record.valid_distortion if record.valid_elbo is None else record.valid_elbo
        if not value > self.value:  # a NaN is never better
            return self
        values = program_state(svi.modules, svi.optim.params)
        return Best(value, record.index, torch.utils._pytree.tree_map_only(Tensor, torch.clone, values))
