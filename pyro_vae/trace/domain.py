r"""The domain of the data, read off the support of what a program observes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta, ExpandedDistribution, ImproperUniform, MaskedDistribution, constraints
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.trace.densities import run_pair
from pyro_vae.trace.reading import Program, quietly, reading
from pyro_vae.trace.running import Run


def check_support(result: Run) -> None:
    """Refuse data that an observed site cannot have produced, such as grey pixels under a Bernoulli.

    Raises:
        ValueError: names the site, a value that lies outside, and the distribution.
    """
    for name, (distribution, value) in result.observed.items():
        # The support of an image counts only as a whole; that of one pixel says which value it was.
        pixel, masks = _element(distribution)
        whole = support_of(pixel)
        single = _of_elements(whole)
        inside = single.check(value)
        for mask in masks:
            inside = inside | ~mask[(..., *[None] * (whole.event_dim - single.event_dim))].to(value.device)
        if not inside.all():
            first = value.expand(*inside.shape, *value.shape[inside.dim() :])[~inside].flatten()[0].item()
            raise ValueError(
                f"Site {name!r} observes {first:.6g}, outside the support of its {type(pixel).__name__}: "
                "binarize the images or choose a likelihood of their domain."
            )


def check_domain(model: Program, guide: Program, x: Tensor) -> None:
    """Refuse a program that cannot have produced images x (B, ...), before anything is trained on them.

    Raises:
        ValueError: as `check_support`.
    """
    with torch.no_grad(), quietly(model, guide, x=x, seed=0):
        check_support(run_pair(model, guide, x, 1)[0])


def is_density(model: Program, guide: Program, x: Tensor) -> bool:
    """Say whether a program observes images x (B, ...) under a density rather than a probability.

    A density over 8-bit pixels has no bound, so its pixels must be dequantized; only the shape of x matters.
    """
    with torch.no_grad(), reading(model, guide, x=x, seed=0):
        result, _ = run_pair(model, guide, x, 1)
    pixels = [_element(fn)[0] for fn, _ in result.observed.values()]
    return any(_normalized(pixel) and not unmixed(support_of(pixel)).is_discrete for pixel in pixels)


class NoDensity(NamedTuple):
    """Why log p(x, z) - log q(z|x) is no log weight, and whether that is because of a latent."""

    reason: str
    of_latent: bool


def no_density(p: Run, q: Run) -> NoDensity | None:
    """Say why a program has no log weights, or return None where it has.

    A point mass has no density, an improper prior no normalisation, and what is observed may say of itself, by
    ``normalized = False``, that it is a loss and no log-likelihood.

    Args:
        p: run of the model.
        q: run of the guide.
    """
    for name in q.values:
        if _is_point_mass(q, name):
            return NoDensity(f"the posterior of {name!r} is a point mass, which has no density", True)
        if name in p.sites and isinstance(_element(p.sites[name]["fn"])[0], ImproperUniform):
            return NoDensity(f"the prior of {name!r} is improper, no distribution", True)
    for name, (distribution, _) in p.observed.items():
        if not _normalized(_element(distribution)[0]):
            return NoDensity(f"the loss of {name!r} is not normalized, and no log-likelihood", False)
    return None


def is_deterministic(q: Run) -> bool:
    """Whether every particle of a guide is the same: it has no latents, or all are point masses."""
    return all(_is_point_mass(q, name) for name in q.values)


def _is_point_mass(q: Run, name: str) -> bool:
    return isinstance(_element(q.sites[name]["fn"])[0], Delta)


def _normalized(distribution: Any) -> bool:
    return bool(getattr(distribution, "normalized", True))


def _element(distribution: Any) -> tuple[Any, list[Tensor]]:
    """Return the distribution of one element, stripped of `to_event`, `mask` and `expand`, and the masks.

    A mask has the batch dimensions of what it masks; it comes back with one for each element beside them.
    """
    masks = []
    while isinstance(distribution, (Independent, MaskedDistribution, ExpandedDistribution)):
        if isinstance(distribution, MaskedDistribution):
            masks.append((torch.as_tensor(distribution._mask), len(distribution.event_shape)))
        distribution = distribution.base_dist
    own = len(distribution.event_shape)
    return distribution, [mask[(..., *[None] * (dims - own))] for mask, dims in masks]


def support_of(distribution: Any) -> Any:
    """Return the support of a distribution; one that states none (a zuko flow) is taken as real."""
    try:
        return distribution.support
    except NotImplementedError:
        return constraints.real


def _of_elements(support: Any) -> Any:
    """Return the support of single elements where that of an event is a product of theirs."""
    return _of_elements(support.base_constraint) if isinstance(support, constraints.independent) else support


def unmixed(support: Any) -> Any:
    """Return the support of a mixture's components for that of the mixture, which does not say what it is."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return unmixed(support.base_constraint)
    if isinstance(support, constraints.independent):
        return constraints.independent(unmixed(support.base_constraint), support.reinterpreted_batch_ndims)
    return support
