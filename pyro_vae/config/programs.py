r"""Construction of the program and the objective of a configuration from the components that it names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
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

# Values of `--program` that need no file.
NAMES = (*PROGRAMS, *PRESETS)
# Flags, and the arguments of a program of which one suffices for the flag to have an effect. Programs without latents
# have a single objective, log p(x), so that objective flags require latent_dim.
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
    """Return the fields that the chosen program, networks or objective ignore, with their defaults."""
    names = [*ignored_by_program(config), *_ignored_by_net(config), *_ignored_by_objective(config)]
    return {name: getattr(Config, name) for name in names}


def check_flags(config: Config) -> None:
    """Raise if a flag is set that the chosen program, networks or objective ignore.

    Raises:
        UserError: If there is such a flag. The message names it.
    """
    for name in ignored_by_program(config):
        # `UNREAD` is what `adapt_to_data` sets if the likelihood is ignored; the user did not set it.
        if getattr(config, name) not in (getattr(Config, name), suited.UNREAD):
            raise UserError(f"{flag(name)} has no effect with --program {config.program}: leave it out.")
    for name in _ignored_by_net(config):
        if getattr(config, name) != getattr(Config, name):
            names = _that_read(name, components.NETS)
            hint = "; fully connected layers have --hidden-dim units" if name == "width" else ""
            raise UserError(f"{flag(name)} applies only to --net {names}, not to {config.net}{hint}: leave it out.")
    for name in _ignored_by_objective(config):
        if getattr(config, name) != getattr(Config, name):
            names = _that_read(components.OBJECTIVE_FLAGS[name], components.OBJECTIVES)
            raise UserError(f"{flag(name)} applies only to --objective {names}, not to {config.objective}.")


def ignored_by_program(config: Config) -> list[str]:
    """Return the fields of flags that the chosen program ignores."""
    if config.program not in NAMES:
        return []  # your own program may use any of them
    preset = _preset(config)
    read = components.argument_names(PROGRAMS[preset.get("program", config.program)])
    return [name for name, needed_by in _NEEDED_BY.items() if name in preset or not needed_by & read]


def _ignored_by_net(config: Config) -> list[str]:
    if config.program not in NAMES:
        return []  # your own program may use any networks
    read = components.argument_names(components.NETS[config.net])
    return [name for name in components.NET_FLAGS if name not in read]


def _ignored_by_objective(config: Config) -> list[str]:
    read = components.argument_names(components.OBJECTIVES[config.objective])
    return [name for name, argument in components.OBJECTIVE_FLAGS.items() if argument not in read]


def _that_read(argument: str, builds: Mapping[str, Callable[..., Any]]) -> str:
    return " and ".join(name for name, build in builds.items() if argument in components.argument_names(build))


def _preset(config: Config) -> dict[str, Any]:
    """Return the fields that the preset sets, if the program is one."""
    fields = PRESETS.get(config.program, {})
    if getattr(components.OBJECTIVES[config.objective], "draws_from_prior", False):
        # An autoencoder has no prior, unless its objective matches the codes to samples from one.
        fields = {name: value for name, value in fields.items() if (name, value) != ("prior", "flat")}
    return fields


def build_objective(config: Config, num_images: int) -> Objective:
    """Build the objective of a configuration.

    Args:
        config: Configuration of the run.
        num_images: Number of training images.

    Raises:
        UserError: If a flag has no effect; see `check_flags`.
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
    """Build the program of a configuration for a data set, on the device of the configuration.

    Initial weights are sampled with torch's global generator.

    Returns:
        An object with ``model(x)`` and ``guide(x)``.

    Raises:
        UserError: If the file of a program or its factory is missing, the factory does not return a program, or a flag
            has no effect (see `check_flags`).
        RuntimeError: If the code of the file raises a ValueError or an OSError.
    """
    check_flags(config)
    config = suited.adapt_to_data(config, images)
    if config.program not in NAMES:
        program = program_files.build(config, images, known=NAMES)
        return program.to(config.device) if isinstance(program, nn.Module) else program
    chosen = replace(config, **_preset(config))
    build_net = partial(components.NETS[chosen.net], images.pixel_shape, chosen.hidden_dim)
    net_options = {name: getattr(chosen, name) for name in components.NET_FLAGS if getattr(chosen, name) is not None}
    net = components.construct(build_net, **net_options)
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
    return program.to(config.resolve().device)


def _prior(config: Config, images: Collection, latent_dim: int, **posterior: nn.Module) -> nn.Module:
    build = components.PRIORS[config.prior]
    if "posterior" in components.argument_names(build) - posterior.keys():
        raise UserError(
            f"--prior {config.prior} needs a posterior given only the images, and --program {config.program} has none: "
            "choose another --prior."
        )
    prior: nn.Module = components.construct(build, latent_dim=latent_dim, images=images.train, **posterior)
    return prior


def takes_labels(program: Any) -> bool:
    """Return whether the model of a program has a second required argument: the labels of the images."""
    parameters = list(inspect.signature(program.model).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return len(required) > 1


def select_labels(program: Any, images: Collection, split: str) -> Tensor | None:
    """Return the labels of a split as an argument of a program, or None if its model takes no labels.

    For a semi-supervised program, labels that it must not use are -1.

    Raises:
        UserError: If the model takes labels but the data have none.
    """
    if not takes_labels(program):
        return None
    if images.labels is None:
        raise UserError(f"The model takes labels in addition to x, but {images.name} has none: choose other --data.")
    labels = images.labels.for_program(split).to(images.train.device)
    num_labels = getattr(program, "num_labels", None)  # semi-supervised: number of training labels to use
    return labels if num_labels is None else mask_labels(labels, num_labels if split == "train" else 0)
