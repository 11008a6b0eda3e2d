r"""A run in memory: a configuration, the program that it specifies, and the images to fit or score."""

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
    """Images (N, ...) as the program observes them, with its other arguments if any, and their classes (N,)."""

    x: Data
    classes: np.ndarray

    @property
    def pixels(self) -> Tensor:
        """The images without other arguments, shape (N, ...)."""
        return Batch.of(self.x).x


@dataclass(frozen=True)
class Run:
    """A configuration, its program, and its images as the program observes them."""

    config: Config
    images: data.Observed
    program: Any
    """Object with ``model(x)`` and ``guide(x)``."""
    description: Description

    @property
    def density(self) -> bool:
        """Whether the program observes images under a density, so that gray levels are dequantized."""
        return self.description.observes == "density"

    @property
    def execution(self) -> str | None:
        """Execution mode of training steps and scoring: ``compiled``, ``recorded`` or None; see `Config.execution`."""
        return self.config.execution(len(self.images.pixels.train))

    @property
    def no_density_reason(self) -> str | None:
        """Why the log weights of the program are undefined, or None if they are defined."""
        return self.description.no_density_reason

    @property
    def labels(self) -> data.Labels | None:
        """Labels of the images, or None."""
        return self.images.pixels.labels

    def observed(self, split: str) -> Data:
        """Return the images of a split, shape (N, *pixels), as the program observes them. All calls agree.

        If the program takes labels, the result is a `Batch` of the images and their labels.
        """
        x = self.images.split(split)
        labels = programs.select_labels(self.program, self.images.pixels, split)
        return x if labels is None else Batch(x, labels.to(x.device))

    def labeled(self, split: str) -> LabeledImages:
        """Return the images of a split as the program observes them, with the first label of each as its class.

        Raises:
            UserError: If the data set has no labels.
        """
        if self.labels is None:
            raise UserError(f"{self.images.pixels.name} has no labels; choose labeled data with --data.")
        return LabeledImages(self.observed(split), self.labels.get(self.labels.names[0], split).cpu().numpy())

    def batches(self) -> data.Batches:
        """Return the training batches of the fit."""
        labels = programs.select_labels(self.program, self.images.pixels, "train")
        return self.images.batches(self.config.batch_size, self.config.seed, labels)


def prepare(config: Config, images: data.Observed | None = None) -> Run:
    """Build the program of a configuration, and determine how it observes the images.

    Initial weights are drawn from torch's global generator.

    Args:
        config: Configuration of the run.
        images: Result of `load_images`, which several runs may share; loaded if None.

    Raises:
        DataError: If the images cannot be loaded (see `data.load`), or a density would observe binarized pixels.
        UserError: See `programs.build`.
        RuntimeError: See `programs.build`.
    """
    config = config.resolve()
    images = load_images(config) if images is None else images
    config = adapt_to_data(config, images.pixels)
    return make_run(config, images, programs.build(config, images.pixels))


def load_images(config: Config, *, download: bool = True) -> data.Observed:
    """Load the images of a run onto its device; training images may stay on the host, see `data.storage.place`.

    Args:
        config: Configuration of the run.
        download: Whether to download a missing data set to ``config.data_root``.

    Raises:
        DataError: If the images cannot be loaded; see `data.load`.
    """
    config = config.resolve()
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
    """Return the run of a program, with dequantized images if the program observes them under a density.

    Raises:
        DataError: If the program observes binarized pixels under a density.
    """
    description = describe(program.model, program.guide, example(program, images))
    if description.observes == "density":
        images = images.with_dequantization()
    return Run(config, images, program, description)


def example(program: Any, images: data.Observed) -> Data:
    """Return a batch of one image for the first call of a program, before it is known how it observes pixels."""
    x = images.example()
    labels = programs.select_labels(program, images.pixels, "train")
    return x if labels is None else Batch(x, labels[:1].to(x.device))
