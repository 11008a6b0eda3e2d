r"""The single source of flags, defaults, help and saved configuration, and the table of names to parts.

To offer one more prior, write its module under model/priors/ and name it in `PRIORS`; likewise for the others.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from pyro_vae import data
from pyro_vae.infer import estimators, objectives, schedules
from pyro_vae.model import VAE, TwoLayerVAE, likelihoods, nets, posteriors
from pyro_vae.model.priors import flow, gaussian, laplace, mixture, standard, student_t, vamp


@dataclass(frozen=True)
class Blueprint:
    """What a prior may be built from, besides the posterior of its program."""

    latent_dim: int
    images: Tensor
    """Training images, uint8 (N, *pixels)."""

    def some_images(self, number: int) -> Tensor:
        """Return training images drawn at random, in [0, 1]."""
        return self.images[torch.randperm(len(self.images))[:number]].cpu() / 255


# A prior is built from the blueprint and the posterior.
PRIORS: dict[str, Callable[[Blueprint, nn.Module], nn.Module]] = {
    "standard": lambda plan, posterior: standard.StandardNormal(plan.latent_dim),
    "gaussian": lambda plan, posterior: gaussian.DiagonalGaussian(plan.latent_dim),
    "student-t": lambda plan, posterior: student_t.StudentT(plan.latent_dim),
    "laplace": lambda plan, posterior: laplace.Laplace(plan.latent_dim),
    "mixture": lambda plan, posterior: mixture.GaussianMixture(plan.latent_dim),
    "vamp": lambda plan, posterior: vamp.VampPrior(posterior, plan.some_images(200)),
    "nsf": lambda plan, posterior: flow.nsf(plan.latent_dim),
    "realnvp": lambda plan, posterior: flow.realnvp(plan.latent_dim),
    "maf": lambda plan, posterior: flow.maf(plan.latent_dim),
}
POSTERIORS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "meanfield": posteriors.MeanField,
}
# Likelihoods with the number of parameters that their net gives for each pixel.
LIKELIHOODS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "bernoulli": (likelihoods.Bernoulli, 1),
    "gaussian": (likelihoods.Gaussian, 2),
}
NETS: dict[str, Callable[..., nets.MLP]] = {
    "mlp": nets.MLP,
}
# An objective is built from the configuration and the number of steps in an epoch.
OBJECTIVES: dict[str, Callable[[Config, int], objectives.Objective]] = {
    "elbo": lambda c, steps: objectives.ELBO(c.num_particles),
    "meanfield-elbo": lambda c, steps: objectives.MeanFieldELBO(c.num_particles),
    "iwae": lambda c, steps: objectives.IWAE(c.num_particles),
    "renyi": lambda c, steps: objectives.Renyi(c.num_particles),
    "stl": lambda c, steps: estimators.STL(c.num_particles),
    "dreg": lambda c, steps: estimators.DReG(c.num_particles),
    "beta": lambda c, steps: objectives.BetaELBO(c.num_particles, c.beta, c.warmup_epochs * steps),
}

# What each flag may say; the tables themselves, so that a part added to one from outside is known at once.
CHOICES: dict[str, Collection[str]] = {
    "data": data.DATASETS,
    "binarize": ("dynamic", "fixed", "threshold", "none"),
    "prior": PRIORS,
    "posterior": POSTERIORS,
    "likelihood": LIKELIHOODS,
    "net": NETS,
    "objective": OBJECTIVES,
    "schedule": schedules.SCHEDULES,
    "device": ("auto", "cpu", "cuda"),
}


def _one_of(field: str) -> Any:
    return tyro.conf.arg(constructor=Literal[tuple(CHOICES[field])])  # type: ignore[call-overload]


Count = Annotated[int, tyro.conf.arg(metavar="N")]
OptionalCount = Annotated[int | None, tyro.conf.arg(metavar="N")]
Device = Annotated[str, _one_of("device")]


@dataclass(frozen=True)
class Config:
    """One run. Nats are per image throughout."""

    program: str = "vae"
    """vae, two-layer, or path/to/file.py:factory, a program of your own: factory(config, images) returns an object
    with model(x) and guide(x). Its code is run."""
    data: Annotated[str, _one_of("data")] = "digits"
    """Data set. digits (8x8) is embedded; the others are downloaded into --data-root where absent."""
    data_root: Path = Path("data")
    """Folder of the downloaded data sets."""
    binarize: Annotated[str, _one_of("binarize")] = "dynamic"
    """dynamic: Bernoulli(grey) anew per batch, the test images once; fixed: all once; threshold: grey >= 128;
    none: grey pixels, dequantized uniformly under a density."""
    train_images: OptionalCount = None
    """Train on the first so many images (None: all)."""
    test_images: OptionalCount = None
    """Test on the first so many images (None: all)."""

    prior: Annotated[str, _one_of("prior")] = "standard"
    """p(z)."""
    posterior: Annotated[str, _one_of("posterior")] = "meanfield"
    """q(z|x)."""
    likelihood: Annotated[str, _one_of("likelihood")] = "bernoulli"
    """p(x|z). bernoulli takes binarized pixels, gaussian (learned mean and scale) takes --binarize none."""
    net: Annotated[str, _one_of("net")] = "mlp"
    """Networks of encoder and decoder: mlp has two hidden tanh layers."""
    latent_dim: Count = 50
    """Latent units."""
    hidden_dim: Count = 200
    """Units of a hidden layer."""

    objective: Annotated[str, _one_of("objective")] = "elbo"
    """What is maximised, per image."""
    num_particles: Count = 1
    """Particles per image in training."""
    beta: float = 1.0
    """Weight of the rate, of --objective beta."""
    warmup_epochs: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Epochs over which beta rises to its value, of --objective beta."""
    epochs: OptionalCount = None
    """Passes over the training images (None: 300 on digits, 100 elsewhere)."""
    batch_size: Count = 100
    """Images per step."""
    learning_rate: float = 3e-3
    """Adam's step size at the start."""
    schedule: Annotated[str, _one_of("schedule")] = "cosine"
    """Learning rate over the run: constant, cosine to 0, or burda (8 stages of 3^i parts, each 10^(-1/7) lower)."""
    patience: Annotated[int, tyro.conf.arg(metavar="EPOCHS")] = 0
    """Stop after so many epochs without a better validation ELBO and keep the best (0: off)."""

    num_samples: OptionalCount = None
    """K of the importance-sampled log-likelihood (None: 1000 on digits, 5000 elsewhere)."""
    seed: int = 0
    """Seed of initial weights, order, noise and evaluation."""
    device: Device = "auto"
    """auto takes CUDA where it is available."""

    def __post_init__(self) -> None:
        for name in ("train_images", "test_images", "latent_dim", "hidden_dim", "num_particles"):
            self._at_least(name, 1)
        for name in ("epochs", "batch_size", "num_samples"):
            self._at_least(name, 1)
        self._at_least("patience", 0)
        self._at_least("warmup_epochs", 0)
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise ValueError(f"--beta is {self.beta}; it must be a number of 0 or more.")
        if self.objective != "beta" and (self.beta != 1 or self.warmup_epochs):
            raise ValueError(f"--beta and --warmup-epochs are of --objective beta, not of {self.objective}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"--learning-rate is {self.learning_rate}; it must be a positive number.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"Unknown {name} {getattr(self, name)!r}; choose one of {', '.join(choices)}.")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}.")

    def resolved(self) -> Config:
        """Return the configuration with the defaults that depend on the data set or the machine filled in.

        Raises:
            ValueError: CUDA is asked for and not there.
        """
        digits = self.data == "digits"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: no CUDA device is available here; use --device cpu or auto.")
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        return replace(
            self,
            epochs=self.epochs or (300 if digits else 100),
            num_samples=self.num_samples or (1000 if digits else 5000),
            device=auto if self.device == "auto" else self.device,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(self).items()}

    @staticmethod
    def read(path: Path) -> Config:
        """Read a saved configuration.

        Raises:
            ValueError: the file is not a configuration; names the field at fault.
        """
        values = json.loads(path.read_text())
        known = {field.name: field.default for field in fields(Config)}
        if not isinstance(values, dict) or values.keys() != known.keys():
            odd = sorted(values.keys() ^ known.keys()) if isinstance(values, dict) else [type(values).__name__]
            raise ValueError(f"{path} is not a configuration of this version: unknown or missing {', '.join(odd)}.")
        for name, default in known.items():
            if not isinstance(values[name], _JSON_TYPES[type(default)]) or isinstance(values[name], bool):
                raise ValueError(f"{path} is not a configuration: {name} is {values[name]!r}.")
        return Config(**{**values, "data_root": Path(values["data_root"])})


