r"""The log-density of one site, and the terms of all sites of a run."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyro.distributions import Unit
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace.plates import Site


class Terms(NamedTuple):
    """Log-densities of the sites of a run, {site: (K, B)} in nats, float64.

    `densities` are unscaled; `weighted` are the same times the scales of `poutine.scale` and of mini-batch plates; both
    leave out `losses`: factors, and what a guide observes, which are no densities of anything drawn. These are scaled.
    """

    densities: dict[str, Tensor]
    weighted: dict[str, Tensor]
    losses: dict[str, Tensor]

    @property
    def scaled(self) -> bool:
        """Whether a density has a scale."""
        return any(self.weighted[name] is not density for name, density in self.densities.items())


def is_unit(scale: Any) -> bool:
    """Whether a scale is the number 1; a tensor is taken for another one, since reading it would wait for a device."""
    return not isinstance(scale, Tensor) and bool(scale == 1)


def log_prob(site: Site) -> Tensor:
    """Return the log-density of a site at its value, of its batch shape.

    Raises:
        ValueError: the value would be broadcast against the event of its distribution, which adds up what is no part
            of it: images of the whole batch, for one.
    """
    if "log_prob" in site:
        known: Tensor = site["log_prob"]
        return known
    fn, value = site["fn"], site["value"]
    event = tuple(fn.event_shape)
    if not isinstance(fn, Unit) and event and tuple(value.shape[-len(event) :]) != event:
        raise UserError(
            f"Site {site['name']!r} has a value of shape {tuple(value.shape)} under a distribution of batch shape "
            f"{tuple(fn.batch_shape)} and event shape {event}: give the value these shapes, (batch..., event...), with "
            "reshape or unsqueeze."
        )
    result: Tensor = fn.log_prob(value)
    return result
