r"""The domain of data and latents, read off the supports of what a program observes and draws."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace.batch import Data, Program
from pyro_vae.trace.densities import trace_model_and_guide
from pyro_vae.trace.elements import elementwise_support, get_support, unwrap
from pyro_vae.trace.isolation import read_only
from pyro_vae.trace.plates import get_plates
from pyro_vae.trace.run_result import ParticleTrace, Values


def check_trace_support(result: ParticleTrace) -> None:
    """Refuse data that an observed site cannot have produced, such as gray pixels under a Bernoulli.

    Raises:
        ValueError: names the site, a value that lies outside, and the distribution.
    """
    for name, (distribution, value) in result.observed.items():
        # The support of an image counts only as a whole; that of one pixel says which value it was.
        pixel, masks = unwrap(distribution)
        masks = [*masks, *_site_masks(result, name, pixel)]
        whole = get_support(pixel)
        single = elementwise_support(whole)
        inside = single.check(value)
        for mask in masks:
            inside = inside | ~mask[(..., *[None] * (whole.event_dim - single.event_dim))].to(value.device)
        if not inside.all():
            first = value.expand(*inside.shape, *value.shape[inside.dim() :])[~inside].flatten()[0].item()
            raise UserError(
                f"Site {name!r} observes {first:.6g}, outside the support of its {type(pixel).__name__}: "
                "binarize the images or choose a likelihood of their domain."
            )


def find_outside_prior(p: ParticleTrace, values: Values) -> tuple[Tensor, str]:
    """Say which particles a guide has drawn outside the support of the prior, where few densities say that they are 0.

    Args:
        p: a run of the model, whose supports count.
        values: what the guide has drawn, {site: (K, B, ...)}.

    Returns:
        Whether each particle lies outside (K, B), and the name of a site of which it does.
    """
    outside, where = torch.zeros((), dtype=torch.bool), ""
    for name, value in values.items():
        try:
            inside = get_support(p.sites[name]["fn"]).check(value)
        except (NotImplementedError, RuntimeError):  # a support that says nothing, or moves with other latents
            continue
        if inside.shape[:2] != value.shape[:2] or len(get_plates(p.sites[name])) > 1:  # bounds of each step of time
            continue
        if not inside.all():
            outside = outside.to(inside.device) | ~inside.reshape(*value.shape[:2], -1).all(-1)
            where = name
    return outside, where


def _site_masks(result: ParticleTrace, name: str, pixel: object) -> list[Tensor]:
    """Return the mask of `poutine.mask` or `obs_mask` at a site, with the dimensions of its elements."""
    site = result.sites[name]
    if site["mask"] is None:
        return []
    extra = site["fn"].event_dim - len(getattr(pixel, "event_shape", ()))
    return [torch.as_tensor(site["mask"])[(..., *[None] * extra)]]


def check_support(model: Program, guide: Program, batch: Data) -> None:
    """Refuse a program that cannot have produced a batch, before anything is trained on it.

    Raises:
        ValueError: as `check_trace_support`.
    """
    with torch.no_grad(), read_only(model, guide, x=batch, seed=0, validate=False):
        check_trace_support(trace_model_and_guide(model, guide, batch, 1)[0])
