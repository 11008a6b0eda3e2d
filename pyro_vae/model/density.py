r"""The program without latents: p(x) itself.

x ~ p(x)    density()
"""

from __future__ import annotations

import pyro
from torch import Tensor, nn


class DensityModel(nn.Module):
    """A density of images as a Pyro model, and the guide of no latent: its ELBO, and IWAE_K of every K, is log p(x).

    Args:
        density: module; ``density()`` is a distribution of event shape (*pixels).
    """

    def __init__(self, density: nn.Module) -> None:
        super().__init__()
        self.density = density

    def model(self, x: Tensor) -> None:
        """Observe the images x, (B, *pixels)."""
        pyro.module("tractable", self)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", self.density(), obs=x)

    def guide(self, x: Tensor) -> None:
        """Infer nothing of the images x, (B, *pixels)."""
