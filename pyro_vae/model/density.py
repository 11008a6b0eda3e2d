r"""Program without latents: an explicit density p(x) of images.

x ~ p(x)    density()
"""

from __future__ import annotations

import pyro
from torch import Tensor, nn


class DensityModel(nn.Module):
    """Fully observed density model with an empty guide: the ELBO, and IWAE_K for every K, equal log p(x).

    Args:
        density: Module; ``density()`` returns p(x), event shape (*pixels).
    """

    def __init__(self, density: nn.Module) -> None:
        super().__init__()
        self.density = density

    def model(self, x: Tensor) -> None:
        """Observe the images `x`, shape (B, *pixels)."""
        pyro.module("tractable", self)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", self.density(), obs=x)

    def guide(self, x: Tensor) -> None:
        """Sample nothing: the model has no latents."""
