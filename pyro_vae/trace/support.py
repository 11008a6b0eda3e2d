r"""Check data and latents against the supports of the distributions at their sites."""

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
    """Raise if data are outside the support of an observed site, e.g. gray pixels under a Bernoulli.

    Raises:
        ValueError: Names the site, a value outside the support, and the distribution.
    """
    for name, (distribution, value) in result.observed.items():
        # Check every pixel rather than the whole image, so that the error can name the offending value.
        pixel, masks = unwrap(distribution)
        masks = [*masks, *_site_masks(result, name, pixel)]
        support = get_support(pixel)
        element_support = elementwise_support(support)
        inside = element_support.check(value)
        for mask in masks:
            inside = inside | ~mask[(..., *[None] * (support.event_dim - element_support.event_dim))].to(value.device)
        if not inside.all():
            first = value.expand(*inside.shape, *value.shape[inside.dim() :])[~inside].flatten()[0].item()
            raise UserError(
                f"Site {name!r} observes {first:.6g}, outside the support of its {type(pixel).__name__}: "
                "binarize the images or choose a likelihood with a suitable support."
            )


def find_outside_prior(p: ParticleTrace, values: Values) -> tuple[Tensor, str]:
    """Find the particles that a guide sampled outside the support of the prior.

    An explicit check is needed because the log-densities of few distributions are -inf outside their support.

    Args:
        p: Run of the model, whose sites define the supports.
        values: Values that the guide sampled, {site: (K, B, ...)}.

    Returns:
        (outside, name): whether each particle is outside, (K, B), or a scalar False if none is; and the name of a site
        where one is outside, or an empty string.
    """
    outside, site_name = torch.zeros((), dtype=torch.bool), ""
    for name, value in values.items():
        try:
            inside = get_support(p.sites[name]["fn"]).check(value)
        except (NotImplementedError, RuntimeError):  # undefined, or dependent on other latents
            continue
        if inside.shape[:2] != value.shape[:2] or len(get_plates(p.sites[name])) > 1:  # e.g. bounds per time step
            continue
        if not inside.all():
            outside = outside.to(inside.device) | ~inside.reshape(*value.shape[:2], -1).all(-1)
            site_name = name
    return outside, site_name


def _site_masks(result: ParticleTrace, name: str, pixel: object) -> list[Tensor]:
    """Return the mask of `poutine.mask` or `obs_mask` at a site, broadcastable to its elements."""
    site = result.sites[name]
    if site["mask"] is None:
        return []
    extra = site["fn"].event_dim - len(getattr(pixel, "event_shape", ()))
    return [torch.as_tensor(site["mask"])[(..., *[None] * extra)]]


def check_support(model: Program, guide: Program, batch: Data) -> None:
    """Raise if a model cannot have produced a batch, to be called before training.

    Raises:
        ValueError: See `check_trace_support`.
    """
    with torch.no_grad(), read_only(model, guide, x=batch, seed=0, validate=False):
        check_trace_support(trace_model_and_guide(model, guide, batch, 1)[0])
