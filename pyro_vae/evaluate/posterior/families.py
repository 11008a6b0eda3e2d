r"""Variational families for single images, over latents (K, B, D) whitened by the amortized posterior.

In whitened units the amortized posterior has mean 0 and standard deviation 1 in each dimension. A family is a pair of
functions: from parameters, with one set per image, to a distribution; and from a template (B, D) to initial parameters,
at which the distribution is N(0, I).
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.errors import UserError

Parameters = list[Tensor]

_HIDDEN, _COUPLINGS = 32, 4


def _diagonal(parameters: Parameters) -> dist.Distribution:
    loc, log_scale = parameters[:2]
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def _full(parameters: Parameters) -> dist.Distribution:
    loc, log_scale, below = parameters
    return dist.MultivariateNormal(loc, scale_tril=below.tril(-1) + log_scale.exp().diag_embed())


def _flow(parameters: Parameters) -> dist.Distribution:
    offsets = range(2, len(parameters), 4)  # loc and log_scale come first, then four tensors per coupling
    couplings = [_Coupling(parameters[offset : offset + 4], flip=i % 2 == 0) for i, offset in enumerate(offsets)]
    return dist.TransformedDistribution(_diagonal(parameters), couplings)


def _diagonal_start(template: Tensor) -> Parameters:
    return [torch.zeros_like(template), torch.zeros_like(template)]


def _full_start(template: Tensor) -> Parameters:
    return [*_diagonal_start(template), template.new_zeros(*template.shape, template.shape[-1])]


def _flow_start(template: Tensor) -> Parameters:
    num_images, dim = template.shape
    if dim < 2:
        raise UserError("The flow family splits the latents into two parts, so it needs at least two latent units.")
    # The output layers are zero, so that each coupling is initially the identity.
    parameters = _diagonal_start(template)
    for i in range(_COUPLINGS):
        given, moved = (dim - dim // 2, dim // 2) if i % 2 == 0 else (dim // 2, dim - dim // 2)
        first = torch.randn(num_images, given, _HIDDEN, dtype=template.dtype, device=template.device) / given**0.5
        parameters += [first, template.new_zeros(num_images, _HIDDEN)]
        parameters += [template.new_zeros(num_images, _HIDDEN, 2 * moved), template.new_zeros(num_images, 2 * moved)]
    return parameters


FAMILIES: dict[str, tuple[Callable[[Parameters], dist.Distribution], Callable[[Tensor], Parameters]]] = {
    "diagonal": (_diagonal, _diagonal_start),
    "full": (_full, _full_start),
    "flow": (_flow, _flow_start),
}


class _Coupling(dist.transforms.Transform):
    """Affine coupling layer with one network per image: it shifts and scales one part of u, given the other part."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, weights: Parameters, flip: bool) -> None:
        super().__init__(cache_size=0)
        self.weights = weights
        self.flip = flip

    def _split(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Split u (K, B, D) into the given and the moved part; return both, the shift and the log scale."""
        given_size = self.weights[0].shape[-2]
        sizes = [u.shape[-1] - given_size, given_size] if self.flip else [given_size, u.shape[-1] - given_size]
        parts = u.split(sizes, -1)
        given, moved = reversed(parts) if self.flip else parts
        first, first_bias, second, second_bias = self.weights
        hidden = torch.tanh(torch.einsum("kbi,bih->kbh", given, first) + first_bias)
        shift, log_scale = (torch.einsum("kbh,bho->kbo", hidden, second) + second_bias).chunk(2, -1)
        return given, moved, shift, log_scale.tanh()

    def _join(self, given: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, given] if self.flip else [given, moved], -1)

    def _call(self, u: Tensor) -> Tensor:
        given, moved, shift, log_scale = self._split(u)
        return self._join(given, moved * log_scale.exp() + shift)

    def _inverse(self, v: Tensor) -> Tensor:
        given, moved, shift, log_scale = self._split(v)
        return self._join(given, (moved - shift) * (-log_scale).exp())

    def log_abs_det_jacobian(self, u: Tensor, v: Tensor) -> Tensor:
        """Return log |det dv/du| (K, B)."""
        return self._split(u)[3].sum(-1)
