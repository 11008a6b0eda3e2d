r"""Which layout a program takes: found by comparing numbers, at the values and on the data at hand.

A net that cannot take leading dimensions (``view(x.shape[0], ...)``, ``unflatten``, ``BatchNorm2d``) raises under a
particle plate, and one that mixes them (``softmax(1)``) is silently wrong there. A program that is closed over the
labels of its batch cannot be run on repeated rows. One particle at a time is what every program supports: so a few
particles are read singly, and the first of particles and rows that has the same densities is taken. Where neither can
be run, or neither has the same densities, K particles are K runs.

Nothing is remembered here, since weights move: a gate that starts at zero hides what its inputs go through. Who reads
the same program many times passes the layout along.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_vae.trace.batch import Batch, Program
from pyro_vae.trace.discrete import find_enumerated_sites, find_summed_sites
from pyro_vae.trace.execution import trace_in_layout, trace_plain_pair
from pyro_vae.trace.layout_comparison import (
    NUM_COMPARED,
    choose_agreeing_layout,
    choose_summed_layout,
    comparison_context,
    rows_agree,
    with_reason,
)
from pyro_vae.trace.noise import SharedNoise
from pyro_vae.trace.plates import DataPlate, Layout, get_plates
from pyro_vae.trace.run_result import ParticleTrace, Values
from pyro_vae.trace.shapes import plate_nesting


class Layouts(NamedTuple):
    """Those of a model and of its guide."""

    model: Layout
    guide: Layout

    @property
    def repeat(self) -> bool:
        """Whether particles are repeated at the values of what is summed out or enumerated."""
        return bool(self.model.summed or self.guide.enumerated)


def choose_layout(
    program: Program, batch: Batch, num_samples: int, values: Values | None = None, data: DataPlate | None = None
) -> Layout:
    """Choose how K particles of a program are run; one particle is run as it is.

    Args:
        program: a model or a guide.
        batch: what it is called with.
        num_samples: K.
        values: its latents, {site: (K, B, ...)}, where they are given and not sampled.
        data: the plate of the images, where it is known.

    Raises:
        ValueError: one particle of the program cannot be read; as `trace_in_layout`.
    """
    if num_samples == 1:
        return Layout("plain", data)
    noise = SharedNoise()
    with comparison_context(batch, program):
        parts = [{name: z[k : k + 1] for name, z in (values or {}).items()} for k in range(NUM_COMPARED)]
        first = trace_in_layout(program, batch, 1, Layout("plain", data), parts[0])  # may set up what is made once
        with noise.keep():
            second = trace_in_layout(program, batch, 1, Layout("plain", data), parts[1])
    return _suitable(program, batch, [first, second], noise)


def _suitable(program: Program, batch: Batch, runs: list[ParticleTrace], noise: SharedNoise) -> Layout:
    """Return the layout of many particles.

    Args:
        program: a model or a guide.
        batch: what it is called with.
        runs: two plain runs of it.
        noise: what the second has drawn beside its sites.
    """
    first = runs[0]
    data, nesting = first.frame.data, plate_nesting(first.sites.values())
    # Layouts are compared at given values. Left to draw for themselves, they would draw different values from the same
    # noise, and their densities would differ whether the layout is right or wrong. The values are draws of the program
    # and not zeros, say, since a net may mix particles only where these differ.
    held = {name: torch.cat([run.get_values([name])[name] for run in runs]) for name in first.drawn}
    if not held:
        return Layout("plain", data)
    layouts = [Layout(kind, data, nesting) for kind in ("particles", "rows", "singly")]
    if noise:  # which particles would share
        return with_reason(program, layouts[-1], "it draws noise beside its sites")
    with comparison_context(batch, program):
        return choose_agreeing_layout(program, batch, layouts, held)


def choose_layouts(
    model: Program,
    guide: Program,
    batch: Batch,
    num_samples: int,
    *,
    one_layout: bool = False,
    as_trained: bool = False,
) -> Layouts:
    """Choose how K particles are drawn from a guide and scored by a model, which names the plate of the images.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        batch: what they are called with.
        num_samples: K.
        one_layout: whether both must be run alike; then both are run as the slower one has to be.
        as_trained: whether they will be run in the modes in which their modules are: a BatchNorm that trains takes the
            statistics of one particle at a time, as in stock Pyro.
    """
    noise = SharedNoise(), SharedNoise()
    with comparison_context(batch, model, guide) as kept:
        pairs = [trace_plain_pair(model, guide, batch)]
        summed, enumerated = find_summed_sites(pairs[0][0], pairs[0][1].latents), find_enumerated_sites(pairs[0][1])
        if num_samples == 1 and not summed and not enumerated:
            return Layouts(Layout("plain"), Layout("plain"))
        pairs.append(trace_plain_pair(model, guide, batch, (noise[0].keep(), noise[1].keep())))
    values = {name: torch.cat([q.values[name] for _, q in pairs]) for name in pairs[0][1].latents}
    data, names = (run.frame.data for run in pairs[0])
    sites = [site for run in pairs[0] for site in run.sites.values()]
    nesting, plates = plate_nesting(sites), [plate for site in sites for plate in get_plates(site)]
    if as_trained and any(isinstance(module, _BatchNorm) and was.training for module, was in kept.items()):
        single = Layout("singly", data, nesting, "its batch statistics are those of one particle")
        return Layouts(
            with_reason(model, single._replace(summed=summed), single.reason),
            with_reason(guide, single._replace(data=names, enumerated=enumerated), single.reason),
        )
    of_model, of_guide = Layout("plain", data), Layout("plain", names)
    if values or summed:
        of_model = _suitable(model, batch, [p for p, _ in pairs], noise[0])
    if enumerated or num_samples > 1:
        of_guide = _suitable(guide, batch, [q for _, q in pairs], noise[1])
    of_guide = of_guide._replace(enumerated=enumerated)
    # What a plate draws of a data set is one draw for both programs, in one layout.
    subsampled = any(plate.full_size not in (None, plate.size) for plate in plates)
    if summed and subsampled and of_model.kind == "rows":
        of_model = of_model._replace(kind="singly")  # where each run takes the draw as it is
    if (one_layout or subsampled) and of_model.kind != of_guide.kind != "plain" and values:
        of_model, of_guide = _in_one_layout(model, guide, batch, values, of_model, of_guide)
    of_model, of_guide = of_model._replace(nesting=nesting), of_guide._replace(nesting=nesting)
    return Layouts(choose_summed_layout(model, batch, values, of_model, summed) if summed else of_model, of_guide)


def _in_one_layout(
    model: Program, guide: Program, batch: Batch, values: Values, of_model: Layout, of_guide: Layout
) -> tuple[Layout, Layout]:
    """Return the two layouts with the kind of the slower one, or singly where that does not suit both."""
    slower = max(of_model.kind, of_guide.kind, key=("particles", "rows", "singly").index)
    # Rows that one of them takes need not suit the other, which has been found to take particles.
    slower = "singly" if slower == "rows" and not rows_agree(model, guide, batch, values, of_guide) else slower
    return of_model._replace(kind=slower), of_guide._replace(kind=slower)
