r"""What a program is, found out once: its sites and their roles, its plates, what it observes, and what it lacks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import ImproperUniform, Unit

from pyro_vae.errors import UserError
from pyro_vae.trace.batch import Batch, Data, Program
from pyro_vae.trace.densities import trace_model_and_guide, trace_particles
from pyro_vae.trace.elements import component_support, get_support, is_normalized, unwrap
from pyro_vae.trace.isolation import fork_rng, isolated_param_store, read_only
from pyro_vae.trace.plates import get_plates, in_data_plate
from pyro_vae.trace.run_result import ParticleTrace
from pyro_vae.trace.shapes import event_size
from pyro_vae.trace.simulation import find_image_site


class SiteInfo(NamedTuple):
    """A sample site: its role, the class of its elements' distribution, its plates from outside in, its event shape.

    Roles are ``latent``, ``observed``, ``summed out`` (a discrete latent that the guide does not draw), ``auxiliary``
    (drawn by the guide alone), ``unobserved`` (what an `obs_mask` leaves out, drawn by the model alone) and ``loss``: a
    `pyro.factor`, what a guide observes, or an observation whose distribution says that it is not normalized.
    """

    role: str
    kind: str
    plates: tuple[str, ...]
    event_shape: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """What is known of a model and its guide from one run of both.

    Args:
        model: its sites by name.
        guide: its sites by name.
        data_plate: name of the plate of the images.
        observes: ``density`` where x is observed under a density over the reals, ``loss`` where under a loss that is no
            distribution, ``probability`` otherwise; where no site holds x as it is, every observed site counts.
        no_density_reason: why there are no log weights, log p(x, z) - log q(z|x), or None where there are.
        no_latent_density: whether that is because of a latent, so that there is no rate either.
        deterministic: whether every particle of the guide is the same.
        shared: sites outside the data plate, latent or observed: an image has no log weight of its own then.
        losses: sites that are terms of the loss and no densities.
        image: the observed site that holds x as it is, where `describe` has found one.
    """

    model: dict[str, SiteInfo]
    guide: dict[str, SiteInfo]
    data_plate: str
    observes: str
    no_density_reason: str | None
    no_latent_density: bool
    deterministic: bool
    shared: tuple[str, ...]
    losses: tuple[str, ...]
    image: str | None = None

    @property
    def not_per_image_reason(self) -> str | None:
        """Why an image has no log weight of its own though the batch may have one, or None."""
        if not self.shared:
            return None
        return (
            f"Site {self.shared[0]!r} stands outside the data plate {self.data_plate!r} and is shared by all images, "
            "none of which has a log weight of its own then: put sites of single images into one plate object, or take "
            'the weight of the whole batch, log_weights(..., shared="sampled").'
        )


def describe(model: Program, guide: Program, batch: Data, seed: int | None = 0) -> Description:
    """Describe a model and its guide by one run of both, which leaves no mark.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        batch: what they are called with.
        seed: of the draws.

    Raises:
        ValueError: as `trace_model_and_guide`.
    """
    with torch.no_grad(), read_only(model, guide, x=batch, seed=seed, purpose="describe"):
        p, q = trace_model_and_guide(model, guide, batch, 1)
        description = describe_traces(guide, batch, p, q)
        try:
            image = find_image_site(model, batch, q.values)[0]
        except ValueError:
            return description
        return replace(description, image=image, observes=_observes(p, [image]))


def require_per_image(model: Program, guide: Program, batch: Data) -> None:
    """Refuse a program of which one image has no numbers of its own.

    Raises:
        ValueError: names the site that all images share.
    """
    if reason := describe(model, guide, batch).not_per_image_reason:
        raise UserError(reason)


def describe_traces(guide: Program, batch: Data, p: ParticleTrace, q: ParticleTrace) -> Description:
    """Describe a program by a run of its model and one of its guide, for a batch."""
    point_masses = _point_masses(guide, batch, q)
    no_density_reason = _latent_density_reason(p, q, point_masses)
    loss = _unnormalized_reason(p)
    losses = [name for name in p.sites if p.is_loss(name, guide=False)]
    losses += [name for name in q.sites if q.is_loss(name, guide=True)]
    return Description(
        model={name: _info(p, name, guide=False) for name in p.sites},
        guide={name: _info(q, name, guide=True) for name in q.sites},
        data_plate=p.frame.data.name,
        observes=_observes(p, list(p.observed)),
        no_density_reason=no_density_reason or loss,
        no_latent_density=no_density_reason is not None,
        deterministic=set(q.drawn) == set(point_masses),
        shared=tuple(dict.fromkeys([*p.shared, *q.shared, *_observed_outside(p)])),
        losses=tuple(losses),
    )


def _observed_outside(p: ParticleTrace) -> list[str]:
    """Return the observed sites outside the data plate, among them those of a second plate of its size.

    Nothing says whose rows such a plate holds, so that an image is given no part of them.
    """
    return [name for name in p.observed if not in_data_plate(p.sites[name], p.frame)]


def _observes(p: ParticleTrace, names: list[str]) -> str:
    """Say what some of the observed sites of a model are."""
    pixels = [unwrap(p.observed[name][0])[0] for name in names]
    if any(is_normalized(pixel) and not component_support(get_support(pixel)).is_discrete for pixel in pixels):
        return "density"
    return "probability" if all(map(is_normalized, pixels)) else "loss"


def _point_masses(guide: Program, batch: Data, q: ParticleTrace) -> tuple[str, ...]:
    """Return the latents of a guide that are point masses: a `Delta` without a density of its own.

    A `Delta` with a ``log_density`` holds what has been drawn before, and the density of that. One without holds a draw
    too where it is made of auxiliary sites, which have the density (as in Pyro's AutoContinuous guides): then it moves
    from draw to draw.

    Args:
        guide: program of q(z|x).
        batch: what it is called with.
        q: a run of the guide.
    """
    bare = tuple(name for name, delta in q.deltas.items() if not delta.log_density.any())
    if not bare or len(q.drawn) == len(q.latents):
        return bare
    with torch.no_grad(), fork_rng(Batch.of(batch).x), isolated_param_store(), pyro.validation_enabled(False):
        again = trace_particles(guide, batch, layout=q.layout._replace(kind="plain")).values
    return tuple(name for name in bare if torch.equal(again[name], q.values[name][:1]))


def _info(run: ParticleTrace, name: str, *, guide: bool) -> SiteInfo:
    site = run.sites[name]
    fn = unwrap(site["fn"])[0]
    if run.is_loss(name, guide=guide) or (site["is_observed"] and not is_normalized(fn)):
        role = "loss"
    elif site["is_observed"]:
        role = "observed"
    elif name in run.latents:
        role = "latent"
    elif name in run.summed:
        role = "summed out"
    else:
        role = "auxiliary" if name in run.drawn else "unobserved"
    return SiteInfo(role, type(fn).__name__, tuple(p.name for p in get_plates(site)), tuple(site["fn"].event_shape))


def _latent_density_reason(p: ParticleTrace, q: ParticleTrace, point_masses: tuple[str, ...]) -> str | None:
    if point_masses:
        return f"the posterior of {point_masses[0]!r} is a point mass, which has no density"
    moved = [name for name, delta in q.deltas.items() if not delta.log_density.any()]
    auxiliary = [name for name in q.drawn if name not in q.latents]
    if moved and auxiliary and len(moved) == len(q.latents):
        drawn, used = (sum(event_size(q.sites[name]) for name in names) for names in (auxiliary, moved))
        if drawn != used:
            return f"{drawn} auxiliary draws make {used} latents, of which {moved[0]!r} then has no density"
    for name in q.latents:
        if name in p.sites and isinstance(unwrap(p.sites[name]["fn"])[0], ImproperUniform):
            return f"the prior of {name!r} is improper, no distribution"
        if name in p.sites and name not in q.deltas and _is_discrete(p, name) != _is_discrete(q, name):
            return f"{name!r} has a probability in one program and a density in the other, as that of a relaxation"
    return None


def _is_discrete(run: ParticleTrace, name: str) -> bool:
    return bool(component_support(get_support(run.sites[name]["fn"])).is_discrete)


def _unnormalized_reason(p: ParticleTrace) -> str | None:
    for name, (distribution, _) in p.observed.items():
        if not is_normalized(unwrap(distribution)[0]):
            return f"the loss of {name!r} is not normalized, and no log-likelihood"
    for name, site in p.sites.items():
        for plate in get_plates(site):
            if plate.name != p.frame.data.name and plate.full_size not in (None, plate.size):
                return (
                    f"plate {plate.name!r} draws {plate.size} of {plate.full_size} at site {name!r}: a part of log p(x)"
                )
        if isinstance(site["fn"], Unit):
            return f"the factor {name!r} of the model is not normalized, and no log-likelihood"
    return None
