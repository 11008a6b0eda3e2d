r"""Validation after an epoch, and the best epoch so far."""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.infer.epochs import Epoch
from pyro_vae.infer.objectives.particles import draw_particles
from pyro_vae.infer.parameters import State, program_state
from pyro_vae.infer.processes import MapParts
from pyro_vae.infer.svi import SVI
from pyro_vae.trace import Batch, Program, derive_seed, read_only

_VALID_BATCH = 1000


def validate(
    model: Program, guide: Program, valid: Batch, seed: int, map_parts: MapParts = map
) -> tuple[float | None, float]:
    """Estimate the ELBO and the distortion of the validation images with one particle each.

    Every batch has its own seed, so that the estimates do not depend on which process evaluates it.

    Args:
        model: Callable that defines p(x, z).
        guide: Callable that defines q(z|x).
        valid: Validation images, any number.
        seed: Random seed of the noise, the same at every call.
        map_parts: Applies a function to the batches, as `map`; see `OneProcess.map_parts`.

    Returns:
        (ELBO, distortion), in nats per image; the ELBO is None for a program without log weights.
    """

    def sums(part: tuple[int, Batch]) -> tuple[float, float, bool]:
        """Return the ELBO and the distortion of a batch, summed over its images, and whether there are log weights."""
        index, batch = part
        # After divergence, this may be the first evaluation to meet NaN. It returns NaN, and the next step raises.
        with (
            torch.no_grad(),
            pyro.validation_enabled(False),
            read_only(model, guide, x=batch, seed=derive_seed(seed, "batch", index), purpose="validation"),
        ):
            particles = draw_particles(model, guide, batch, 1)
            weighted = not particles.description.no_density_reason
            return float(particles.log_w.sum()), -float(particles.log_likelihood.sum()), weighted

    found = list(map_parts(sums, enumerate(valid.split(_VALID_BATCH))))
    elbo, distortion = (sum(batch[place] for batch in found) / len(valid) for place in (0, 1))
    return elbo if found[0][2] else None, distortion


class Best(NamedTuple):
    """The best epoch so far: its validation ELBO, its index, and a copy of the parameters after it.

    If `parameters` is None, no epoch has been a candidate, and patience counts from the index. For a program without an
    ELBO, `value` is minus the distortion.
    """

    value: float = -math.inf
    epoch: int = -1
    parameters: State | None = None

    def keep_better(self, record: Epoch, svi: SVI) -> Best:
        """Return this, or the epoch that has just ended with a copy of the parameters if its value is higher.

        Epochs in the warm-up of an objective are never the best: they maximize another objective, and patience would
        run out while it changes.
        """
        warmup = getattr(svi.objective, "warmup_steps", 0)
        if warmup and record.step <= warmup:
            return Best(epoch=record.index)
        if record.valid_distortion is None:
            return self
        value = -record.valid_distortion if record.valid_elbo is None else record.valid_elbo
        if not value > self.value:  # NaN is never better
            return self
        values = program_state(svi.modules, svi.optim.params)
        return Best(value, record.index, torch.utils._pytree.tree_map_only(Tensor, torch.clone, values))
