r"""Amortized posteriors q(z|x): modules whose ``forward(x)`` returns a distribution, batch shape (...), event (D,).

A posterior is built from a function ``encoder(num_outputs)`` and the latent dimension D. It requests the number of
outputs that it needs; the encoder is a network (..., *pixels) -> (..., num_outputs).
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
import zuko
from torch import Tensor, nn

from pyro_vae.model.distributions.reparameterized import FlowDistribution, ReparameterizedMixture

Encoder = Callable[[int], nn.Module]


class MeanField(nn.Module):
    r"""Diagonal Gaussian q(z|x) = N(z; loc(x), diag(scale(x)^2)).

    Kingma, Welling, "Auto-Encoding Variational Bayes", ICLR 2014 (https://arxiv.org/abs/1312.6114).
    """

    def __init__(self, encoder: Encoder, latent_dim: int) -> None:
        super().__init__()
        self.net = encoder(2 * latent_dim)

    def forward(self, x: Tensor) -> dist.Distribution:
        """Return a diagonal Gaussian for each image of `x`, shape (..., *pixels)."""
        loc, log_scale = self.net(x).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class PointMass(nn.Module):
    """Point mass at loc(x): the deterministic code of an autoencoder, which has no density.

    Hinton, Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks", Science 313 (2006)
    (https://doi.org/10.1126/science.1127647).
    """

    def __init__(self, encoder: Encoder, latent_dim: int) -> None:
        super().__init__()
        self.net = encoder(latent_dim)

    def forward(self, x: Tensor) -> dist.Distribution:
        """Return a `Delta` at the code of each image of `x`, shape (..., *pixels)."""
        return dist.Delta(self.net(x), event_dim=1)


class FullRank(nn.Module):
    r"""Gaussian q(z|x) = N(z; loc(x), L(x) L(x)') with an image-dependent Cholesky factor L(x).

    The strictly lower part of L is the output of the network divided by sqrt(D), so that the spread at initialization
    does not grow with D.
    """

    tril_indices: Tensor

    def __init__(self, encoder: Encoder, latent_dim: int) -> None:
        super().__init__()
        rows, columns = torch.tril_indices(latent_dim, latent_dim, -1)
        self.register_buffer("tril_indices", rows * latent_dim + columns, persistent=False)
        self.sizes = [latent_dim, latent_dim, len(self.tril_indices)]
        self.net = encoder(sum(self.sizes))

    def forward(self, x: Tensor) -> dist.Distribution:
        """Return a Gaussian with full covariance for each image of `x`, shape (..., *pixels)."""
        loc, log_diagonal, below = self.net(x).split(self.sizes, dim=-1)
        scale_tril = log_diagonal.exp().diag_embed()
        # Scatter into the flattened matrix: about twenty times faster than indexed assignment and its gradient.
        below = below / loc.shape[-1] ** 0.5
        filled = scale_tril.flatten(-2).scatter(-1, self.tril_indices.expand(below.shape), below)
        return dist.MultivariateNormal(loc, scale_tril=filled.view_as(scale_tril))


class LowRank(nn.Module):
    r"""Gaussian q(z|x) = N(z; loc(x), W(x) W(x)' + diag(scale(x)^2)), where W has R <= D columns.

    W is the output of the network divided by sqrt(R D). Rank one is due to Rezende, Mohamed, Wierstra, "Stochastic
    Backpropagation and Approximate Inference in Deep Generative Models", ICML 2014 (https://arxiv.org/abs/1401.4082).
    """

    def __init__(self, encoder: Encoder, latent_dim: int, rank: int = 5) -> None:
        super().__init__()
        self.rank = min(rank, latent_dim)
        self.net = encoder(latent_dim * (2 + self.rank))

    def forward(self, x: Tensor) -> dist.Distribution:
        """Return a Gaussian with low-rank plus diagonal covariance for each image of `x`, shape (..., *pixels)."""
        loc, log_scale, *columns = self.net(x).chunk(2 + self.rank, dim=-1)
        factor = torch.stack(columns, -1) / (self.rank * loc.shape[-1]) ** 0.5
        return dist.LowRankMultivariateNormal(loc, factor, (2 * log_scale).exp())


class IAF(nn.Module):
    r"""Inverse autoregressive flow, z = f_T(... f_1(e; h(x)) ...; h(x)) with e ~ N(loc(x), diag(scale(x)^2)).

    Sampling takes one pass per transform and caches the log-density of the sample; evaluating the density of any other
    z takes D passes per transform. Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow",
    NeurIPS 2016 (https://arxiv.org/abs/1606.04934).

    Args:
        encoder: Function that returns a network with the given number of outputs.
        latent_dim: D, the latent dimension.
        num_transforms: T, the number of transforms. The order of the units alternates.
        num_features: Number of features h(x) that condition each transform.
    """

    def __init__(self, encoder: Encoder, latent_dim: int, num_transforms: int = 2, num_features: int = 64) -> None:
        super().__init__()
        self.sizes = [latent_dim, latent_dim, num_features]
        self.net = encoder(sum(self.sizes))
        flow = zuko.flows.MAF(latent_dim, num_features, transforms=num_transforms, hidden_features=(128, 128))
        self.transform = flow.transform.inv

    def forward(self, x: Tensor) -> dist.Distribution:
        """Return the flow conditioned on each image of `x`, shape (..., *pixels)."""
        loc, log_scale, features = self.net(x).split(self.sizes, dim=-1)
        base = zuko.distributions.DiagNormal(loc, log_scale.exp())
        return FlowDistribution(zuko.distributions.NormalizingFlow(self.transform(features), base))


class Mixture(nn.Module):
    r"""Mixture of C diagonal Gaussians with image-dependent weights, means and scales: see `ReparameterizedMixture`."""

    def __init__(self, encoder: Encoder, latent_dim: int, num_components: int = 4) -> None:
        super().__init__()
        self.num_components = num_components
        self.net = encoder(num_components * (2 * latent_dim + 1))

    def forward(self, x: Tensor) -> dist.Distribution:
        """Return a mixture for each image of `x`, shape (..., *pixels)."""
        outputs = self.net(x).unflatten(-1, (self.num_components, -1))
        loc, log_scale = outputs[..., 1:].chunk(2, dim=-1)
        return ReparameterizedMixture(
            dist.Categorical(logits=outputs[..., 0]), dist.Normal(loc, log_scale.exp()).to_event(1)
        )
