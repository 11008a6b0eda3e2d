r"""The program and the objective of a configuration, built of the parts that it names."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from pyro_vae.config import Config, components, flag
from pyro_vae.data import Images, some_labels
from pyro_vae.errors import UserError
from pyro_vae.infer import Objective
from pyro_vae.model import CVAE, GMVAE, M2, VAE, Tractable, TwoLayerVAE, likelihoods, nets, posteriors
from pyro_vae.model.nets.pixelcnn import ConditionalPixelCNN, PixelCNN
from pyro_vae.model.priors.improper import Improper
from pyro_vae.model.priors.mixture import GaussianMixture

Likelihood = Callable[[likelihoods.Decoder, Tensor], nn.Module]
# Flags that only some objectives read.
_FLAGS_OF = {
    "beta": ("beta", "beta-tcvae"),
    "warmup_epochs": ("beta", "beta-tcvae"),
    "free_bits": ("free-bits",),
    "mmd_weight": ("wae-mmd",),
}
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
# How the modules of program files are called, with a digest of the path behind it.
_MODULE = "pyro_vae_program_"
_CLUSTERS = 10  # of the prior of gmvae
# The folders of such files in which Python looks for modules because of them alone.
_FOLDERS: set[str] = set()


def unread(config: Config) -> dict[str, Any]:
    """Return the fields that the program or the objective does not read, with their defaults."""
    names = [*_not_of_program(config), *_not_of_objective(config)]
    return {name: getattr(Config, name) for name in names}


def _not_of_program(config: Config) -> list[str]:
    matching = config.objective in _MATCHING
    names = [name for name in _NOT_OF.get(config.program, ()) if not (matching and name == "prior")]
    return names + [name for name, program in _OF_PROGRAM.items() if config.program != program]


def _not_of_objective(config: Config) -> list[str]:
    return [name for name, of in _FLAGS_OF.items() if config.objective not in of]


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
            of = " and ".join(_FLAGS_OF[name])
            raise UserError(f"{flag(name)} is of --objective {of}, not of {config.objective}.")


def build_objective(config: Config, num_images: int) -> Objective:
    """Build the objective of a configuration for so many training images.

    Raises:
        ValueError: as `check`.
    """
    check(config)
    course = components.Course(
        num_particles=config.num_particles,
        num_images=num_images,
        beta=config.beta,
        warmup_steps=config.warmup_epochs * config.epoch_steps(num_images),
        free_bits=config.free_bits,
        mmd_weight=config.mmd_weight,
    )
    return components.OBJECTIVES[config.objective](course)


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
    spec, name = _find(config.program)
    with _traceback_kept(config.program):
        factory = getattr(_run_file(spec), name, None)
    if not callable(factory):
        raise UserError(f"--program {config.program}: {spec.origin} defines no function {name!r}.")
    with _traceback_kept(config.program):
        program = factory(config, images)
    for part in ("model", "guide"):
        if not callable(getattr(program, part, None)):
            raise UserError(f"--program {config.program}: what the factory returns has no {part}(x).")
    return program.to(config.device) if isinstance(program, nn.Module) else program


def _find(program: str) -> tuple[ModuleSpec, str]:
    """Return the module of a program in a file, which has not been run, and the name of its factory."""
    path, colon, name = program.rpartition(":")
    if not colon:
        known = ", ".join(PROGRAMS)
        raise UserError(f"Unknown program {program!r}; choose one of {known}, or path/to/file.py:factory.")
    readable = os.path.isfile(path) and os.access(path, os.R_OK)
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(_MODULE + digest, path) if readable else None
    if spec is None:
        raise UserError(f"--program {program}: no Python file {path!r} to read; write path/to/file.py:factory.")
    return spec, name


@contextmanager
def _traceback_kept(program: str) -> Iterator[None]:
    """Let an error of somebody's own code end a script with its traceback, where one of ours would be one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise RuntimeError(f"--program {program} has failed in its own code.") from error


