r"""Posteriors of single images: how much of the ELBO's gap is due to the encoder, and how much to its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from pyro_vae import config
from pyro_vae.evaluate import per_image_elbos, standard_error
from pyro_vae.instruments.batches import batches
from pyro_vae.instruments.instrument import EvaluatedRun, Result, check_count, replace_nonfinite
from pyro_vae.trace import Data


@dataclass(frozen=True)
class LocalPosteriors:
    """ELBO of each image under posteriors optimized for it alone. --local-vi-steps writes local.nc.

    Args:
        local_vi_steps: Number of optimization steps for the posterior of each test image. The gain in ELBO over the
            encoder shows how much of its gap is due to amortization. 0 disables it.
    """

    name: ClassVar[str] = "local"

    local_vi_steps: config.Count = 0

    @property
    def requested(self) -> bool:
        """Whether there are steps."""
        return self.local_vi_steps != 0

    def check(self, run: EvaluatedRun) -> None:
        """Refuse a negative number, and a run without densities."""
        check_count("--local-vi-steps", self.local_vi_steps)
        run.check_density("--local-vi-steps")

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Optimize a posterior for each test image."""
        return measure_inference_gaps(run.fitted.program, run.test, self.local_vi_steps, seed)

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Return nothing: the numbers are in summary.json."""
        return ""


def measure_inference_gaps(program: Any, x: Data, num_steps: int, seed: int) -> Result:
    """Optimize a posterior for each image.

    Args:
        program: an object with ``model(x)`` and ``guide(x)``.
        x: test images (N, ...) as the program observes them.
        num_steps: of the optimization.
        seed: of all noise.

    Returns:
        ELBOs (N,) in nats, of the encoder and of each family of posteriors; their means and what they gain over the
        encoder, with standard errors over images.
    """
    bar = partial(tqdm, desc="local posteriors", unit="step", disable=None, leave=False)
    elbos = [
        per_image_elbos(program.model, program.guide, images, num_steps=num_steps, seed=batch_seed, progress=bar)
        for images, batch_seed in batches(x, seed)
    ]
    per_image = {name: np.concatenate([batch[name] for batch in elbos]) for name in elbos[0]}
    numbers: dict[str, Any] = {"num_steps": num_steps}
    for name, values in per_image.items():
        numbers |= {name: float(values.mean()), f"{name}_gain": float((values - per_image["amortized"]).mean())}
        numbers[f"{name}_gain_se"] = standard_error(values - per_image["amortized"])
    return Result(replace_nonfinite(numbers), per_image=per_image)
