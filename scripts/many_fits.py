"""Timing of several fits that share their steps, against one compiled fit by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from baselines import STEPS
from contenders import batches_of, driver
from timing import Contender, Timing

from pyro_vae import config, data
from pyro_vae.infer import Fit, FitMany

_NUM_IMAGES = 20_000  # of an epoch; shorter ones would mostly time its start and end


def few_images(images: data.Observed) -> data.Observed:
    """Return the data with short epochs."""
    pixels = images.pixels
    return replace(images, pixels=pixels.take("train", min(_NUM_IMAGES, len(pixels.train))))


def epochs_of_fits(settings: config.Config, images: data.Observed, counts: Sequence[int]) -> dict[str, Contender]:
    """Return contenders whose step is one epoch: a `FitMany` of each count, and last a single compiled `Fit`.

    Args:
        settings: Configuration of the program and its training steps.
        images: Images of an epoch.
        counts: Numbers of fits.
    """

    def make(seed: int) -> Fit:
        return Fit(driver(settings, images, "compiled"), batches_of(settings, images), STEPS)

    fits: dict[str, Iterator[Any]] = {
        f"{count} in FitMany": FitMany(make, range(count)).iterate(lambda: False) for count in counts
    }
    fits["1 by itself"] = iter(make(0))
    return {name: Contender(partial(_next_epoch, epochs)) for name, epochs in fits.items()}


def _next_epoch(epochs: Iterator[Any], _: Any) -> object:
    return next(epochs)


def times_per_fit(
    settings: config.Config, images: data.Observed, timings: Mapping[str, Timing]
) -> list[dict[str, Any]]:
    """Print and return the time of a step per fit, given those of the epochs of `epochs_of_fits`."""
    steps = settings.steps_per_epoch(len(images.pixels.train))
    print(f"\nbatch {settings.batch_size}, time per fit and step, in epochs of {steps} steps")
    cases = []
    for name, timing in timings.items():
        count = int(name.split()[0])
        seconds, ratio = timing.seconds / count / steps, timing.ratio / count
        print(f"  {name:30}{seconds * 1e3:9.2f} ms{ratio:8.2f}x")
        cases.append({"batch_size": settings.batch_size, "fits": name, "seconds": seconds, "ratio": ratio})
    return cases