def _run_file(spec: ModuleSpec) -> ModuleType:
    """Run a file as a new process would: its folder comes first for modules, and those that lie there run anew.

    A module of an earlier program may be that of another folder, or hold what it has drawn under another seed.
    """
    assert spec.origin is not None
    assert spec.loader is not None
    folder = os.path.dirname(os.path.realpath(spec.origin))
    for stale in [name for name in list(sys.modules) if _is_beside_a_program(name)]:
        del sys.modules[stale]
    if folder not in map(os.path.realpath, sys.path):
        _FOLDERS.add(folder)
    sys.path[:] = [folder, *(other for other in sys.path if other != folder)]
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module


def _is_beside_a_program(name: str) -> bool:
    """Whether a module, or the package that it is of, lies where only the files of programs have Python look."""
    spec = getattr(sys.modules.get(name.partition(".")[0]), "__spec__", None)
    if spec is None or name.startswith(_MODULE):
        return False
    return any(os.path.dirname(place) in _FOLDERS for place in spec.submodule_search_locations or [spec.origin or ""])


def _posterior(config: Config, images: Images, latent_dim: int) -> nn.Module:
    family = components.NETS[config.net](images.pixel_shape, config.hidden_dim)
    return components.POSTERIORS[config.posterior](family.encoder, latent_dim)


def _likelihood(config: Config, images: Images, latent_dim: int, build: Likelihood) -> nn.Module:
    family = components.NETS[config.net](images.pixel_shape, config.hidden_dim)
    return build(partial(family.decoder, latent_dim), images.train)


def _vae_of(config: Config, images: Images, build: Likelihood) -> nn.Module:
    posterior = _posterior(config, images, config.latent_dim)
    likelihood = _likelihood(config, images, config.latent_dim, build)
    prior = components.PRIORS[config.prior](components.Blueprint(config.latent_dim, images.train), posterior)
    return VAE(prior, likelihood, posterior)


def _vae(config: Config, images: Images) -> nn.Module:
    return _vae_of(config, images, components.LIKELIHOODS[config.likelihood])


def _two_layer(config: Config, images: Images) -> nn.Module:
    if config.prior == "vamp":
        raise UserError(
            "A VampPrior is of a posterior of images, and z2 of two-layer has none: choose another --prior."
        )
    # Burda et al.: twice as many units in z1 as in z2, and half as many hidden ones between them as below.
    top, bottom, hidden = config.latent_dim, 2 * config.latent_dim, [max(1, config.hidden_dim // 2)] * 2
    return TwoLayerVAE(
        prior=components.PRIORS[config.prior](components.Blueprint(top, images.train), nn.Identity()),
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
    if config.prior == "vamp":
        raise UserError(
            f"A VampPrior needs a posterior of images alone, and that of {config.program} takes labels: choose another "
            "--prior."
        )
    return 1 + int(images.labels.train.max())


def _of_classes(config: Config, images: Images, number: int) -> dict[str, Any]:
    """Return the parts of a program whose networks take one of `number` classes."""
    features = components.NETS[config.net](images.pixel_shape, config.hidden_dim).encoder(config.hidden_dim)

    def network(outputs: int) -> nn.Module:
        return nets.MLP([config.hidden_dim + number, config.hidden_dim, outputs])

    return {
        "prior": components.PRIORS[config.prior](components.Blueprint(config.latent_dim, images.train), nn.Identity()),
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
        components.PRIORS[config.prior](components.Blueprint(config.latent_dim, images.train), posterior)
        if config.objective in _MATCHING
        else Improper(config.latent_dim)
    )
    likelihood = _likelihood(config, images, config.latent_dim, components.LIKELIHOODS[config.likelihood])
    return VAE(prior, likelihood, posterior)


def _pixelcnn(config: Config, images: Images) -> nn.Module:
    return Tractable(PixelCNN(images.train, _channels(config)))


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