_JSON_TYPES: dict[type, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (int, float),
    type(Path()): (str,),
    type(None): (int, type(None)),  # a count that the data set decides
}


def load_images(config: Config) -> data.Images:
    """Load the images of a run, binarized where that is done once, on its device."""
    images = data.load(config.data, config.data_root, config.train_images, config.test_images)
    return data.binarize(images, config.binarize).map(lambda pixels: pixels.to(config.device))


def build(config: Config, images: data.Images) -> Any:
    """Build the program of a configuration for the images it will see, on the device of the configuration.

    Random initial weights come from torch's global stream.

    Returns:
        An object with ``model(x)`` and ``guide(x)``.

    Raises:
        ValueError: the file of the program, its factory, or what that returns is not there.
    """
    if config.program in PROGRAMS:
        return PROGRAMS[config.program](config, images).to(config.device)
    program = _factory(config.program)(config, images)
    for part in ("model", "guide"):
        if not callable(getattr(program, part, None)):
            raise ValueError(f"--program {config.program}: what the factory returns has no {part}(x).")
    return program.to(config.device) if isinstance(program, nn.Module) else program


def _factory(program: str) -> Callable[[Config, data.Images], Any]:
    path, _, name = program.rpartition(":")
    spec = importlib.util.spec_from_file_location("program", path) if Path(path).is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(f"--program {program}: no Python file {path!r}; write path/to/file.py:factory.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"--program {program}: {path} defines no function {name!r}.")
    return getattr(module, name)


def _likelihood(config: Config, images: data.Images, latent_dim: int) -> nn.Module:
    part, per_pixel = LIKELIHOODS[config.likelihood]
    hidden = [config.hidden_dim] * 2
    decoder = NETS[config.net]([latent_dim, *hidden, per_pixel * math.prod(images.pixel_shape)])
    return part(decoder, images.pixel_shape, images.train.float().mean(0).cpu() / 255)


def _posterior(config: Config, images: data.Images, latent_dim: int) -> nn.Module:
    hidden = [config.hidden_dim] * 2
    encoder = NETS[config.net]([math.prod(images.pixel_shape), *hidden, 2 * latent_dim])
    return POSTERIORS[config.posterior](nn.Sequential(nets.Flatten(images.pixel_shape), encoder))


def _vae(config: Config, images: data.Images) -> nn.Module:
    posterior = _posterior(config, images, config.latent_dim)
    likelihood = _likelihood(config, images, config.latent_dim)
    prior = PRIORS[config.prior](Blueprint(config.latent_dim, images.train), posterior)
    return VAE(prior, likelihood, posterior)


def _two_layer(config: Config, images: data.Images) -> nn.Module:
    if config.prior == "vamp":
        raise ValueError(
            "A VampPrior is of a posterior of images, and z2 of two-layer has none: choose another --prior."
        )
    # Burda et al.: twice as many units in z1 as in z2, and half as many hidden ones between them as below.
    top, bottom, hidden = config.latent_dim, 2 * config.latent_dim, [max(1, config.hidden_dim // 2)] * 2
    return TwoLayerVAE(
        prior=PRIORS[config.prior](Blueprint(top, images.train), nn.Identity()),
        generator=posteriors.MeanField(nets.MLP([top, *hidden, 2 * bottom])),
        likelihood=_likelihood(config, images, bottom),
        posterior=_posterior(config, images, bottom),
        top_posterior=posteriors.MeanField(nets.MLP([bottom, *hidden, 2 * top])),
    )


PROGRAMS: dict[str, Callable[[Config, data.Images], nn.Module]] = {"vae": _vae, "two-layer": _two_layer}


def look(config: Config, density: bool) -> Callable[..., Tensor]:
    """Return `data.observe` as this run does it: uint8 pixels to what the program observes, in [0, 1].

    Args:
        config: the run.
        density: whether the program observes under a density, whose grey pixels are then dequantized.

    Raises:
        ValueError: a density of binarized pixels, which has no bound and means nothing.
    """
    if density and config.binarize != "none":
        raise ValueError(
            f"The likelihood is a density and --binarize {config.binarize} gives 0 and 1: use --binarize none."
        )
    return partial(data.observe, how=config.binarize, dequantize=density)
