r"""Checks of a comparison before its runs are fitted: flags, test images and pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from pyro_vae.config import Config, flag, programs
from pyro_vae.config.fields_read import set_model_flags
from pyro_vae.config.presets import SYSTEMS
from pyro_vae.config.suited import adapt_to_data
from pyro_vae.data import DATASETS, Collection
from pyro_vae.errors import UserError
from pyro_vae.instruments import gallery
from pyro_vae.runs import check_flags_read, load_images

# Flags that no other system of this name would have.
_DEFINE_SYSTEMS = ("program", "prior", "objective", "beta", "warmup_epochs", "free_bits", "mmd_weight")


def check_before_fits(config: Config, kind: str, varied: Mapping[str, Config]) -> None:
    """Raise UserError for what would be refused or not comparable after hours of fits.

    Args:
        config: Configuration of the comparison.
        kind: Kind of the component that varies, as in `comparison.vary_config`.
        varied: Configuration of one run of each name.
    """
    check_varied(config, kind, varied)
    for each in varied.values():
        programs.check_flags(each)
    example = next(iter(varied.values()))
    if kind in ("prior", "posterior", "likelihood") and example.program not in programs.NAMES:
        check_flags_read(example, load_images(example.resolve()), [kind, *set_model_flags(example)])
    check_test_images(config.resolve())
    if kind == "likelihood":
        check_binarization(varied, load_images(example.resolve()).pixels)
    if kind == "system":
        gallery.check_images(load_images(config.resolve()).pixels)


def check_varied(config: Config, kind: str, varied: Mapping[str, Config]) -> None:
    """Raise UserError if a flag would be dropped silently, or would make a run another system than its name says.

    Args:
        config: Configuration of the comparison.
        kind: Kind of the component that varies, as in `vary_config`.
        varied: Configuration of one run of each name.
    """
    given = {field.name for field in fields(Config) if getattr(config, field.name) != field.default}
    if kind in given:
        raise UserError(f"{flag(kind)} is what {flag(kind)}s compares; leave it out.")
    if kind == "system":
        for name in _DEFINE_SYSTEMS:
            if name in given:
                raise UserError(f"{flag(name)} is part of what the names of --systems mean; leave it out.")
        for system in varied:
            for name, value in SYSTEMS[system].items():
                if name in given and getattr(config, name) != value:
                    raise UserError(f"{flag(name)} is {value} in the system {system}; leave out one of the two.")
    for name in sorted(given):
        if all(getattr(each, name) != getattr(config, name) for each in varied.values()):
            raise UserError(f"{flag(name)} has no effect on any of {', '.join(varied)}; leave it out.")


def check_test_images(config: Config) -> None:
    """Raise UserError if there is a single test image, before anything is fitted."""
    number = config.test_images
    if config.data not in DATASETS and number != 1:  # of your own data, only their number is known in advance
        number = len(load_images(config).pixels.test)
    if number == 1:
        raise UserError("There is one test image, and standard errors require two or more: change --test-images.")


def check_binarization(configs: Mapping[str, Config], images: Collection) -> None:
    """Raise UserError unless all likelihoods observe the same pixels, whose binarization they may determine."""
    found = {name: adapt_to_data(config, images).binarize for name, config in configs.items()}
    if len(set(found.values())) > 1:
        each = ", ".join(f"{name} {binarize}" for name, binarize in found.items())
        raise UserError(
            f"These likelihoods observe different pixels ({each}); add a --binarize that suits all of them."
        )
