r"""Simulate x from a model, and determine which observed sites hold which elements of x."""

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

_EXACT = 2**24  # float32 represents all smaller integers exactly


def find_x_elements(model: Program, batch: Data, values: Values | None = None) -> dict[str, Tensor]:
    """Find the observed sites that hold elements of x unchanged, by running the model on x = 0, 1, 2, ....

    Args:
        model: Model that observes x flattened, in parts or transposed, possibly along with other data.
        batch: Arguments of the model. Only the shape, dtype and device of x matter.
        values: Values of its latents, {site: (K, B, ...)}, of which the first particle is used. None samples them.

    Returns:
        {site: flat index into x, (B, ...), of each element of the value of the site}. Empty if the model cannot be run
        on such an x or observes other values than its elements.
    """
    batch = Batch.of(batch)
    size, num_images = max(1, batch.x[0].numel()), len(batch)
    given = {name: value[:1] for name, value in (values or {}).items()}
    if num_images * size < _EXACT:
        return _observed_indices(model, batch, torch.arange(num_images * size), given)
    # Large batches need two runs: one for the element within an image, one for the index of the image.
    pixels = _observed_indices(model, batch, torch.arange(size).repeat(num_images), given)
    images = _observed_indices(model, batch, torch.arange(num_images).repeat_interleave(size), given)
    return {name: pixels[name] + size * images[name] for name in pixels if name in images}


def _observed_indices(model: Program, batch: Batch, numbers: Tensor, given: Values) -> dict[str, Tensor]:
    """Return the values of the observed sites that hold only elements of an x made of given integers.

    The model is run a second time with the integers in reverse order, because labels passed along with x are integers,
    too.
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
    """Return the data that a model observes if called with x. Empty if it cannot be run on x."""
    with torch.no_grad(), fork_rng(x), pyro.validation_enabled(False):
        try:
            observed = trace_in_layout(model, batch.replace_x(x), 1, Layout("plain"), given).observed
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return {}
    return {name: value for name, (_, value) in observed.items()}


def find_image_site(model: Program, batch: Data, values: Values | None = None) -> tuple[str, Tensor]:
    """Return the name of the observed site that holds every element of x exactly once, and its `find_x_elements`.

    Raises:
        ValueError: There is no such site.
    """
    batch = Batch.of(batch)
    for name, index in find_x_elements(model, batch, values).items():
        if index.numel() == batch.x.numel() and index.unique().numel() == index.numel():
            return name, index
    raise UserError(
        f"The program observes no site with the elements of x, {tuple(batch.x.shape)}, unchanged: there is no image to "
        "show."
    )


def to_images(quantity: Tensor, index: Tensor, template: Tensor) -> Tensor:
    """Reshape a quantity per element of a site to the shape of x.

    Args:
        quantity: One value per element of the site, broadcastable to the shape of `index`.
        index: The site's entry in `find_x_elements`.
        template: Tensor of the shape of x, (B, ...).
    """
    images = torch.empty(template.numel(), dtype=quantity.dtype, device=quantity.device)
    images[index.flatten()] = quantity.expand(index.shape).flatten()
    return images.reshape(template.shape)


def simulate(model: Program, template: Data) -> tuple[Data, dict[str, Tensor]]:
    """Sample images and their latents from a model.

    The latents of an image are an exact sample from its posterior, since both come from the joint distribution. All
    observed sites that hold elements of x are sampled, and x is assembled from them. Other observed data, e.g. labels,
    keep their given values.

    Args:
        model: Model, p(x, z), whose observed sites hold every element of x exactly once.
        template: Batch whose x is replaced.

    Returns:
        (data, latents): the simulated x, shape (B, ...), inside a `Batch` with the other arguments unless `template` is
        a tensor; and the latents by site, each (1, B, ...).

    Raises:
        ValueError: An element of x is not observed or is observed twice; the distribution of one depends on x itself;
            or other observed data depend on the latents, which would then not be samples from the posterior.
    """
    is_tensor = isinstance(template, Tensor)
    template = Batch.of(template)
    index_of = find_x_elements(model, template)
    held = torch.cat([index.flatten() for index in index_of.values()]) if index_of else torch.empty(0)
    if not held.numel() == held.unique().numel() == template.x.numel():
        raise UserError(
            "The observed sites of the model do not hold each element of its argument x once, unchanged: no image can "
            "be simulated."
        )
    with torch.no_grad():
        with _SampleObserved(index_of) as drawn:
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
    """Raise if simulated images are not samples from the model.

    Args:
        model: Model, p(x, z).
        batch: Batch with the simulated x.
        first: The run that sampled x and its latents.
        again: A second run, at the simulated x and the same latents. It must observe the sampled values under the same
            distributions.
        drawn: The sampled values of the observed sites.
    """
    for name, value in drawn.items():
        if not torch.equal(again.observed[name][1].to(value), value):
            raise UserError(f"Site {name!r} does not observe x unchanged: no image can be simulated.")
        before, after = (log_prob({**run.sites[name], "value": value}) for run in (first, again))
        if not torch.allclose(before, after, rtol=1e-4, atol=1e-4):
            raise UserError(f"The distribution of site {name!r} depends on x itself: no image can be simulated.")
    other_sites = [name for name in again.observed if name not in drawn]
    if other_sites and again.latents:
        resampled = trace_particles(model, batch)
        for name in other_sites:
            before, after = (
                scale_and_mask(log_prob(s), 1.0, s["mask"]) for s in (resampled.sites[name], again.sites[name])
            )
            if not torch.allclose(before, after):
                raise UserError(
                    f"Site {name!r} observes given data whose distribution depends on the latents: simulated latents "
                    "would not be samples from the posterior."
                )


class _SampleObserved(Messenger):
    """Sample the values of some observed sites."""

    def __init__(self, names: Any) -> None:
        super().__init__()
        self.names = set(names)
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Message) -> None:
        fn: Any = msg["fn"]
        name = str(msg["name"])
        if name in self.names and not isinstance(fn, Unit):
            self.values[name] = msg["value"] = fn.sample()
