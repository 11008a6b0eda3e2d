r"""A program and the images that it is fitted to or scored on, as a configuration says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from pyro_vae import data
from pyro_vae.config import Config, programs
from pyro_vae.config.suited import adapt_to_data
from pyro_vae.data.storage import place
from pyro_vae.errors import UserError
from pyro_vae.trace import Batch, Data, Description, describe


class LabeledImages(NamedTuple):
    """Images (N, ...) as the program observes them, beside its other arguments if it has any; and classes (N,)."""

    x: Data
    classes: np.ndarray

    @property
    def pixels(self) -> Tensor:
        """The images alone."""
        return Batch.of(self.x).x


@dataclass(frozen=True)
class Run:
    """A configuration, its program, and its images as the program observes them."""

    config: Config
    images: data.Observed
    program: Any
    """An object with ``model(x)`` and ``guide(x)``."""
    description: Description

    @property
    def density(self) -> bool:
        """Whether the images are observed under a density, so that gray levels are made continuous."""
        return self.description.observes == "density"

    @property
    def execution(self) -> str | None:
        """How steps run, and whether densities are read by compiled graphs; see `Config.execution`."""
        return self.config.execution(len(self.images.pixels.train))

    @property
    def no_density_reason(self) -> str | None:
        """Why the program has no log weights, or None."""
        return self.description.no_density_reason

    @property
    def labels(self) -> data.Labels | None:
        """What is known of the images."""
        return self.images.pixels.labels

    def observed(self, split: str) -> Data:
        """Return the images of a split (N, *pixels) as the program observes them, the same every time.

        A program that takes labels has them beside the images, in a `Batch`.
        """
        x = self.images.split(split)
        labels = programs.select_labels(self.program, self.images.pixels, split)
        return x if labels is None else Batch(x, labels.to(x.device))

    def labeled(self, split: str) -> LabeledImages:
        """Return the images of a split as the program observes them, with the first of their labels.

        Raises:
            UserError: they have none.
        """
        if self.labels is None:
            raise UserError(f"{self.images.pixels.name} has no labels: choose other --data.")
        return LabeledImages(self.observed(split), self.labels.get(self.labels.names[0], split).cpu().numpy())

    def batches(self) -> data.Batches:
        """Return the batches of the fit."""
        labels = programs.select_labels(self.program, self.images.pixels, "train")
        return self.images.batches(self.config.batch_size, self.config.seed, labels)


def prepare(config: Config) -> Run:
    """Load the images of a configuration, build its program, and find out how that observes them.

    Random initial weights come from torch's global stream.

    Raises:
        DataError: see `data.load`; or a density of binarized pixels.
        UserError, RuntimeError: see `programs.build`.
    """
    images = load_images(config)
    config = adapt_to_data(config, images.pixels)
    return make_run(config, images, programs.build(config, images.pixels))


def load_images(config: Config, *, download: bool = True) -> data.Observed:
    """Load the images of a run, on its device; see `data.storage.place` for training images that are too many for it.

    Args:
        config: the run.
        download: whether a data set that is absent is downloaded into its ``data_root``.

    Raises:
        DataError: see `data.load`.
    """
    images = data.load(
        config.data,
        config.data_root,
        config.train_images,
        config.test_images,
        download=download,
        image_size=config.image_size,
        channels=config.channels,
        skip_bad=config.skip_bad,
        splits=config.splits,
    )
    binarize = adapt_to_data(config, images).binarize
    train, valid, test = (
        place(images.train, config.device),
        images.valid.to(config.device),
        images.test.to(config.device),
    )
    observed: data.Observed = replace(images, train=train, valid=valid, test=test).observed(binarize)
    return replace(observed, device=valid.device)


def make_run(config: Config, images: data.Observed, program: Any) -> Run:
    """Find out whether a program observes pixels under a density, and return the run of it.

    Raises:
        DataError: it does, and the pixels are binarized.
    """
    description = describe(program.model, program.guide, example(program, images))
    if description.observes == "density":
        images = images.with_dequantization()
    return Run(config, images, program, description)


def example(program: Any, images: data.Observed) -> Data:
    """Return an image as a program may be called with it before it is known how it observes pixels."""
    x = images.example()
    labels = programs.select_labels(program, images.pixels, "train")
    return x if labels is None else Batch(x, labels[:1].to(x.device))
