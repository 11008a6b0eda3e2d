r"""VampPrior: the mixture of the posteriors of learned pseudo-inputs, p(z) = (1/P) sum_p q(z|u_p).

Tomczak, Welling, "VAE with a VampPrior", AISTATS 2018 (https://arxiv.org/abs/1705.07120).
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.model.distributions.diagonal_normals import DiagonalNormalComponents


class VampPrior(nn.Module):
    """Uniform mixture of the amortized posterior at P pseudo-inputs, which are learned.

    The posterior network is the program's own: its gradient comes from both places. Generating draws a
    component uniformly at random, as the density says.

    Args:
        posterior: q(z|x), a module of images.
        pseudo_inputs: images (P, *pixels) in [0, 1] where the pseudo-inputs start.
    """

    def __init__(self, posterior: nn.Module, pseudo_inputs: Tensor) -> None:
        super().__init__()
        self.posterior = posterior
        # Sigmoid keeps the pseudo-inputs in the range of images; the start stays off its flat ends.
        self.logits = nn.Parameter(pseudo_inputs.clamp(0.02, 0.98).logit())

    def forward(self) -> dist.Distribution:
        """Return p(z), batch shape (), event shape (D,)."""
        components = self.posterior(self.logits.sigmoid())
        if isinstance(components, dist.Independent) and isinstance(components.base_dist, dist.Normal):
            components = DiagonalNormalComponents(components.base_dist.loc, components.base_dist.scale)
        weights = dist.Categorical(logits=self.logits.new_zeros(len(self.logits)))
        return dist.MixtureSameFamily(weights, components)


def from_images(posterior: nn.Module, images: Tensor, num_components: int = 200) -> VampPrior:
    """Return a VampPrior whose pseudo-inputs start at training images drawn at random.

    Args:
        posterior: q(z|x), a module of images.
        images: uint8 (N, *pixels).
        num_components: P, at most N.

    Raises:
        UserError: the data are numbers: pseudo-inputs are images.
    """
    if images.is_floating_point():
        raise UserError("--prior vamp learns images, and the data are numbers: choose another --prior.")
    chosen = torch.randperm(len(images))[:num_components]
    return VampPrior(posterior, images[chosen].cpu() / 255)
