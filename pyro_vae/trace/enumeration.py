r"""Sites with finite support, and the particles at which their joint values are evaluated.

A discrete latent c with S joint values is evaluated at each of them for each of the K particles of z: S * K particles
of the model, with K varying fastest. `marginals` sums over them; `discrete` finds the latents of a run to enumerate.
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

MAX_STATES = 1024  # joint values per image
_FINITE = (Bernoulli, BetaBinomial, Binomial, Categorical, OneHotCategorical)  # including subclasses


class FiniteSite(NamedTuple):
    """A site to enumerate. All fields are plain Python values, so that sites can be compared and hashed.

    Attributes:
        name: Name of the site.
        element_values: Support of one element, flattened.
        event: Event shape of one element, e.g. (C,) for a one-hot vector.
        shape: Shape of the value for one image.
        dtype: Data type of the values.
    """

    name: str
    element_values: tuple[float, ...]
    event: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_elements(self) -> int:
        """Number of elements per image."""
        return math.prod(self.shape) // max(1, math.prod(self.event))

    @property
    def size(self) -> int:
        """Number of joint values per image, `num_element_values ** num_elements`."""
        return self.num_element_values**self.num_elements

    @property
    def num_element_values(self) -> int:
        """Number of values of one element."""
        return len(self.element_values) // max(1, math.prod(self.event))

    def values(self, device: torch.device) -> Tensor:
        """Return all joint values of one image, (size, *shape)."""
        element_table = torch.tensor(self.element_values, dtype=self.dtype, device=device).view(
            self.num_element_values, *self.event
        )
        # Digit e of the index, in base `num_element_values`, selects the value of element e.
        index = torch.arange(self.size, device=device).unsqueeze(1)
        powers = self.num_element_values ** torch.arange(self.num_elements, device=device)
        return element_table[index // powers % self.num_element_values].reshape(self.size, *self.shape)


def make_finite_site(name: str, distribution: Any, value: Tensor) -> FiniteSite | None:
    """Describe a site for enumeration, or return None if its support is not finite.

    Args:
        name: Name of the site.
        distribution: Distribution of the site.
        value: Value of the site, (K, B, ...).
    """
    support = support_values(distribution)
    if support is None:
        return None
    event = tuple(unwrap(distribution)[0].event_shape)
    return FiniteSite(name, tuple(support.flatten().tolist()), event, tuple(value.shape[2:]), support.dtype)


def count_states(sites: Iterable[FiniteSite]) -> int:
    """Return the number of joint values of the sites, S.

    Raises:
        ValueError: S exceeds `MAX_STATES`.
    """
    sites = list(sites)
    count = math.prod(site.size for site in sites)
    if count > MAX_STATES:
        names = " and ".join(repr(site.name) for site in sites)
        raise UserError(
            f"Summing out {names} takes {count} joint values per image; at most {MAX_STATES} are allowed: sample some "
            "of them in the guide."
        )
    return count


def expand_over_states(
    sites: Collection[FiniteSite], values: Mapping[str, Tensor], num_samples: int, x: Tensor
) -> dict[str, Tensor]:
    """Combine given latents with every joint value of the enumerated sites.

    Args:
        sites: The enumerated sites, with S joint values.
        values: Given latents, {site: (K, B, ...)}.
        num_samples: Number of particles, K.
        x: Batch, (B, ...), for its size and device.

    Returns:
        {site: (S * K, B, ...)} for the given and the enumerated sites, with K varying fastest.
    """
    states = count_states(sites)
    expanded = {name: value.repeat(states, *[1] * (value.dim() - 1)) for name, value in values.items()}
    for name, value in joint_values(sites, x.device).items():
        expanded[name] = value.expand(-1, num_samples, len(x), *value.shape[3:]).flatten(0, 1)
    return expanded


def joint_values(sites: Collection[FiniteSite], device: torch.device) -> dict[str, Tensor]:
    """Return all joint values of the sites, {site: (S, 1, 1, ...)}, with the last site varying fastest."""
    states = inner = count_states(sites)
    values_by_site = {}
    for site in sites:
        inner //= site.size
        index = torch.arange(states, device=device) // inner % site.size
        values_by_site[site.name] = site.values(device)[index].view(states, 1, 1, *site.shape)
    return values_by_site


def support_values(distribution: Any) -> Tensor | None:
    """Return the support of one element, or None if it is not finite or differs between batch elements."""
    base = unwrap(distribution)[0]
    if not isinstance(base, _FINITE):
        return None
    try:
        return base.enumerate_support(expand=False)
    except NotImplementedError:
        return None
