r"""Run a model or guide once for K particles, in any of the layouts of `plates`.

All layouts give the same values and densities; they differ in speed and in the programs that support them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace.batch import Batch, Program
from pyro_vae.trace.discrete import check_sizes
from pyro_vae.trace.enumeration import count_states, expand_over_states, joint_values
from pyro_vae.trace.plates import (
    PARTICLES,
    DataPlate,
    Frame,
    Layout,
    Site,
    data_plate_message,
    find_data_plate,
    get_plates,
)
from pyro_vae.trace.run_result import ParticleTrace, Values, proper_sites
from pyro_vae.trace.shapes import from_particles
from pyro_vae.trace.terms import log_prob

Keep = AbstractContextManager[Any]


def trace_in_layout(
    program: Program,
    batch: Batch,
    num_samples: int,
    layout: Layout,
    given: Values,
    native: Values | None = None,
    *,
    guess: bool = False,
) -> ParticleTrace:
    """Run a model or guide in one layout.

    Args:
        program: Model or guide.
        batch: Arguments of the program.
        num_samples: Number of particles, K.
        layout: Layout of the particles. If it has no data plate, the plate is determined from the run.
        given: Values of latents, {site: (K, B, ...)}. See `shapes.from_particles` for the layout ``states``.
        native: Values from an earlier run in the same layout, used without conversion. They may include the subsamples
            of plates.
        guess: Whether to accept a program without an unambiguous data plate, e.g. a guide with only global latents. The
            model then determines the plate.

    Raises:
        ValueError: A value has no matching latent site, or a site is not inside the data plate.
    """
    if layout.kind == "singly":
        parts = [{name: value[k : k + 1] for name, value in given.items()} for k in range(num_samples)]
        runs = []
        for part in parts:
            run = trace_in_layout(program, batch, 1, layout._replace(kind="plain"), part, native)
            # Score now: a flow without an inverse can score only its most recent sample, from its cache.
            for site in run.sites.values():
                site["log_prob"] = log_prob(site)  # type: ignore[index]
            runs.append(run)
        return ParticleTrace(tuple(run.traces[0] for run in runs), runs[0].frame, layout, runs[0].held)
    rows = layout.kind == "rows"
    states = count_states(layout.summed) if layout.kind == "states" else 1
    run_batch = batch.repeat(num_samples) if rows else batch
    held = _HoldValues(given, native or {}, layout, num_samples, batch.x)
    with _SampleSites() as tracer, held, _explain_dtype_error(run_batch.x):
        if layout.kind in ("particles", "states"):  # joint values of ``states`` broadcast without a plate
            with pyro.plate(PARTICLES, num_samples // states, dim=layout.particle_dim):
                run_batch.call(program)
        else:
            run_batch.call(program)
    trace = tracer.trace
    sites = proper_sites(trace)
    data = layout.data or find_data_plate(sites.values(), run_batch.x, guess=guess)
    frame = Frame(layout.kind, layout.particle_dim, num_samples, len(batch), data, states)
    _check_latents(sites, given, frame)
    return ParticleTrace((trace,), frame, layout._replace(data=data), frozenset(held.used))


def trace_plain_pair(
    model: Program, guide: Program, batch: Batch, keep: tuple[Keep, Keep] = (nullcontext(), nullcontext())
) -> tuple[ParticleTrace, ParticleTrace]:
    """Run a guide for one particle and the model at its tensors, as stock Pyro does.

    The model receives the guide's tensors themselves, so that gradients accumulate in the order of stock Pyro and are
    bit-identical to its gradients.

    Args:
        model: Model, p(x, z).
        guide: Guide, q(z | x).
        batch: Arguments of both.
        keep: Contexts for the run of the model and for that of the guide, e.g. `SharedNoise.keep`.

    Returns:
        (run of the model, run of the guide).
    """
    with keep[1]:
        q = trace_in_layout(guide, batch, 1, Layout("plain"), {}, guess=True)
    with keep[0]:
        p = trace_in_layout(model, batch, 1, Layout("plain"), {}, q.native_values())
    return p, q.with_plate_of(p)


def trace_summed(
    program: Program, batch: Batch, values: Values, layout: Layout, subsamples: Values | None = None
) -> ParticleTrace:
    """Run a model or guide at given latents and at every joint value of the sites that its layout sums out.

    Args:
        program: Model or guide.
        batch: Arguments of the program.
        values: Values of the other latents, {site: (K, B, ...)}.
        layout: Layout with the sites to sum out, `summed`.
        subsamples: Subsamples of plates from an earlier run.

    Returns:
        A run of S * K particles, with K varying fastest.
    """
    num_samples = next(iter(values.values())).shape[0] if values else 1
    if layout.kind == "states":
        all_values = {**values, **joint_values(layout.summed, batch.device)}
    else:
        all_values = expand_over_states(layout.summed, values, num_samples, batch.x)
    plate_subsamples = {name: value for name, value in (subsamples or {}).items() if name != PARTICLES}
    # Programs with mini-batch plates do not run as rows here (see `choose_layouts`): there is no subsample to reuse.
    native = {} if layout.kind == "rows" else plate_subsamples
    num_runs = num_samples * count_states(layout.summed)
    result = trace_in_layout(program, batch, num_runs, layout, all_values, native)
    check_sizes(result)
    return result


@contextmanager
def _explain_dtype_error(x: Tensor) -> Iterator[None]:
    """Replace a dtype error of torch by a message that names the dtypes of x and of the program."""
    try:
        yield
    except RuntimeError as error:
        default = torch.get_default_dtype()
        if "type" not in str(error) or not x.is_floating_point() or x.dtype == default:
            raise
        raise UserError(
            f"x is {x.dtype} and the program computes in {default}: convert it with x.to({default}) ({error})."
        ) from error


def _check_latents(sites: Mapping[str, Site], given: Values, frame: Frame) -> None:
    latents = [name for name, site in sites.items() if not site["is_observed"]]
    if missing := sorted(given.keys() - set(latents)):
        raise UserError(f"The program has no latent site {missing[0]!r}; it has {latents}.")
    for site in sites.values():
        named = [plate for plate in site["cond_indep_stack"] if plate.name == frame.data.name]
        if named and named[0].size not in (frame.rows, -1):
            raise UserError(data_plate_message(site, frame.rows))


class _HoldValues(Messenger):
    """Hold latents at given values, converted to the layout of the run.

    Native values, including the subsamples of plates, are used without conversion.
    """

    def __init__(self, given: Values, native: Values, layout: Layout, num_samples: int, x: Tensor) -> None:
        super().__init__()
        self.given, self.native = given, native
        self.layout, self.num_samples, self.x = layout, num_samples, x
        self.used: set[str] = set()

    def _pyro_sample(self, msg: Message) -> None:
        name = str(msg["name"])
        if msg["is_observed"] or msg["done"]:
            return
        if name in self.native:
            value = self.native[name]
        elif name in self.given:
            site: Any = msg
            data = self.layout.data or _only_plate(site, self.x)
            frame = Frame(self.layout.kind, self.layout.particle_dim, self.num_samples, len(self.x), data)
            value = from_particles(self.given[name], site, frame)
        else:
            return
        msg["value"], msg["done"] = value, True
        self.used.add(name)


def _only_plate(site: Site, x: Tensor) -> DataPlate:
    """Guess the data plate from one latent site, for the first run of a program with given values."""
    if not any(plate.size in (len(x), -1) for plate in get_plates(site)):
        return DataPlate("", 0, len(x))  # no data plate: shared by all images
    return find_data_plate([site], x)


class _SampleSites(TraceMessenger):
    """Record only sample sites. Param sites are registered again at every run, and there may be many."""

    def _pyro_post_param(self, msg: Message) -> None:
        pass
