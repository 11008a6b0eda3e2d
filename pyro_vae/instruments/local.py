r"""Inference gaps: how much ELBO is lost by amortization, and how much by the posterior family.

The ELBO of the encoder is compared with that of posteriors optimized for each image separately. For an encoder with a
diagonal Gaussian posterior, the gain of the diagonal family is the amortization gap, and the further gain of a flow is
a lower bound on the gap that is due to the family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pyro_vae import config, parallel
from pyro_vae.errors import check_count
from pyro_vae.evaluate import per_image_elbos, standard_error
from pyro_vae.instruments.batches import Part, batches, progress_bar
from pyro_vae.instruments.instrument import EvaluatedRun, Result, replace_nonfinite
from pyro_vae.trace import Data


@dataclass(frozen=True)
class LocalPosteriors:
    """ELBO of each image under posteriors optimized for that image. --local-vi-steps writes local.nc.

    Args:
        local_vi_steps: Number of optimization steps for the posterior of each test image. The gain in ELBO over the
            encoder shows how much of its gap is due to amortization. 0 disables it.
    """

    name: ClassVar[str] = "local"

    local_vi_steps: config.Count = 0

    @property
    def requested(self) -> bool:
        """Whether --local-vi-steps is set."""
        return self.local_vi_steps != 0

    def check(self, run: EvaluatedRun) -> None:
        """Raise UserError if the number is negative or log weights are undefined."""
        check_count("--local-vi-steps", self.local_vi_steps)
        run.check_density("--local-vi-steps")

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Optimize posteriors for each test image."""
        return measure_inference_gaps(run.fitted.program, run.test, self.local_vi_steps, seed)

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Return an empty string: the numbers are only in summary.json."""
        return ""


def measure_inference_gaps(program: Any, x: Data, num_steps: int, seed: int) -> Result:
    """Optimize a posterior of each family for each image, and compare the ELBOs with that of the encoder.

    Args:
        program: Object with ``model(x)`` and ``guide(x)``.
        x: Test images as the program observes them, shape (N, ...).
        num_steps: Number of optimization steps.
        seed: Random seed of the posterior samples.

    Returns:
        ELBOs of the encoder (`amortized`) and of each posterior family, shape (N,), in nats. The numbers are their
        means, and the mean gain over the encoder with a standard error over images.
    """
    bar = progress_bar("local posteriors", "step")

    def optimize(part: Part) -> dict[str, np.ndarray]:
        images, batch_seed = part
        return per_image_elbos(program.model, program.guide, images, num_steps=num_steps, seed=batch_seed, progress=bar)

    elbos = list(parallel.map_parts(optimize, batches(x, seed)))
    per_image = {name: np.concatenate([batch[name] for batch in elbos]) for name in elbos[0]}
    numbers: dict[str, Any] = {"num_steps": num_steps}
    for name, values in per_image.items():
        numbers |= {name: float(values.mean()), f"{name}_gain": float((values - per_image["amortized"]).mean())}
        numbers[f"{name}_gain_se"] = standard_error(values - per_image["amortized"])
    return Result(replace_nonfinite(numbers), per_image=per_image)
