r"""Is the guide calibrated? Simulation-based calibration of q(z|x).

With (z, x) drawn from the model, z is an exact draw of p(z|x). Where q(z|x) is that posterior, the rank of z among L
draws from it is uniform on 0, ..., L, unit by unit; a guide too narrow ranks it too often at the ends. Talts,
Betancourt, Simpson, Vehtari, Gelman, "Validating Bayesian Inference Algorithms with Simulation-Based Calibration",
2018 (https://arxiv.org/abs/1804.06788).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace import Data, Program, draw, read_only, require_per_image, simulate

Array = np.ndarray


def sbc_ranks(
    model: Program, guide: Program, template: Data, num_samples: int = 99, *, seed: int | None = None
) -> Array:
    """Rank the latents behind simulated images among draws from the guide.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        template: images (B, ...), of which only number and shape count.
        num_samples: L; ranks go from 0 to L.
        seed: of all noise.

    Returns:
        Ranks (B, units), all latent sites flattened and joined.

    Raises:
        ValueError: as `simulate`, or the program has no latent site.
    """
    require_per_image(model, guide, template)
    with torch.no_grad(), read_only(model, guide, x=template, seed=seed, purpose="calibration", validate=False):
        x, exact = simulate(model, template)
        if not exact:
            raise UserError("The program has no latent site: there is nothing to calibrate.")
        drawn, _ = draw(guide, x, num_samples)
        ranks = [_ranks(exact[name][0], z).reshape(len(exact[name][0]), -1) for name, z in drawn.items()]
    return torch.cat(ranks, 1).cpu().numpy()


def _ranks(exact: Tensor, drawn: Tensor) -> Tensor:
    """Rank values (B, ...) among draws (L, B, ...); among equal ones, of a discrete latent, at random."""
    ties = (drawn == exact).sum(0)
    noise = torch.rand(ties.shape, dtype=torch.float64, device=ties.device)
    return (drawn < exact).sum(0) + (noise * (ties + 1)).floor().long()
