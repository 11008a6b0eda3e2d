r"""VampPrior: mixture of the posteriors at learned pseudo-inputs u_p, p(z) = (1/P) sum_p q(z|u_p).

Tomczak, Welling, "VAE with a VampPrior", AISTATS 2018 (https://arxiv.org/abs/1705.07120).
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.model.distributions.diagonal_normals import DiagonalNormalComponents


class VampPrior(nn.Module):
    """Uniform mixture of the amortized posterior at P learned pseudo-inputs.

    The posterior network is shared with the guide, and receives gradients from both the prior and the guide. Sampling
    draws a component uniformly at random, consistent with the density.

    Args:
        posterior: Module; ``posterior(x)`` returns q(z|x) for images x.
        pseudo_inputs: Initial pseudo-inputs, images in [0, 1], shape (P, *pixels).
    """

    def __init__(self, posterior: nn.Module, pseudo_inputs: Tensor) -> None:
        super().__init__()
        self.posterior = posterior
        # The sigmoid restricts pseudo-inputs to the range of images; they are initialized away from its saturation.
        self.logits = nn.Parameter(pseudo_inputs.clamp(0.02, 0.98).logit())

    def forward(self) -> dist.Distribution:
        """Return the mixture at the current pseudo-inputs."""
        components = self.posterior(self.logits.sigmoid())
        if isinstance(components, dist.Independent) and isinstance(components.base_dist, dist.Normal):
            components = DiagonalNormalComponents(components.base_dist.loc, components.base_dist.scale)
        weights = dist.Categorical(logits=self.logits.new_zeros(len(self.logits)))
        return dist.MixtureSameFamily(weights, components)


def from_images(posterior: nn.Module, images: Tensor, num_components: int = 200) -> VampPrior:
    """Return a VampPrior with pseudo-inputs initialized to randomly chosen training images.

    Args:
        posterior: Module; ``posterior(x)`` returns q(z|x) for images x.
        images: Training images, uint8, shape (N, *pixels).
        num_components: P, the number of pseudo-inputs; all N images are used if it exceeds N.

    Raises:
        UserError: If the data are a table, since pseudo-inputs are images.
    """
    if images.is_floating_point():
        raise UserError("--prior vamp requires images, and the data are a table; use a different --prior.")
    indices = torch.randperm(len(images))[:num_components]
    return VampPrior(posterior, images[indices].cpu() / 255)
