r"""The program and the objective of a configuration, built from the components that it names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyro_vae.config import Config, components, flag, program_files, suited
from pyro_vae.config.catalog import PROGRAMS
from pyro_vae.config.presets import PRESETS
from pyro_vae.data import Collection, Numbers, mask_labels
from pyro_vae.errors import UserError
from pyro_vae.infer import Objective
from pyro_vae.model.nets import StandardizedNets
from pyro_vae.model.posteriors import Encoder

# What `--program` may say without a file.
NAMES = (*PROGRAMS, *PRESETS)
# Flags, and the arguments of a program of which each needs one. Without latents there is one objective, log p(x).
_NEEDED_BY: dict[str, set[str]] = {
    "prior": {"prior"},
    "posterior": {"posterior"},
    "likelihood": {"likelihood"},
    "net": {"net", "posterior", "likelihood"},
    "depth": {"net", "posterior", "likelihood"},
    "width": {"net", "posterior", "likelihood"},
    "latent_dim": {"latent_dim"},
    "objective": {"latent_dim"},
    "num_particles": {"latent_dim"},
    "labels": {"labels"},
}


def ignored_defaults(config: Config) -> dict[str, Any]:
    """Return the fields that the program, its networks or the objective do not read, with their defaults."""
    names = [*_ignored_by_program(config), *_ignored_by_net(config), *_ignored_by_objective(config)]
    return {name: getattr(Config, name) for name in names}


def check_flags(config: Config) -> None:
    """Refuse a flag that is set and that the program, its networks or the objective do not read.

    Raises:
        UserError: names the flag.
    """
    for name in _ignored_by_program(config):
        # What `adapt_to_data` makes of a likelihood that is not read has not been asked for.
        if getattr(config, name) not in (getattr(Config, name), suited.UNREAD):
            raise UserError(f"--program {config.program} does not read {flag(name)}: leave it out.")
    for name in _ignored_by_net(config):
        if getattr(config, name) != getattr(Config, name):
            of = _that_read(name, components.NETS)
            wide = "; fully connected layers have --hidden-dim units" if name == "width" else ""
            raise UserError(f"{flag(name)} is of --net {of}, not of {config.net}{wide}: leave it out.")
    for name in _ignored_by_objective(config):
        if getattr(config, name) != getattr(Config, name):
            of = _that_read(components.OBJECTIVE_FLAGS[name], components.OBJECTIVES)
            raise UserError(f"{flag(name)} is of --objective {of}, not of {config.objective}.")


def _ignored_by_program(config: Config) -> list[str]:
    if config.program not in NAMES:
        return []  # a program of the user's own, which may read any
    preset = _preset(config)
    read = components.argument_names(PROGRAMS[preset.get("program", config.program)])
    return [name for name, needed_by in _NEEDED_BY.items() if name in preset or not needed_by & read]


def _ignored_by_net(config: Config) -> list[str]:
    if config.program not in NAMES:
        return []  # which networks it has is its own affair
    read = components.argument_names(components.NETS[config.net])
    return [name for name in components.NET_FLAGS if name not in read]


def _ignored_by_objective(config: Config) -> list[str]:
    read = components.argument_names(components.OBJECTIVES[config.objective])
    return [name for name, argument in components.OBJECTIVE_FLAGS.items() if argument not in read]


def _that_read(argument: str, builds: Mapping[str, Callable[..., Any]]) -> str:
    return " and ".join(name for name, build in builds.items() if argument in components.argument_names(build))


def _preset(config: Config) -> dict[str, Any]:
    """Return the fields that the name of the program stands for, if it is a preset."""
    fields = PRESETS.get(config.program, {})
    if getattr(components.OBJECTIVES[config.objective], "draws_from_prior", False):
        # An autoencoder has no prior, unless its objective matches the codes to one.
        fields = {name: value for name, value in fields.items() if (name, value) != ("prior", "flat")}
    return fields


def run_name(config: Config) -> str:
    """Return how a run is called by default: its data set, its program, and the flags that tell programs apart."""
    unread = _ignored_by_program(config)
    program = "" if config.program == "vae" else Path(config.program).name.replace(".py:", "-")
    particles = config.num_particles if config.num_particles > 1 else ""
    words = [Path(config.data).stem, program, "" if "prior" in unread else config.prior]
    words.append("" if "objective" in unread else f"{config.objective}{particles}")
    return "-".join(filter(None, words))


def build_objective(config: Config, num_images: int) -> Objective:
    """Build the objective of a configuration for so many training images.

    Raises:
        UserError: as `check_flags`.
    """
    check_flags(config)
    options = {argument: getattr(config, name) for name, argument in components.OBJECTIVE_FLAGS.items()}
    options["warmup_steps"] = config.warmup_epochs * config.steps_per_epoch(num_images)
    objective: Objective = components.construct(
        components.OBJECTIVES[config.objective],
        num_particles=config.num_particles,
        num_images=num_images,
        **options,
    )
    return objective


def build(config: Config, images: Collection) -> Any:
    """Build the program of a configuration for the images it will see, on the device of the configuration.

    Random initial weights come from torch's global stream.

    Returns:
        An object with ``model(x)`` and ``guide(x)``.

    Raises:
        UserError: the file of the program, its factory, or what that returns is not there, or as `check_flags`.
        RuntimeError: from a ValueError or an OSError of the code in that file.
    """
    check_flags(config)
    config = suited.adapt_to_data(config, images)
    if config.program not in NAMES:
        program = program_files.build(config, images, known=NAMES)
        return program.to(config.device) if isinstance(program, nn.Module) else program
    chosen = replace(config, **_preset(config))
    build_net = partial(components.NETS[chosen.net], images.pixel_shape, chosen.hidden_dim)
    given = {name: getattr(chosen, name) for name in components.NET_FLAGS if getattr(chosen, name) is not None}
    net = components.construct(build_net, **given)
    if isinstance(images, Numbers):
        net = StandardizedNets(net, images.train, counts=images.counts)

    def posterior(latent_dim: int, encoder: Encoder = net.encoder) -> nn.Module:
        return components.POSTERIORS[chosen.posterior](encoder, latent_dim)

    def likelihood(latent_dim: int) -> nn.Module:
        decoder = partial(net.decoder, latent_dim)
        p: nn.Module = components.construct(
            components.LIKELIHOODS[chosen.likelihood],
            decoder=decoder,
            images=images.train,
            hidden_dim=chosen.hidden_dim,
        )
        return p

    program = components.construct(
        PROGRAMS[chosen.program],
        posterior=posterior,
        likelihood=likelihood,
        prior=partial(_prior, chosen, images),
        net=net,
        images=images,
        latent_dim=chosen.latent_dim,
        hidden_dim=chosen.hidden_dim,
        labels=chosen.labels,
    )
    return program.to(config.device)


def _prior(config: Config, images: Collection, latent_dim: int, **posterior: nn.Module) -> nn.Module:
    build = components.PRIORS[config.prior]
    if "posterior" in components.argument_names(build) - posterior.keys():
        raise UserError(
            f"--prior {config.prior} needs a posterior of images alone, and --program {config.program} has none: "
            "choose another --prior."
        )
    prior: nn.Module = components.construct(build, latent_dim=latent_dim, images=images.train, **posterior)
    return prior


def takes_labels(program: Any) -> bool:
    """Whether the model of a program has a second argument that must be given: the labels of the images."""
    parameters = list(inspect.signature(program.model).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return len(required) > 1


def select_labels(program: Any, images: Collection, split: str) -> Tensor | None:
    """Return the labels that a program is given beside the images of a split, or None where it takes none.

    Labels that it is not told are -1.

    Raises:
        ValueError: it takes labels, and the data have none.
    """
    if not takes_labels(program):
        return None
    if images.labels is None:
        raise UserError(f"The model takes labels beside x, and {images.name} has none: choose other --data.")
    labels = images.labels.for_program(split).to(images.train.device)
    num_labels = getattr(program, "num_labels", None)  # semi-supervised: the number of training labels it uses
    return labels if num_labels is None else mask_labels(labels, num_labels if split == "train" else 0)
