r"""Discrete latents, summed out exactly.

A latent c with a finite support is run at each of its S joint values, beside the K particles of z, as S * K particles
of the model; then

    log p(x, z) = log sum_c p(x, z, c),    (K, B), in nats, float64.

The terms of single sites are those of the summed-out program, log p(z_1), log p(z_2 | z_1), log p(x | z), ..., latents
first: each is the difference of two such sums, so that they add up to the whole.

A guide that enumerates y (``infer={"enumerate": "parallel"}``) draws z at each of its values, as S * K particles, and

    log w = log sum_y p(x, z_y, y) / q(z_y | x, y),    ELBO = E sum_y q(y|x) log [p(x, z_y, y) / q(z_y, y | x)].
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro.distributions import BetaBinomial
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Categorical, OneHotCategorical

from pyro_vae.errors import UserError
from pyro_vae.trace.elements import element

if TYPE_CHECKING:
    from pyro_vae.trace.run_result import Run

LARGEST = 1024  # joint values that are run
_FINITE = (Bernoulli, BetaBinomial, Binomial, Categorical, OneHotCategorical)  # with their subclasses


class Finite(NamedTuple):
    """A site that is summed out: its name, and the values of an element, as plain numbers, which compare and hash.

    `event` is the shape of an element's value, `shape` that of the values of one image.
    """

    name: str
    numbers: tuple[float, ...]
    event: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        """How many elements an image has."""
        return math.prod(self.shape) // max(1, math.prod(self.event))

    @property
    def size(self) -> int:
        """The number of values of one image."""
        return self.of_element**self.elements

    @property
    def of_element(self) -> int:
        """The number of values of one element."""
        return len(self.numbers) // max(1, math.prod(self.event))

    def values(self, device: torch.device) -> Tensor:
        """Return every value of one image, (size, *shape)."""
        of_element = torch.tensor(self.numbers, dtype=self.dtype, device=device).view(self.of_element, *self.event)
        digits = torch.arange(self.size, device=device).unsqueeze(1)
        powers = self.of_element ** torch.arange(self.elements, device=device)
        return of_element[digits // powers % self.of_element].reshape(self.size, *self.shape)


def finite(name: str, distribution: Any, value: Tensor) -> Finite | None:
    """Return a site that can be summed out, or None where its support is not finite.

    Args:
        name: of the site.
        distribution: of the site.
        value: of the site, (K, B, ...).
    """
    support = _support(distribution)
    if support is None:
        return None
    event = tuple(element(distribution)[0].event_shape)
    return Finite(name, tuple(support.flatten().tolist()), event, tuple(value.shape[2:]), support.dtype)


def summed_sites(result: Run, given: Collection[str]) -> tuple[Finite, ...]:
    """Return what has to be summed out of a run of one particle: its latents that are not given.

    Raises:
        ValueError: the support of one is not finite, or it is shared by all images.
    """
    names = [name for name in result.latents if name not in given]
    return _finite_sites(result, names, "has no value: the guide does not sample it")


def enumerated_sites(result: Run) -> tuple[Finite, ...]:
    """Return the latents of a guide that are marked ``infer={"enumerate": ...}``, from a run of one particle.

    Raises:
        ValueError: as `summed_sites`.
    """
    names = [name for name in result.latents if result.sites[name]["infer"].get("enumerate")]
    return _finite_sites(result, names, "is marked to be enumerated")


def _finite_sites(result: Run, names: list[str], why: str) -> tuple[Finite, ...]:
    found = []
    for name in names:
        site = finite(name, result.sites[name]["fn"], result.values_of([name])[name])
        if site is None:
            raise UserError(
                f"Latent site {name!r} of the program {why}, and its support is not finite, so that it cannot be "
                "summed out."
            )
        if name in result.shared:
            raise UserError(
                f"Site {name!r} is shared by all images and cannot be summed out for each: draw it in the guide."
            )
        found.append(site)
    number_of_states(found)
    return tuple(found)


def number_of_states(sites: Iterable[Finite]) -> int:
    """Return the number of joint values, S.

    Raises:
        ValueError: there are more than `LARGEST`.
    """
    sites = list(sites)
    number = math.prod(site.size for site in sites)
    if number > LARGEST:
        names = " and ".join(repr(site.name) for site in sites)
        raise UserError(
            f"{names} would be summed out, with {number} joint values for each image and at most {LARGEST} allowed: "
            "draw some of them in the guide."
        )
    return number


def at_every_state(
    sites: Collection[Finite], values: Mapping[str, Tensor], num_samples: int, x: Tensor
) -> dict[str, Tensor]:
    """Return latents (K, B, ...) beside every joint value of the others, {site: (S * K, B, ...)}, K inside S."""
    states = number_of_states(sites)
    found = {name: value.repeat(states, *[1] * (value.dim() - 1)) for name, value in values.items()}
    for name, value in states_of(sites, x.device).items():
        found[name] = value.expand(-1, num_samples, len(x), *value.shape[3:]).flatten(0, 1)
    return found


def states_of(sites: Collection[Finite], device: torch.device) -> dict[str, Tensor]:
    """Return every joint value of some sites, {site: (S, 1, 1, ...)}."""
    states = inner = number_of_states(sites)
    found = {}
    for site in sites:
        inner //= site.size
        own = torch.arange(states, device=device) // inner % site.size
        found[site.name] = site.values(device)[own].view(states, 1, 1, *site.shape)
    return found


def sum_out(terms: Mapping[str, Tensor], latents: Collection[str], sites: Collection[Finite]) -> dict[str, Tensor]:
    """Return the terms of the summed-out program.

    Args:
        terms: log-densities of the sites (S * K, B), in the order in which the model draws them.
        latents: its latent sites, those that are summed out included.
        sites: those that are.

    Returns:
        {site: log-density (K, B)} of all others: of a latent given the latents before it, of an observed site given the
        latents and the observed sites before it.
    """
    sizes = {site.name: site.size for site in sites}
    states = math.prod(sizes.values())
    found: dict[str, Tensor] = {}
    joint = before = torch.zeros((), dtype=torch.float64)
    unseen = math.log(states)  # each value of sites yet to come counts once in the sum
    for name in sorted(terms, key=lambda name: name not in latents):  # stable
        joint = joint + terms[name].unflatten(0, (states, -1))
        if name in sizes:
            unseen -= math.log(sizes[name])
            continue
        marginal = joint.logsumexp(0) - unseen
        impossible = torch.as_tensor(before == -torch.inf, device=marginal.device)
        found[name] = torch.where(impossible, -torch.inf, marginal - before)
        before = marginal
    return found


def check_sizes(result: Run) -> None:
    """Refuse a site whose number of values depends on another one, as the number of trials of a Binomial may.

    Raises:
        ValueError: names the site.
    """
    for site in (*result.layout.summed, *result.layout.enumerated):
        for each in result.each(site.name):
            support = _support(each["fn"])
            if support is None or support.numel() != len(site.numbers):
                raise UserError(
                    f"The values of site {site.name!r} depend on other latents or on the image, so that they cannot be "
                    "summed out: draw it in the guide."
                )


def _support(distribution: Any) -> Tensor | None:
    """Return the values of an element, or None where they are not finite or differ from image to image."""
    base = element(distribution)[0]
    if not isinstance(base, _FINITE):
        return None
    try:
        return base.enumerate_support(expand=False)
    except NotImplementedError:
        return None
