r"""Element-wise views of distributions, an element being e.g. a pixel or a latent unit."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution, constraints
from torch import Tensor
from torch.distributions import Independent


def unwrap(distribution: Any) -> tuple[Any, list[Tensor]]:
    """Strip `to_event`, `mask` and `expand` from a distribution; return that of single elements and the masks.

    A mask has the batch shape of the distribution to which it was applied. It is returned with trailing singleton
    dimensions, so that it broadcasts against the batch shape of the elements.
    """
    masks = []
    while isinstance(distribution, (Independent, MaskedDistribution, ExpandedDistribution)):
        if isinstance(distribution, MaskedDistribution):
            masks.append((torch.as_tensor(distribution._mask), len(distribution.event_shape)))
        distribution = distribution.base_dist
    event_dim = len(distribution.event_shape)
    return distribution, [mask[(..., *[None] * (dims - event_dim))] for mask, dims in masks]


def get_support(distribution: Any) -> Any:
    """Return the support of a distribution, or `real` if it defines none (as zuko flows do not)."""
    try:
        return distribution.support
    except NotImplementedError:
        return constraints.real


def elementwise_support(support: Any) -> Any:
    """Return the support of single elements if that of an event is their product, else `support` itself."""
    return elementwise_support(support.base_constraint) if isinstance(support, constraints.independent) else support


def component_support(support: Any) -> Any:
    """Replace a mixture's support, which `biject_to` does not handle, by the support of its components."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return component_support(support.base_constraint)
    if isinstance(support, constraints.independent):
        return constraints.independent(component_support(support.base_constraint), support.reinterpreted_batch_ndims)
    return support


def is_normalized(distribution: Any) -> bool:
    """Return whether a distribution is normalized. Losses set ``normalized = False``."""
    return bool(getattr(distribution, "normalized", True))
