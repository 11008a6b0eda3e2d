r"""One run of a program for K particles, in either of two layouts that give the same numbers.

*Particles*: an outer plate of size K at dim -2, so that a guide encodes each image once. *Rows*: the K particles
as repeated rows of one batch of K*B, which any program supports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.runtime import Message
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.trace.elements import element
from pyro_vae.trace.reading import Program

_PARTICLES = "_particles"


@dataclass(frozen=True)
class Run:
    """One run of a program for K particles of B images."""

    trace: poutine.Trace
    num_samples: int
    batch_size: int

    @cached_property
    def sites(self) -> dict[str, dict[str, Any]]:
        """The sample sites proper: no plate's subsample and no `pyro.deterministic`."""
        nodes: dict[str, Any] = self.trace.nodes
        return {
            name: site
            for name, site in nodes.items()
            if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
        }

    @property
    def values(self) -> dict[str, Tensor]:
        """The values of the latent sites: {site: (K, B, ...)}."""
        return {
            name: site["value"] if in_particles(site) else site["value"].unflatten(0, (self.num_samples, -1))
            for name, site in self.sites.items()
            if not site["is_observed"]
        }

    @property
    def deltas(self) -> dict[str, Delta]:
        """The latent sites that are a `Delta`: {site: distribution of its elements}."""
        elements = {name: element(self.sites[name]["fn"])[0] for name in self.values}
        return {name: delta for name, delta in elements.items() if isinstance(delta, Delta)}

    @property
    def places(self) -> dict[str, Tensor]:
        """Where these lie: {site: (K, B, ...)}."""
        return {
            name: delta.v.reshape(self.num_samples, self.batch_size, *delta.event_shape)
            for name, delta in self.deltas.items()
        }

    @property
    def observed(self) -> dict[str, tuple[Any, Tensor]]:
        """The observed sites: {site: (distribution, data)}; a `pyro.factor` observes nothing."""
        return {
            name: (site["fn"], site["value"])
            for name, site in self.sites.items()
            if site["is_observed"] and not isinstance(site["fn"], Unit)
        }

    def log_probs(self) -> dict[str, Tensor]:
        """Return {site: log-density (K, B)} in nats, float64, without the scales of `poutine.scale`."""
        totals = {}
        for name, site in self.sites.items():
            value = scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])
            # Pyro's improper prior scores on the CPU, wherever its values are.
            value = value.to(site["value"].device, torch.float64)
            totals[name] = value.reshape(self.num_samples, self.batch_size)
        return totals

    def check_plates(self) -> None:
        """Raise ValueError for a site outside the data plate, or inside a second one."""
        for name, site in self.sites.items():
            rows = self.batch_size if in_particles(site) else self.num_samples * self.batch_size
            plates = [f for f in site["cond_indep_stack"] if f.vectorized and f.name != _PARTICLES]
            if len(plates) != 1 or plates[0].dim != -1 or plates[0].size != rows:
                found = ", ".join(f"{f.name!r} of size {f.size} at dim {f.dim}" for f in plates) or "none"
                raise ValueError(
                    f"Site {name!r} must stand in one data plate of size {rows} at dim -1, found {found}: write "
                    "`with pyro.plate('data', x.shape[0])` around it. A global latent variable cannot be read."
                )


def run_laid_out(program: Program, x: Tensor, num_samples: int, given: Mapping[str, Tensor], *, rows: bool) -> Run:
    """Run a program in one layout, latents held at values of that layout (see `lay_out`).

    Raises:
        ValueError: a value has no latent site in the program, or a site stands outside the data plate.
    """
    batch_size = x.shape[0]
    if rows and num_samples > 1:
        x = x.repeat(num_samples, *([1] * (x.dim() - 1)))
    run = program if rows else pyro.plate(_PARTICLES, num_samples, dim=-2)(program)
    if given:
        replayed = poutine.Trace()
        for name, value in given.items():
            replayed.add_node(name, type="sample", is_observed=False, value=value, infer={})
        run = poutine.replay(run, trace=replayed)
    result = Run(_SampleSites()(run).get_trace(x), num_samples, batch_size)
    latents = [name for name, site in result.sites.items() if not site["is_observed"]]
    if missing := sorted(given.keys() - set(latents)):
        raise ValueError(f"The program has no latent site {missing[0]!r}; it has {latents}.")
    result.check_plates()
    return result


def lay_out(values: Mapping[str, Tensor], rows: bool) -> Mapping[str, Tensor]:
    """Bring values (K, B, ...) into a layout: (K*B, ...) for rows."""
    return {name: value.flatten(0, 1) for name, value in values.items()} if rows else values


def in_particles(site: Mapping[str, Any]) -> bool:
    """Whether a site was run under a particle plate."""
    return any(frame.name == _PARTICLES for frame in site["cond_indep_stack"])


class _SampleSites(TraceMessenger):
    """Records sample sites alone: a program names its parameters anew at every run, and there may be many."""

    def _pyro_post_param(self, msg: Message) -> None:
        pass
