r"""Draws of x from a model, and which of its observed sites hold which elements of x."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vae.errors import UserError, is_out_of_memory
from pyro_vae.trace.batch import Batch, Data, Program
from pyro_vae.trace.densities import trace_particles
from pyro_vae.trace.execution import trace_in_layout
from pyro_vae.trace.isolation import fork_rng
from pyro_vae.trace.plates import Layout
from pyro_vae.trace.run_result import ParticleTrace, Values
from pyro_vae.trace.terms import log_prob

_EXACT = 2**24  # whole numbers that float32 tells apart


def find_x_elements(model: Program, batch: Data, values: Values | None = None) -> dict[str, Tensor]:
    """Find the observed sites that hold elements of x, unchanged, by running the model on x = 0, 1, 2, ....

    Args:
        model: a program that observes x, flattened, in parts or transposed, perhaps beside other data.
        batch: what it is called with; only the shape of x counts.
        values: its latents, {site: (K, B, ...)}, of which the first particle is taken; None samples them.

    Returns:
        {site: the flat index into x (B, ...) of each element of the site's value}; empty where the model cannot be run
        on such an x, or observes something else than its elements.
    """
    batch = Batch.of(batch)
    size, num_images = max(1, batch.x[0].numel()), len(batch)
    given = {name: value[:1] for name, value in (values or {}).items()}
    if num_images * size < _EXACT:
        return _whole_numbers(model, batch, torch.arange(num_images * size), given)
    # Of many images the element of an image and the number of the image, one after the other.
    pixels = _whole_numbers(model, batch, torch.arange(size).repeat(num_images), given)
    images = _whole_numbers(model, batch, torch.arange(num_images).repeat_interleave(size), given)
    return {name: pixels[name] + size * images[name] for name in pixels if name in images}


def _whole_numbers(model: Program, batch: Batch, numbers: Tensor, given: Values) -> dict[str, Tensor]:
    """Return the observed sites that hold nothing but the numbers of which x is made.

    They are held by the same numbers in the opposite order, too: labels beside x are whole numbers as well.
    """
    numbers = numbers.reshape(batch.x.shape).to(batch.x.device)
    last = int(numbers.max())
    if not torch.equal(numbers.to(batch.x.dtype).long(), numbers):
        return {}
    ascending, descending = (
        _observed(model, batch, values.to(batch.x.dtype), given) for values in (numbers, last - numbers)
    )
    return {
        name: value.long()
        for name, value in ascending.items()
        if value.numel()
        and int(value.min()) >= 0
        and int(value.max()) <= last
        and (value == value.long()).all()
        and name in descending
        and torch.equal(descending[name], last - value)
    }


def _observed(model: Program, batch: Batch, x: Tensor, given: Values) -> dict[str, Tensor]:
    """Return what a model observes of x; empty where it cannot be run on it."""
    with torch.no_grad(), fork_rng(x), pyro.validation_enabled(False):
        try:
            observed = trace_in_layout(model, batch.replace_x(x), 1, Layout("plain"), given).observed
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return {}
    return {name: value for name, (_, value) in observed.items()}


def find_image_site(model: Program, batch: Data, values: Values | None = None) -> tuple[str, Tensor]:
    """Return the one observed site that holds every element of x, and its `find_x_elements`.

    Raises:
        ValueError: there is none.
    """
    batch = Batch.of(batch)
    for name, index in find_x_elements(model, batch, values).items():
        if index.numel() == batch.x.numel() and index.unique().numel() == index.numel():
            return name, index
    raise UserError(
        f"The program observes no site with the elements of x, {tuple(batch.x.shape)}, as they are: there is no image "
        "to show."
    )


def to_images(quantity: Tensor, index: Tensor, template: Tensor) -> Tensor:
    """Bring a quantity of the elements of a site into the shape of x: (B, ...), by the site's `find_x_elements`."""
    images = torch.empty(template.numel(), dtype=quantity.dtype, device=quantity.device)
    images[index.flatten()] = quantity.expand(index.shape).flatten()
    return images.reshape(template.shape)


def simulate(model: Program, template: Data) -> tuple[Data, dict[str, Tensor]]:
    """Draw images from a model, with the latents behind them: an exact draw of the posterior of each.

    Every observed site of elements of x is drawn, and x put together of them. What else the model observes, labels for
    one, is held as it is given.

    Args:
        model: program of p(x, z) whose observed sites hold the elements of x, each once.
        template: batch of which x is replaced.

    Returns:
        (x (B, ...) simulated, in a `Batch` with the other arguments where there are some; {latent site: (1, B, ...)}).

    Raises:
        ValueError: an element of x is not observed, or twice; the distribution of one depends on x itself; or other
            observed data depend on the latents, so that these would not be a draw of the posterior.
    """
    is_tensor = isinstance(template, Tensor)
    template = Batch.of(template)
    index_of = find_x_elements(model, template)
    held = torch.cat([index.flatten() for index in index_of.values()]) if index_of else torch.empty(0)
    if not held.numel() == held.unique().numel() == template.x.numel():
        raise UserError(
            "The observed sites of the model do not hold each element of its argument x once, as it is: no image can "
            "be simulated."
        )
    with torch.no_grad():
        with _Drawn(index_of) as drawn:
            result = trace_particles(model, template)
        flat = torch.empty_like(template.x).flatten()
        for name, index in index_of.items():
            value = drawn.values[name]
            if value.shape != index.shape:
                raise UserError(
                    f"Site {name!r} observes {tuple(index.shape)} under a distribution of {tuple(value.shape)}: no "
                    "image can be simulated."
                )
            flat[index.flatten()] = value.flatten().to(flat)
        batch = template.replace_x(flat.reshape(template.x.shape))
        _check_simulated(model, batch, result, trace_particles(model, batch, 1, result.values), drawn.values)
    return batch.x if is_tensor else batch, result.values


def _check_simulated(
    model: Program, batch: Batch, first: ParticleTrace, again: ParticleTrace, drawn: dict[str, Tensor]
) -> None:
    """Refuse images that are no draw of the model: what was drawn must be what the model says of the images."""
    for name, value in drawn.items():
        if not torch.equal(again.observed[name][1].to(value), value):
            raise UserError(f"Site {name!r} does not observe x as it is: no image can be simulated.")
        before, after = (log_prob({**run.sites[name], "value": value}) for run in (first, again))
        if not torch.allclose(before, after, rtol=1e-4, atol=1e-4):
            raise UserError(f"The distribution of site {name!r} depends on x itself: no image can be simulated.")
    other_sites = [name for name in again.observed if name not in drawn]
    if other_sites and again.latents:
        fresh = trace_particles(model, batch)
        for name in other_sites:
            before, after = (
                scale_and_mask(log_prob(s), 1.0, s["mask"]) for s in (fresh.sites[name], again.sites[name])
            )
            if not torch.allclose(before, after):
                raise UserError(
                    f"Site {name!r} observes data that depend on the latents, and stays as it is: what would be "
                    "simulated is no draw of the posterior."
                )


class _Drawn(Messenger):
    """Draws what some observed sites observe."""

    def __init__(self, names: Any) -> None:
        super().__init__()
        self.names = set(names)
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Message) -> None:
        fn: Any = msg["fn"]
        name = str(msg["name"])
        if name in self.names and not isinstance(fn, Unit):
            self.values[name] = msg["value"] = fn.sample()
