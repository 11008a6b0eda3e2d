r"""Sites of finite support, and the particles at which their joint values are run.

A latent c with a finite support is run at each of its S joint values, beside the K particles of z, as S * K particles
of the model, K inside S. `marginals` sums over them, and `discrete` finds the latents of a run that are treated so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import BetaBinomial
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Categorical, OneHotCategorical

from pyro_vae.errors import UserError
from pyro_vae.trace.elements import unwrap

MAX_STATES = 1024  # joint values that are run
_FINITE = (Bernoulli, BetaBinomial, Binomial, Categorical, OneHotCategorical)  # with their subclasses


class FiniteSite(NamedTuple):
    """A site that is summed out: its name, and the values of an element, as plain numbers, which compare and hash.

    `event` is the shape of an element's value, `shape` that of the values of one image.
    """

    name: str
    element_values: tuple[float, ...]
    event: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_elements(self) -> int:
        """How many elements an image has."""
        return math.prod(self.shape) // max(1, math.prod(self.event))

    @property
    def size(self) -> int:
        """The number of values of one image."""
        return self.num_element_values**self.num_elements

    @property
    def num_element_values(self) -> int:
        """The number of values of one element."""
        return len(self.element_values) // max(1, math.prod(self.event))

    def values(self, device: torch.device) -> Tensor:
        """Return every value of one image, (size, *shape)."""
        num_element_values = torch.tensor(self.element_values, dtype=self.dtype, device=device).view(
            self.num_element_values, *self.event
        )
        digits = torch.arange(self.size, device=device).unsqueeze(1)
        powers = self.num_element_values ** torch.arange(self.num_elements, device=device)
        return num_element_values[digits // powers % self.num_element_values].reshape(self.size, *self.shape)


def make_finite_site(name: str, distribution: Any, value: Tensor) -> FiniteSite | None:
    """Return a site that can be summed out, or None where its support is not finite.

    Args:
        name: of the site.
        distribution: of the site.
        value: of the site, (K, B, ...).
    """
    support = support_values(distribution)
    if support is None:
        return None
    event = tuple(unwrap(distribution)[0].event_shape)
    return FiniteSite(name, tuple(support.flatten().tolist()), event, tuple(value.shape[2:]), support.dtype)


def count_states(sites: Iterable[FiniteSite]) -> int:
    """Return the number of joint values, S.

    Raises:
        ValueError: there are more than `MAX_STATES`.
    """
    sites = list(sites)
    count = math.prod(site.size for site in sites)
    if count > MAX_STATES:
        names = " and ".join(repr(site.name) for site in sites)
        raise UserError(
            f"{names} would be summed out, with {count} joint values for each image and at most {MAX_STATES} allowed: "
            "draw some of them in the guide."
        )
    return count


def expand_over_states(
    sites: Collection[FiniteSite], values: Mapping[str, Tensor], num_samples: int, x: Tensor
) -> dict[str, Tensor]:
    """Return latents (K, B, ...) beside every joint value of the others, {site: (S * K, B, ...)}, K inside S."""
    states = count_states(sites)
    expanded = {name: value.repeat(states, *[1] * (value.dim() - 1)) for name, value in values.items()}
    for name, value in joint_values(sites, x.device).items():
        expanded[name] = value.expand(-1, num_samples, len(x), *value.shape[3:]).flatten(0, 1)
    return expanded


def joint_values(sites: Collection[FiniteSite], device: torch.device) -> dict[str, Tensor]:
    """Return every joint value of some sites, {site: (S, 1, 1, ...)}."""
    states = inner = count_states(sites)
    values_by_site = {}
    for site in sites:
        inner //= site.size
        index = torch.arange(states, device=device) // inner % site.size
        values_by_site[site.name] = site.values(device)[index].view(states, 1, 1, *site.shape)
    return values_by_site


def support_values(distribution: Any) -> Tensor | None:
    """Return the values of an element, or None where they are not finite or differ from image to image."""
    base = unwrap(distribution)[0]
    if not isinstance(base, _FINITE):
        return None
    try:
        return base.enumerate_support(expand=False)
    except NotImplementedError:
        return None
