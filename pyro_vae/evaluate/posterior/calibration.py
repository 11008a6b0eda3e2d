r"""Simulation-based calibration (SBC) of the guide q(z|x).

With (z, x) sampled from the model, z is an exact sample of p(z|x). If q(z|x) equals that posterior, the rank of z among
L samples from q(z|x) is uniform on 0, ..., L for every latent unit; an overconfident guide gives U-shaped ranks. Talts,
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
    """Rank the latents of simulated images among samples from the guide.

    Args:
        model: Model p(x, z).
        guide: Guide q(z|x).
        template: Images (B, ...), a tuple of positional arguments, or a `Batch`. Only the number and shape of the
            images are used.
        num_samples: Samples per image, L. Ranks are between 0 and L.
        seed: Random seed. None uses fresh entropy.

    Returns:
        Ranks (B, units), with all latent sites flattened and concatenated.

    Raises:
        ValueError: The program has no latent site, or as `simulate`.
    """
    require_per_image(model, guide, template)
    with torch.no_grad(), read_only(model, guide, x=template, seed=seed, purpose="calibration", validate=False):
        x, exact = simulate(model, template)
        if not exact:
            raise UserError("The program has no latent site to calibrate.")
        drawn, _ = draw(guide, x, num_samples)
        ranks = [_ranks(exact[name][0], z).reshape(len(exact[name][0]), -1) for name, z in drawn.items()]
    return torch.cat(ranks, 1).cpu().numpy()


def _ranks(exact: Tensor, drawn: Tensor) -> Tensor:
    """Rank values (B, ...) among samples (L, B, ...). Ties, as in discrete latents, are broken at random."""
    ties = (drawn == exact).sum(0)
    noise = torch.rand(ties.shape, dtype=torch.float64, device=ties.device)
    return (drawn < exact).sum(0) + (noise * (ties + 1)).floor().long()
