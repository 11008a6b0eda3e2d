r"""Describe a program from one run: the roles of its sites, its plates, its observations and missing densities."""

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
    """A sample site.

    Attributes:
        role: ``latent``; ``observed``; ``summed out`` (discrete and not sampled by the guide); ``auxiliary`` (sampled
            only by the guide); ``unobserved`` (left out by an `obs_mask`, sampled only by the model); or ``loss`` (a
            `pyro.factor`, a site that the guide observes, or an observation under an unnormalized distribution).
        kind: Class name of the distribution of its elements.
        plates: Names of the plates around it, outermost first.
        event_shape: Its event shape.
    """

    role: str
    kind: str
    plates: tuple[str, ...]
    event_shape: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    """Properties of a model and its guide, found from one run of both.

    Args:
        model: Sites of the model by name.
        guide: Sites of the guide by name.
        data_plate: Name of the data plate.
        observes: ``density`` if x is observed under a density over the reals, ``loss`` if under an unnormalized loss,
            else ``probability``. If no single site holds x unchanged, all observed sites count.
        no_density_reason: Reason why log p(x, z) - log q(z | x) is undefined, or None if it is defined.
        no_latent_density: Whether the reason is a latent, so that the rate is undefined, too.
        deterministic: Whether all particles of the guide are equal.
        shared: Latent or observed sites outside the data plate. If there are any, single images have no log weight.
        losses: Sites that are loss terms rather than densities.
        image: Observed site that holds x unchanged, if `describe` found one.
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
        """Reason why single images have no log weight although the batch may have one, or None."""
        if not self.shared:
            return None
        return (
            f"Site {self.shared[0]!r} is outside the data plate {self.data_plate!r} and shared by all images, so that "
            "single images have no log weights: put sites of single images into one plate object, or compute the "
            'weights of the whole batch with log_weights(..., shared="sampled").'
        )


def describe(model: Program, guide: Program, batch: Data, seed: int | None = 0) -> Description:
    """Describe a model and its guide from one run of both, without side effects.

    Args:
        model: Model, p(x, z).
        guide: Guide, q(z | x).
        batch: Arguments of both.
        seed: Random seed of the run. None uses a random one.

    Raises:
        ValueError: See `trace_model_and_guide`.
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
    """Raise ValueError if a site is shared by all images, so that single images have no log weights."""
    if reason := describe(model, guide, batch).not_per_image_reason:
        raise UserError(reason)


def describe_traces(guide: Program, batch: Data, p: ParticleTrace, q: ParticleTrace) -> Description:
    """Describe a program from given runs.

    Args:
        guide: Guide, which may be run once more to detect point masses.
        batch: Arguments of the guide.
        p: Run of the model.
        q: Run of the guide.
    """
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
    """Return the observed sites outside the data plate, including those in a second plate of the same size.

    The rows of such a plate cannot be assigned to images.
    """
    return [name for name in p.observed if not in_data_plate(p.sites[name], p.frame)]


def _observes(p: ParticleTrace, names: list[str]) -> str:
    """Classify observed sites of a model as ``density``, ``probability`` or ``loss``. See `Description`."""
    pixels = [unwrap(p.observed[name][0])[0] for name in names]
    if any(is_normalized(pixel) and not component_support(get_support(pixel)).is_discrete for pixel in pixels):
        return "density"
    return "probability" if all(map(is_normalized, pixels)) else "loss"


def _point_masses(guide: Program, batch: Data, q: ParticleTrace) -> tuple[str, ...]:
    """Return the latents of a guide that are point masses: instances of `Delta` without a density.

    A `Delta` with a ``log_density`` carries a sample and its log-density. A `Delta` without one also carries a sample
    if it is computed from auxiliary sites, which have the density (e.g. in Pyro's AutoContinuous guides). Its value
    then differs between two runs, so that the guide is run once more to decide.
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
    bare = [name for name, delta in q.deltas.items() if not delta.log_density.any()]
    auxiliary = [name for name in q.drawn if name not in q.latents]
    if bare and auxiliary and len(bare) == len(q.latents):
        num_drawn, num_used = (sum(event_size(q.sites[name]) for name in names) for names in (auxiliary, bare))
        if num_drawn != num_used:
            return f"{num_drawn} auxiliary values determine {num_used} latent values: {bare[0]!r} has no density"
    for name in q.latents:
        if name in p.sites and isinstance(unwrap(p.sites[name]["fn"])[0], ImproperUniform):
            return f"the prior of {name!r} is improper, not a distribution"
        if name in p.sites and name not in q.deltas and _is_discrete(p, name) != _is_discrete(q, name):
            return f"{name!r} is discrete in one of model and guide and continuous in the other, as a relaxation is"
    return None


def _is_discrete(run: ParticleTrace, name: str) -> bool:
    return bool(component_support(get_support(run.sites[name]["fn"])).is_discrete)


def _unnormalized_reason(p: ParticleTrace) -> str | None:
    for name, (distribution, _) in p.observed.items():
        if not is_normalized(unwrap(distribution)[0]):
            return f"the loss of {name!r} is not normalized, hence not a log-likelihood"
    for name, site in p.sites.items():
        for plate in get_plates(site):
            if plate.name != p.frame.data.name and plate.full_size not in (None, plate.size):
                return (
                    f"plate {plate.name!r} subsamples {plate.size} of {plate.full_size} at site {name!r}: only "
                    "a part of log p(x) is evaluated"
                )
        if isinstance(site["fn"], Unit):
            return f"the factor {name!r} of the model is not normalized, hence not a log-likelihood"
    return None
