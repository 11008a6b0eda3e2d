r"""Log-density of one site, and the terms of all sites of a run."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyro.distributions import Unit
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace.plates import Site


class Terms(NamedTuple):
    """Log-densities of the sites of a run, {site: (K, B)} in nats, float64.

    Attributes:
        densities: Log-densities without scales.
        weighted: Log-densities multiplied by the scales of `poutine.scale` and of mini-batch plates.
        losses: Scaled terms that are not densities of a sampled or observed value: factors, and observations in a
            guide.
    """

    densities: dict[str, Tensor]
    weighted: dict[str, Tensor]
    losses: dict[str, Tensor]

    @property
    def scaled(self) -> bool:
        """Whether a density has a scale other than 1."""
        return any(self.weighted[name] is not density for name, density in self.densities.items())


def is_unit(scale: Any) -> bool:
    """Return whether a scale is the number 1. A tensor never is: comparing it would synchronize with its device."""
    return not isinstance(scale, Tensor) and bool(scale == 1)


def log_prob(site: Site) -> Tensor:
    """Return the log-density of a site at its value, of the batch shape of the site.

    Raises:
        ValueError: The value would be broadcast against the event shape of its distribution, which would add up values
            that do not belong to the event, e.g. the images of a batch.
    """
    if "log_prob" in site:
        cached: Tensor = site["log_prob"]
        return cached
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
