r"""What a distribution says of single elements: pixels, latent units."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution, constraints
from torch import Tensor
from torch.distributions import Independent


def unwrap(distribution: Any) -> tuple[Any, list[Tensor]]:
    """Return the distribution of one element, stripped of `to_event`, `mask` and `expand`, and the masks.

    A mask has the batch dimensions of what it masks; it comes back with one for each element beside them.
    """
    masks = []
    while isinstance(distribution, (Independent, MaskedDistribution, ExpandedDistribution)):
        if isinstance(distribution, MaskedDistribution):
            masks.append((torch.as_tensor(distribution._mask), len(distribution.event_shape)))
        distribution = distribution.base_dist
    event_dim = len(distribution.event_shape)
    return distribution, [mask[(..., *[None] * (dims - event_dim))] for mask, dims in masks]


def get_support(distribution: Any) -> Any:
    """Return the support of a distribution; one that states none (a zuko flow) is taken as real."""
    try:
        return distribution.support
    except NotImplementedError:
        return constraints.real


def elementwise_support(support: Any) -> Any:
    """Return the support of single elements where that of an event is a product of theirs."""
    return elementwise_support(support.base_constraint) if isinstance(support, constraints.independent) else support


def component_support(support: Any) -> Any:
    """Return the support of a mixture's components for that of the mixture, which does not say what it is."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return component_support(support.base_constraint)
    if isinstance(support, constraints.independent):
        return constraints.independent(component_support(support.base_constraint), support.reinterpreted_batch_ndims)
    return support


def is_normalized(distribution: Any) -> bool:
    """Whether a distribution is one: a loss in its place says ``normalized = False``."""
    return bool(getattr(distribution, "normalized", True))
