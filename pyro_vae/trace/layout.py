r"""Choose how K particles of a program are run, by comparing densities at the current parameters and data.

    particles    (K, B, D)      a particle plate to the left of the data plate
    rows         (K*B, D)       the batch repeated K times
    singly       K x (B, D)     K separate runs

A network that does not support leading dimensions (``view(x.shape[0], ...)``, ``unflatten``, ``BatchNorm2d``) raises
under a particle plate. A network that mixes them (``softmax(1)``) silently computes wrong densities there. A program
with the labels of its batch in a closure cannot run on repeated rows. Every program supports single runs. Therefore two
particles are run singly, as a reference, and the first of particles and rows that reproduces their densities is chosen.
If neither runs or neither reproduces them, K particles take K runs.

The choice is not cached here, because parameters change: a gate that is initialized to zero hides the inputs behind it.
Callers that run the same program many times pass the layout on.
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
    """Layouts of a model and of its guide."""

    model: Layout
    guide: Layout

    @property
    def repeat(self) -> bool:
        """Whether particles are repeated at the values of summed-out or enumerated sites."""
        return bool(self.model.summed or self.guide.enumerated)


def choose_layout(
    program: Program, batch: Batch, num_samples: int, values: Values | None = None, data: DataPlate | None = None
) -> Layout:
    """Choose the layout for K particles of a model or guide. One particle is always run plainly.

    Args:
        program: Model or guide.
        batch: Arguments of the program.
        num_samples: Number of particles, K.
        values: Values of its latents, {site: (K, B, ...)}. None samples them.
        data: Data plate, if known.

    Raises:
        ValueError: The program cannot be run for one particle. See `trace_in_layout`.
    """
    if num_samples == 1:
        return Layout("plain", data)
    noise = SharedNoise()
    with comparison_context(batch, program):
        parts = [{name: z[k : k + 1] for name, z in (values or {}).items()} for k in range(NUM_COMPARED)]
        # The first run may create lazy state; only the noise of the second one counts.
        first = trace_in_layout(program, batch, 1, Layout("plain", data), parts[0])
        with noise.keep():
            second = trace_in_layout(program, batch, 1, Layout("plain", data), parts[1])
    return _layout_from_runs(program, batch, [first, second], noise)


def _layout_from_runs(program: Program, batch: Batch, runs: list[ParticleTrace], noise: SharedNoise) -> Layout:
    """Return the layout for many particles.

    Args:
        program: Model or guide.
        batch: Arguments of the program.
        runs: Two plain runs of the program.
        noise: Noise that the second run drew outside its sample sites.
    """
    first = runs[0]
    data, nesting = first.frame.data, plate_nesting(first.sites.values())
    # Layouts are compared at held values. If each sampled for itself, the same noise would yield different values, and
    # the densities would differ whether or not the layout is correct. The values are samples of the program rather
    # than, say, zeros, because mixing may be invisible between equal particles.
    held = {name: torch.cat([run.get_values([name])[name] for run in runs]) for name in first.drawn}
    if not held:
        return Layout("plain", data)
    layouts = [Layout(kind, data, nesting) for kind in ("particles", "rows", "singly")]
    if noise:  # other layouts may draw it only once for all particles
        return with_reason(program, layouts[-1], "it draws noise outside its sample sites")
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
    """Choose the layouts for sampling K particles from a guide and scoring them under a model.

    The plate of the images is determined from the model.

    Args:
        model: Model, p(x, z).
        guide: Guide, q(z | x).
        batch: Arguments of both.
        num_samples: Number of particles, K.
        one_layout: Whether both must use the same layout, which is then the slower of the two.
        as_trained: Whether the programs will run in the current modes of their modules. A BatchNorm in training mode
            then normalizes one particle at a time, as in stock Pyro.
    """
    noise = SharedNoise(), SharedNoise()
    with comparison_context(batch, model, guide) as kept:
        pairs = [trace_plain_pair(model, guide, batch)]
        summed, enumerated = find_summed_sites(pairs[0][0], pairs[0][1].latents), find_enumerated_sites(pairs[0][1])
        if num_samples == 1 and not summed and not enumerated:
            return Layouts(Layout("plain"), Layout("plain"))
        pairs.append(trace_plain_pair(model, guide, batch, (noise[0].keep(), noise[1].keep())))
    values = {name: torch.cat([q.values[name] for _, q in pairs]) for name in pairs[0][1].latents}
    data, guide_data = (run.frame.data for run in pairs[0])
    sites = [site for run in pairs[0] for site in run.sites.values()]
    nesting, plates = plate_nesting(sites), [plate for site in sites for plate in get_plates(site)]
    if as_trained and any(isinstance(module, _BatchNorm) and state.training for module, state in kept.items()):
        single = Layout("singly", data, nesting, "its batch statistics are computed for each particle")
        return Layouts(
            with_reason(model, single._replace(summed=summed), single.reason),
            with_reason(guide, single._replace(data=guide_data, enumerated=enumerated), single.reason),
        )
    model_layout, guide_layout = Layout("plain", data), Layout("plain", guide_data)
    if values or summed:
        model_layout = _layout_from_runs(model, batch, [p for p, _ in pairs], noise[0])
    if enumerated or num_samples > 1:
        guide_layout = _layout_from_runs(guide, batch, [q for _, q in pairs], noise[1])
    guide_layout = guide_layout._replace(enumerated=enumerated)
    # A mini-batch plate draws one subsample for both model and guide, so that both need the same layout.
    subsampled = any(plate.full_size not in (None, plate.size) for plate in plates)
    if summed and subsampled and model_layout.kind == "rows":
        model_layout = model_layout._replace(kind="singly")  # every run reuses the subsample unchanged
    if (one_layout or subsampled) and model_layout.kind != guide_layout.kind != "plain" and values:
        model_layout, guide_layout = _in_one_layout(model, guide, batch, values, model_layout, guide_layout)
    model_layout, guide_layout = model_layout._replace(nesting=nesting), guide_layout._replace(nesting=nesting)
    return Layouts(
        choose_summed_layout(model, batch, values, model_layout, summed) if summed else model_layout, guide_layout
    )


def _in_one_layout(
    model: Program, guide: Program, batch: Batch, values: Values, model_layout: Layout, guide_layout: Layout
) -> tuple[Layout, Layout]:
    """Return both layouts with the kind of the slower one, or ``singly`` if that does not suit both."""
    slower = max(model_layout.kind, guide_layout.kind, key=("particles", "rows", "singly").index)
    # If rows suit one of them, the other, which supports particles, may still not support rows.
    slower = "singly" if slower == "rows" and not rows_agree(model, guide, batch, values, guide_layout) else slower
    return model_layout._replace(kind=slower), guide_layout._replace(kind=slower)
