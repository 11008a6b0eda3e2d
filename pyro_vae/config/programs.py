r"""The program and the objective of a configuration, built of the parts that it names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from pyro_vae.config import Config, components, flag, program_files
from pyro_vae.data import Images, some_labels
from pyro_vae.errors import UserError
from pyro_vae.infer import Objective
from pyro_vae.model import CVAE, GMVAE, M2, VAE, DensityModel, TwoLayerVAE, likelihoods, nets, posteriors
from pyro_vae.model.nets.pixelcnn import ConditionalPixelCNN, PixelCNN
from pyro_vae.model.priors.improper import Improper
from pyro_vae.model.priors.mixture import GaussianMixture

Likelihood = Callable[[likelihoods.Decoder, Tensor], nn.Module]
# Flags that a program does not read.
_NOT_OF: dict[str, tuple[str, ...]] = {
    "pixelcnn": ("prior", "posterior", "likelihood", "net", "latent_dim", "objective", "num_particles"),
    "pixelvae": ("likelihood",),
    "autoencoder": ("prior", "posterior"),
    "gmvae": ("prior",),
}
# Flags that one program alone reads.
_OF_PROGRAM = {"labels": "m2"}
# Objectives that hold the codes of an autoencoder against a prior, whose draws they take.
_MATCHING = ("wae-mmd",)
_CLUSTERS = 10  # of the prior of gmvae


def unread(config: Config) -> dict[str, Any]:
    """Return the fields that the program or the objective does not read, with their defaults."""
    names = [*_not_of_program(config), *_not_of_objective(config)]
    return {name: getattr(Config, name) for name in names}


def _not_of_program(config: Config) -> list[str]:
    matching = config.objective in _MATCHING
    names = [name for name in _NOT_OF.get(config.program, ()) if not (matching and name == "prior")]
    return names + [name for name, program in _OF_PROGRAM.items() if config.program != program]


def _not_of_objective(config: Config) -> list[str]:
    read = components.reads(components.OBJECTIVES[config.objective])
    return [flag for flag, argument in components.OBJECTIVE_FLAGS.items() if argument not in read]


def check(config: Config) -> None:
    """Refuse a flag that is set and that the program or the objective does not read.

    Raises:
        ValueError: names the flag.
    """
    for name in _not_of_program(config):
        if getattr(config, name) != getattr(Config, name):
            raise UserError(f"--program {config.program} does not read {flag(name)}: leave it out.")
    for name in _not_of_objective(config):
        if getattr(config, name) != getattr(Config, name):
            argument = components.OBJECTIVE_FLAGS[name]
            of = " and ".join(
                each for each, build in components.OBJECTIVES.items() if argument in components.reads(build)
            )
            raise UserError(f"{flag(name)} is of --objective {of}, not of {config.objective}.")


def build_objective(config: Config, num_images: int) -> Objective:
    """Build the objective of a configuration for so many training images.

    Raises:
        ValueError: as `check`.
    """
    check(config)
    objective: Objective = components.construct(
        components.OBJECTIVES[config.objective],
        num_particles=config.num_particles,
        num_images=num_images,
        warmup_steps=config.warmup_epochs * config.epoch_steps(num_images),
        beta=config.beta,
        free_bits=config.free_bits,
        mmd_weight=config.mmd_weight,
    )
    return objective


def build(config: Config, images: Images) -> Any:
    """Build the program of a configuration for the images it will see, on the device of the configuration.

    Random initial weights come from torch's global stream.

    Returns:
        An object with ``model(x)`` and ``guide(x)``.

    Raises:
        ValueError: the file of the program, its factory, or what that returns is not there, or as `check`.
        RuntimeError: from a ValueError or an OSError of the code in that file.
    """
    check(config)
    if config.program in PROGRAMS:
        return PROGRAMS[config.program](config, images).to(config.device)
    program = program_files.build(config, images, known=PROGRAMS)
    return program.to(config.device) if isinstance(program, nn.Module) else program


def _posterior(config: Config, images: Images, latent_dim: int) -> nn.Module:
    family = components.NETS[config.net](images.pixel_shape, config.hidden_dim)
    return components.POSTERIORS[config.posterior](family.encoder, latent_dim)


def _prior(config: Config, images: Images, latent_dim: int, **posterior: nn.Module) -> nn.Module:
    build = components.PRIORS[config.prior]
    if "posterior" in components.reads(build) - posterior.keys():
        raise UserError(
            f"--prior {config.prior} needs a posterior of images alone, and --program {config.program} has none: "
            "choose another --prior."
        )
    prior: nn.Module = components.construct(build, latent_dim=latent_dim, images=images.train, **posterior)
    return prior


def _likelihood(config: Config, images: Images, latent_dim: int, build: Likelihood) -> nn.Module:
    family = components.NETS[config.net](images.pixel_shape, config.hidden_dim)
    return build(partial(family.decoder, latent_dim), images.train)


def _vae_of(config: Config, images: Images, build: Likelihood) -> nn.Module:
    posterior = _posterior(config, images, config.latent_dim)
    likelihood = _likelihood(config, images, config.latent_dim, build)
    prior = _prior(config, images, config.latent_dim, posterior=posterior)
    return VAE(prior, likelihood, posterior)


def _vae(config: Config, images: Images) -> nn.Module:
    return _vae_of(config, images, components.LIKELIHOODS[config.likelihood])


def _two_layer(config: Config, images: Images) -> nn.Module:
    # Burda et al.: twice as many units in z1 as in z2, and half as many hidden ones between them as below.
    top, bottom, hidden = config.latent_dim, 2 * config.latent_dim, [max(1, config.hidden_dim // 2)] * 2
    return TwoLayerVAE(
        prior=_prior(config, images, top),
        generator=posteriors.MeanField(lambda outputs: nets.MLP([top, *hidden, outputs]), bottom),
        likelihood=_likelihood(config, images, bottom, components.LIKELIHOODS[config.likelihood]),
        posterior=_posterior(config, images, bottom),
        top_posterior=components.POSTERIORS[config.posterior](
            lambda outputs: nets.MLP([bottom, *hidden, outputs]), top
        ),
    )


def _gmvae(config: Config, images: Images) -> nn.Module:
    posterior = _posterior(config, images, config.latent_dim)
    likelihood = _likelihood(config, images, config.latent_dim, components.LIKELIHOODS[config.likelihood])
    return GMVAE(GaussianMixture(config.latent_dim, _CLUSTERS), likelihood, posterior)


def _number_of_classes(config: Config, images: Images) -> int:
    if images.labels is None or len(images.labels.names) > 1:
        raise UserError(
            f"{config.program} needs data with one label an image, unlike {images.name}: choose other --data."
        )
    return 1 + int(images.labels.train.max())


def _of_classes(config: Config, images: Images, number: int) -> dict[str, Any]:
    """Return the parts of a program whose networks take one of `number` classes."""
    features = components.NETS[config.net](images.pixel_shape, config.hidden_dim).encoder(config.hidden_dim)

    def network(outputs: int) -> nn.Module:
        return nets.MLP([config.hidden_dim + number, config.hidden_dim, outputs])

    return {
        "prior": _prior(config, images, config.latent_dim),
        "likelihood": _likelihood(
            config, images, config.latent_dim + number, components.LIKELIHOODS[config.likelihood]
        ),
        "features": features,
        "posterior": components.POSTERIORS[config.posterior](network, config.latent_dim),
        "num_classes": number,
    }


def _cvae(config: Config, images: Images) -> nn.Module:
    return CVAE(**_of_classes(config, images, _number_of_classes(config, images)))


def _m2(config: Config, images: Images) -> nn.Module:
    number = _number_of_classes(config, images)
    if not number <= config.labels <= len(images.train):
        raise UserError(
            f"--labels is {config.labels}; it must be between {number}, one for each class, and {len(images.train)}."
        )
    classifier = components.NETS[config.net](images.pixel_shape, config.hidden_dim).encoder(number)
    return M2(**_of_classes(config, images, number), classifier=classifier, num_labels=config.labels)


def _autoencoder(config: Config, images: Images) -> nn.Module:
    family = components.NETS[config.net](images.pixel_shape, config.hidden_dim)
    posterior = posteriors.Point(family.encoder, config.latent_dim)
    prior = (
        _prior(config, images, config.latent_dim, posterior=posterior)
        if config.objective in _MATCHING
        else Improper(config.latent_dim)
    )
    likelihood = _likelihood(config, images, config.latent_dim, components.LIKELIHOODS[config.likelihood])
    return VAE(prior, likelihood, posterior)


def _pixelcnn(config: Config, images: Images) -> nn.Module:
    return DensityModel(PixelCNN(images.train, _channels(config)))


def _pixelvae(config: Config, images: Images) -> nn.Module:
    return _vae_of(config, images, partial(ConditionalPixelCNN, channels=_channels(config)))


def _channels(config: Config) -> int:
    return max(1, config.hidden_dim // 12)  # 16 by default


def takes_labels(program: Any) -> bool:
    """Whether the model of a program has a second argument that must be given: the labels of the images."""
    parameters = list(inspect.signature(program.model).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return len(required) > 1


def labels_of(program: Any, images: Images, split: str) -> Tensor | None:
    """Return the labels that a program is given beside the images of a split, or None where it takes none.

    Labels that it is not told are -1.

    Raises:
        ValueError: it takes labels, and the data have none.
    """
    if not takes_labels(program):
        return None
    if images.labels is None:
        raise UserError(f"The model takes labels beside x, and {images.name} has none: choose other --data.")
    labels = images.labels.beside(split).to(images.train.device)
    number = getattr(program, "num_labels", None)  # semi-supervised: the number of training labels it uses
    return labels if number is None else some_labels(labels, number if split == "train" else 0)


PROGRAMS: dict[str, Callable[[Config, Images], nn.Module]] = {
    "vae": _vae,
    "two-layer": _two_layer,
    "gmvae": _gmvae,
    "cvae": _cvae,
    "m2": _m2,
    "autoencoder": _autoencoder,
    "pixelcnn": _pixelcnn,
    "pixelvae": _pixelvae,
}
