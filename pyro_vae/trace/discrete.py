r"""Discrete latents of a run: those summed out of the model, and those enumerated by the guide."""

from __future__ import annotations

from collections.abc import Collection

from pyro_vae.errors import UserError
from pyro_vae.trace.enumeration import FiniteSite, count_states, make_finite_site, support_values
from pyro_vae.trace.run_result import ParticleTrace


def find_summed_sites(result: ParticleTrace, given: Collection[str]) -> tuple[FiniteSite, ...]:
    """Return the sites that must be summed out: the latents without a given value.

    Args:
        result: Run of one particle.
        given: Names of the latents with given values.

    Raises:
        ValueError: A site has no finite support or is shared by all images, or there are too many joint values.
    """
    names = [name for name in result.latents if name not in given]
    return _finite_sites(result, names, "has no value: the guide does not sample it")


def find_enumerated_sites(result: ParticleTrace) -> tuple[FiniteSite, ...]:
    """Return the latents of a guide that are marked ``infer={"enumerate": ...}``.

    Args:
        result: Run of the guide with one particle.

    Raises:
        ValueError: See `find_summed_sites`.
    """
    names = [name for name in result.latents if result.sites[name]["infer"].get("enumerate")]
    return _finite_sites(result, names, "is marked to be enumerated")


def _finite_sites(result: ParticleTrace, names: list[str], reason: str) -> tuple[FiniteSite, ...]:
    sites = []
    for name in names:
        site = make_finite_site(name, result.sites[name]["fn"], result.get_values([name])[name])
        if site is None:
            raise UserError(
                f"Latent site {name!r} of the program {reason}, and it cannot be summed out because its support is "
                "not finite."
            )
        if name in result.shared:
            raise UserError(
                f"Site {name!r} is shared by all images and cannot be summed out per image: sample it in the guide."
            )
        sites.append(site)
    count_states(sites)
    return tuple(sites)


def check_sizes(result: ParticleTrace) -> None:
    """Raise if the number of values of a discrete site varies.

    For example, the `total_count` of a Binomial may depend on another latent or on the image.

    Raises:
        ValueError: Names the site.
    """
    for site in (*result.layout.summed, *result.layout.enumerated):
        for trace_site in result.in_each_trace(site.name):
            support = support_values(trace_site["fn"])
            if support is None or support.numel() != len(site.element_values):
                raise UserError(
                    f"The values of site {site.name!r} depend on other latents or on the image, so it cannot be "
                    "summed out: sample it in the guide."
                )
