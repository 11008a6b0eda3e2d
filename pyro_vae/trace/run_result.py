r"""Result of one run of a model or guide: its sites, their values and their log-densities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.trace.elements import unwrap
from pyro_vae.trace.enumeration import count_states
from pyro_vae.trace.marginals import mask_as_uniform, sum_out, sum_out_terms
from pyro_vae.trace.plates import Frame, Layout, Site, add_guide_names, in_data_plate
from pyro_vae.trace.shapes import per_image, to_particles
from pyro_vae.trace.terms import Terms, is_unit, log_prob

Values = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class ParticleTrace:
    """A run of a model or guide for K particles of B images.

    The layout ``singly`` has one trace per particle; other layouts have a single trace.
    """

    traces: tuple[poutine.Trace, ...]
    frame: Frame  # dimensions of each trace
    layout: Layout
    held: frozenset[str] = frozenset()  # names of the latents held at given values

    @property
    def num_samples(self) -> int:
        """Number of particles, K, not counting the values of summed-out sites."""
        return len(self.traces) * self.frame.num_samples // count_states(self.layout.summed)

    @property
    def batch_size(self) -> int:
        """Number of images, B."""
        return self.frame.batch_size

    @cached_property
    def sites(self) -> dict[str, Site]:
        """Sample sites of the first trace, without subsamples of plates and `pyro.deterministic`."""
        return proper_sites(self.traces[0])

    @cached_property
    def latents(self) -> list[str]:
        """Names of the sampled sites, except auxiliary ones and the unobserved part of an `obs_mask`."""
        return [name for name in self.drawn if not self.sites[name]["infer"].get("is_auxiliary")]

    @property
    def summed(self) -> list[str]:
        """Names of the latents that are summed out. They hold all of their values."""
        return [site.name for site in self.layout.summed]

    @property
    def enumerated(self) -> list[str]:
        """Names of the latents that the guide enumerates."""
        return [site.name for site in self.layout.enumerated]

    @cached_property
    def drawn(self) -> list[str]:
        """Names of the sampled sites, including auxiliary ones."""
        return [
            name
            for name, site in self.sites.items()
            if not (site["is_observed"] or self._is_unobserved(name) or name in self.summed)
        ]

    @property
    def shared(self) -> list[str]:
        """Names of the sampled sites outside the data plate."""
        return [name for name in self.drawn if not in_data_plate(self.sites[name], self.frame)]

    @property
    def values(self) -> dict[str, Tensor]:
        """Values of the latents, {site: (K, B, ...)}, or (K, ...) for a site shared by all images."""
        return self.get_values(self.latents)

    def get_values(self, names: list[str]) -> dict[str, Tensor]:
        """Return values of the named sites, {site: (K, B, ...)}, or (K, ...) for a shared site."""
        values = {name: self.join(name, lambda site: to_particles(site["value"], site, self.frame)) for name in names}
        return {name: value[: self.num_samples] for name, value in values.items()} if self.summed else values

    @property
    def deltas(self) -> dict[str, Delta]:
        """Latents with a `Delta` distribution, {site: distribution of its elements}."""
        elements = {name: unwrap(self.sites[name]["fn"])[0] for name in self.latents}
        return {name: delta for name, delta in elements.items() if isinstance(delta, Delta)}

    @property
    def observed(self) -> dict[str, tuple[Any, Tensor]]:
        """Observed sites of the first trace, {site: (distribution, data)}, without `pyro.factor`."""
        return {
            name: (site["fn"], site["value"])
            for name, site in self.sites.items()
            if site["is_observed"] and not isinstance(site["fn"], Unit)
        }

    def subsamples(self) -> dict[str, Tensor]:
        """Return the subsamples that the plates drew, for other runs of the same step."""
        nodes: dict[str, Any] = self.traces[0].nodes
        return {n: node["value"] for n, node in nodes.items() if node["type"] == "sample" and site_is_subsample(node)}

    def native_values(self) -> dict[str, Tensor]:
        """Return the latents' tensors in the layout of the trace, together with the subsamples."""
        return self.subsamples() | {name: self.sites[name]["value"] for name in self.latents}

    def with_plate_of(self, model: ParticleTrace) -> ParticleTrace:
        """Return this run of a guide with the data plate found in a run of its model."""
        data = add_guide_names(model.frame, model.sites, self.sites)
        return ParticleTrace(self.traces, self.frame._replace(data=data), self.layout._replace(data=data), self.held)

    def is_factor(self, name: str) -> bool:
        """Return whether a site is a `pyro.factor`."""
        return isinstance(self.sites[name]["fn"], Unit)

    def is_loss(self, name: str, *, guide: bool) -> bool:
        """Return whether a site is a loss term, not a density: a factor, or an observation in a guide."""
        return self.is_factor(name) or (guide and bool(self.sites[name]["is_observed"]))

    def terms(self, *, guide: bool = False) -> Terms:
        """Score every site once and sum out discrete latents. In a guide, observations are loss terms.

        Masks apply to all terms, scales only to the weighted terms and the losses.
        """
        terms = self._terms(guide)
        if not self.summed:
            return terms
        scales = [self.sites[name]["scale"] for name in terms.densities]
        return sum_out_terms(terms, scales, [*self.latents, *self.summed], self.layout.summed)

    def state_terms(self) -> dict[str, Tensor]:
        """Return {site: log-density (S * K, B)} before summing out."""
        return self._terms(guide=False).densities

    def _terms(self, guide: bool) -> Terms:
        terms = Terms({}, {}, {})
        for name, site in self.sites.items():
            if self._is_unobserved(name):
                continue  # sampled from the model itself: its density cancels
            plain = [scale_and_mask(log_prob(s), 1.0, s["mask"]) for s in self.in_each_trace(name)]
            if name in self.summed:
                finite_site = next(finite for finite in self.layout.summed if finite.name == name)
                plain = [
                    mask_as_uniform(term, s, finite_site)
                    for term, s in zip(plain, self.in_each_trace(name), strict=True)
                ]
            if is_unit(site["scale"]):
                density = weighted = self._to_images(name, plain)
            else:
                # Scale in the precision of the network, as stock Pyro does, for bit-identical gradients.
                scaled = [term * s["scale"] for term, s in zip(plain, self.in_each_trace(name), strict=True)]
                density, weighted = self._to_images(name, plain), self._to_images(name, scaled)
            if self.is_loss(name, guide=guide):
                terms.losses[name] = weighted
            else:
                terms.densities[name], terms.weighted[name] = density, weighted
        return terms

    def log_probs(self) -> dict[str, Tensor]:
        """Return {site: log-density (K, B)} in nats, float64, without scales and without factors."""
        densities = self.state_terms()
        if not self.summed:
            return densities
        return sum_out(densities, [*self.latents, *self.summed], self.layout.summed)

    def per_image(self, name: str, fn: Callable[[Site], Tensor], extra: int = 0) -> Tensor:
        """Return a quantity of a site per image, (K, B, ...).

        `fn` computes it from the site, in the batch shape of the site followed by `extra` dimensions.
        """
        return self.join(name, lambda site: per_image(fn(site), site, self.frame, extra))

    def _is_unobserved(self, name: str) -> bool:
        """Return whether a site is the part of an `obs_mask` that only the model samples."""
        stem = name.removesuffix("_unobserved")
        if stem == name or name in self.held or f"{stem}_observed" not in self.sites:
            return False
        masked_site: Any = self.traces[0].nodes.get(stem, {})
        return bool(masked_site.get("infer", {}).get("_deterministic"))

    def in_each_trace(self, name: str) -> list[Site]:
        """Return a site of every trace."""
        return [trace.nodes[name] for trace in self.traces]

    def join(self, name: str, fn: Callable[[Site], Tensor]) -> Tensor:
        """Apply a function to a site of every trace, and concatenate the results over particles."""
        parts = [fn(site) for site in self.in_each_trace(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _to_images(self, name: str, terms: list[Tensor]) -> Tensor:
        """Convert terms of a site (one per trace) to (K, B), float64, dividing shared terms equally among images."""
        parts = []
        for term, site in zip(terms, self.in_each_trace(name), strict=True):
            # Pyro's ImproperUniform.log_prob is always on the CPU.
            part = per_image(term.to(site["value"].device, torch.float64), site, self.frame)
            if part.dim() == 1:
                part = (part / self.batch_size).unsqueeze(1).expand(-1, self.batch_size)
            parts.append(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def proper_sites(trace: poutine.Trace) -> dict[str, Site]:
    """Return the sample sites of a trace that have a density or a factor, {name: site}."""
    nodes: dict[str, Any] = trace.nodes
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }
