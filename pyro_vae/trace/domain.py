r"""The domain of the data, read off the support of what a program observes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.distributions import ImproperUniform
from torch import Tensor

from pyro_vae.trace.densities import run_pair
from pyro_vae.trace.elements import element, is_normalized, of_elements, support_of, unmixed
from pyro_vae.trace.reading import Program, quietly, reading
from pyro_vae.trace.running import Run


def check_support(result: Run) -> None:
    """Refuse data that an observed site cannot have produced, such as grey pixels under a Bernoulli.

    Raises:
        ValueError: names the site, a value that lies outside, and the distribution.
    """
    for name, (distribution, value) in result.observed.items():
        # The support of an image counts only as a whole; that of one pixel says which value it was.
        pixel, masks = element(distribution)
        whole = support_of(pixel)
        single = of_elements(whole)
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
    pixels = [element(fn)[0] for fn, _ in result.observed.values()]
    return any(is_normalized(pixel) and not unmixed(support_of(pixel)).is_discrete for pixel in pixels)


class NoDensity(NamedTuple):
    """Why log p(x, z) - log q(z|x) is no log weight, and whether that is because of a latent."""

    reason: str
    of_latent: bool


def no_density(p: Run, q: Run) -> NoDensity | None:
    """Say why a program has no log weights, or return None where it has.

    A point mass has no density, an improper prior no normalisation, and what is observed may say of itself, by
    ``normalized = False``, that it is a loss and no log-likelihood. A `Delta` with a ``log_density`` is no point mass:
    it holds what has been drawn before, and the density of that.

    Args:
        p: run of the model.
        q: run of the guide.
    """
    for name, delta in q.deltas.items():
        if not delta.log_density.any():
            return NoDensity(f"the posterior of {name!r} is a point mass, which has no density", True)
    return no_normalization(p, q)


def no_normalization(p: Run, q: Run) -> NoDensity | None:
    """Return the reason of `no_density` as far as no value decides it: the improper prior and the loss."""
    for name in q.values:
        if name in p.sites and isinstance(element(p.sites[name]["fn"])[0], ImproperUniform):
            return NoDensity(f"the prior of {name!r} is improper, no distribution", True)
    for name, (distribution, _) in p.observed.items():
        if not is_normalized(element(distribution)[0]):
            return NoDensity(f"the loss of {name!r} is not normalized, and no log-likelihood", False)
    return None


def why_no_density(model: Program, guide: Program, x: Tensor) -> str | None:
    """Return the reason of `no_density` for images x (B, ...)."""
    with torch.no_grad(), reading(model, guide, x=x, seed=0):
        lack = no_density(*run_pair(model, guide, x, 1))
    return lack.reason if lack else None


def is_deterministic(q: Run) -> bool:
    """Whether every particle of a guide is the same: it has no latents, or all are point masses."""
    return q.values.keys() == {name for name, delta in q.deltas.items() if not delta.log_density.any()}
