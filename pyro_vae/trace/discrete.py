r"""Which discrete latents of a run are summed out, and which are enumerated by its guide."""

from __future__ import annotations

from collections.abc import Collection

from pyro_vae.errors import UserError
from pyro_vae.trace.enumeration import FiniteSite, count_states, make_finite_site, support_values
from pyro_vae.trace.run_result import ParticleTrace


def find_summed_sites(result: ParticleTrace, given: Collection[str]) -> tuple[FiniteSite, ...]:
    """Return what has to be summed out of a run of one particle: its latents that are not given.

    Raises:
        ValueError: the support of one is not finite, or it is shared by all images.
    """
    names = [name for name in result.latents if name not in given]
    return _finite_sites(result, names, "has no value: the guide does not sample it")


def find_enumerated_sites(result: ParticleTrace) -> tuple[FiniteSite, ...]:
    """Return the latents of a guide that are marked ``infer={"enumerate": ...}``, from a run of one particle.

    Raises:
        ValueError: as `find_summed_sites`.
    """
    names = [name for name in result.latents if result.sites[name]["infer"].get("enumerate")]
    return _finite_sites(result, names, "is marked to be enumerated")


def _finite_sites(result: ParticleTrace, names: list[str], why: str) -> tuple[FiniteSite, ...]:
    sites = []
    for name in names:
        site = make_finite_site(name, result.sites[name]["fn"], result.get_values([name])[name])
        if site is None:
            raise UserError(
                f"Latent site {name!r} of the program {why}, and its support is not finite, so that it cannot be "
                "summed out."
            )
        if name in result.shared:
            raise UserError(
                f"Site {name!r} is shared by all images and cannot be summed out for each: draw it in the guide."
            )
        sites.append(site)
    count_states(sites)
    return tuple(sites)


def check_sizes(result: ParticleTrace) -> None:
    """Refuse a site whose number of values depends on another one, as the number of trials of a Binomial may.

    Raises:
        ValueError: names the site.
    """
    for site in (*result.layout.summed, *result.layout.enumerated):
        for trace_site in result.in_each_trace(site.name):
            support = support_values(trace_site["fn"])
            if support is None or support.numel() != len(site.element_values):
                raise UserError(
                    f"The values of site {site.name!r} depend on other latents or on the image, so that they cannot be "
                    "summed out: draw it in the guide."
                )
