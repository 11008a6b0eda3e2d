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

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_vae.errors import is_out_of_memory
from pyro_vae.trace.batch import Batch, Program
from pyro_vae.trace.discrete import enumerated_sites, summed_sites
from pyro_vae.trace.elements import element
from pyro_vae.trace.enumeration import Finite
from pyro_vae.trace.execution import run_laid_out, run_summed
from pyro_vae.trace.isolation import fork_rng, scoped_store, seeded
from pyro_vae.trace.modes import evaluation_mode
from pyro_vae.trace.noise import SharedNoise
from pyro_vae.trace.plates import DataPlate, Layout, plates_of
from pyro_vae.trace.run_result import Run, Values
from pyro_vae.trace.shapes import number_of_plates, to_particles

_LOG = logging.getLogger("pyro_vae")
_COMPARED = 2  # particles

Keep = AbstractContextManager[Any]


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
        ValueError: one particle of the program cannot be read; as `run_laid_out`.
    """
    plain = Layout("plain", data)
    if num_samples == 1:
        return plain
    with _looking(batch, program):
        parts = [{name: z[k : k + 1] for name, z in (values or {}).items()} for k in range(_COMPARED)]
        first = run_laid_out(program, batch, 1, plain, parts[0])  # which may set up what is made once
        noise = SharedNoise()
        with noise.keep():
            runs = [first, run_laid_out(program, batch, 1, plain, parts[1])]
        held = {name: torch.cat([run.values_of([name])[name] for run in runs]) for name in first.drawn}
        nesting = number_of_plates(first.sites.values())
        layouts = [Layout(kind, first.frame.data, nesting) for kind in ("particles", "rows", "singly")]
        if not held:
            return plain._replace(data=first.frame.data)
        if noise:  # which particles would share
            return _chosen(program, layouts[-1], "it draws noise beside its sites")
        return _first_that_agrees(program, batch, layouts, held)


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
    with _looking(batch, model, guide) as kept:
        pairs = [run_plainly(model, guide, batch)]
        summed, enumerated = summed_sites(pairs[0][0], pairs[0][1].latents), enumerated_sites(pairs[0][1])
        if num_samples == 1 and not summed and not enumerated:
            return Layouts(Layout("plain"), Layout("plain"))
        pairs += [run_plainly(model, guide, batch) for _ in range(_COMPARED - 1)]
    values = {name: torch.cat([q.values[name] for _, q in pairs]) for name in pairs[0][1].latents}
    data, names = (run.frame.data for run in pairs[0])
    sites = [site for run in pairs[0] for site in run.sites.values()]
    nesting, plates = number_of_plates(sites), [plate for site in sites for plate in plates_of(site)]
    if as_trained and any(isinstance(module, _BatchNorm) and was.training for module, was in kept.items()):
        single = Layout("singly", data, nesting, "its batch statistics are those of one particle")
        return Layouts(
            _chosen(model, single._replace(summed=summed), single.reason),
            _chosen(guide, single._replace(data=names, enumerated=enumerated), single.reason),
        )
    repeated = values or summed
    of_model = choose_layout(model, batch, _COMPARED, values, data) if repeated else Layout("plain", data)
    of_guide = choose_layout(guide, batch, _COMPARED if enumerated else num_samples, None, names)
    of_guide = of_guide._replace(enumerated=enumerated)
    # What a plate draws of a data set is one draw for both programs, in one layout.
    subsampled = any(plate.full_size not in (None, plate.size) for plate in plates)
    if summed and subsampled and of_model.kind == "rows":
        of_model = of_model._replace(kind="singly")  # where each run takes the draw as it is
    one_layout = one_layout or subsampled
    if one_layout and of_model.kind != of_guide.kind != "plain" and values:
        slower = max(of_model.kind, of_guide.kind, key=("particles", "rows", "singly").index)
        # Rows that one of them takes need not suit the other, which has been found to take particles.
        slower = "singly" if slower == "rows" and not _rows_suit(model, guide, batch, values, of_guide) else slower
        of_model, of_guide = of_model._replace(kind=slower), of_guide._replace(kind=slower)
    of_model, of_guide = of_model._replace(nesting=nesting), of_guide._replace(nesting=nesting)
    return Layouts(with_summed(model, batch, values, of_model, summed) if summed else of_model, of_guide)


def with_summed(program: Program, batch: Batch, values: Values, layout: Layout, summed: tuple[Finite, ...]) -> Layout:
    """Return the layout that sums out some sites, their values in a dimension of their own where the program takes it.

    What does not depend on them, often the decoder, is then computed once.

    Args:
        program: a model.
        batch: what it is called with.
        values: its other latents, {site: (K, B, ...)}, at which the layouts are compared.
        layout: how it is run for many particles.
        summed: the sites.
    """
    repeated = layout._replace(summed=summed)
    if layout.kind != "particles":
        return repeated
    beside = repeated._replace(kind="states")
    with _looking(batch, program):
        try:
            with seeded(batch.x, 0):
                expected = run_summed(program, batch, values, repeated).terms().densities
            with seeded(batch.x, 0):
                found = run_summed(program, batch, values, beside).terms().densities
        except Exception as error:  # noqa: BLE001 -- a net may fail in any way that its author has not thought of
            _in_short(error)
            return repeated
    same = found.keys() == expected.keys() and all(_agree(found[name], expected[name]) for name in expected)
    return beside if same else repeated


def _rows_suit(model: Program, guide: Program, batch: Batch, values: Values, layout: Layout) -> bool:
    """Whether both programs have the densities of single runs as rows."""
    rows = layout._replace(kind="rows")
    single = layout._replace(kind="singly")
    with _looking(batch, model, guide):
        return all(_first_that_agrees(each, batch, [rows, single], values).kind == "rows" for each in (model, guide))


def run_plainly(
    model: Program, guide: Program, batch: Batch, keep: tuple[Keep, Keep] = (nullcontext(), nullcontext())
) -> tuple[Run, Run]:
    """Run a guide for one particle and the model at its very tensors, as stock Pyro does; return (model, guide).

    Gradients then add up in the order of stock Pyro, and come out with its bits.
    """
    with keep[1]:
        q = run_laid_out(guide, batch, 1, Layout("plain"), {}, guess=True)
    with keep[0]:
        p = run_laid_out(model, batch, 1, Layout("plain"), {}, q.native())
    return p, q.beside(p)


@contextmanager
def _looking(batch: Batch, *programs: Program) -> Iterator[Any]:
    """Run programs in evaluation mode, without leaving a mark."""
    with (
        torch.no_grad(),
        fork_rng(batch.x),
        evaluation_mode(*programs) as kept,
        pyro.validation_enabled(False),
        scoped_store(),
    ):
        yield kept


def _first_that_agrees(program: Program, batch: Batch, layouts: list[Layout], held: Values) -> Layout:
    """Return the first layout that has the densities of single runs at given values."""
    reason = None
    try:
        right = [_numbers(program, batch, 1, layouts[0], {n: z[k : k + 1] for n, z in held.items()}) for k in range(2)]
        expected = {name: torch.cat([part[name] for part in right]) for name in right[0]}
    except Exception as error:  # noqa: BLE001 -- a flow without an inverse, for one: nothing can be compared
        return _chosen(program, layouts[-1], _in_short(error))
    for layout in layouts[:-1]:
        try:
            found = _numbers(program, batch, _COMPARED, layout, held)
        except Exception as error:  # noqa: BLE001 -- a net may fail in any way that its author has not thought of
            reason = reason or _in_short(error)
            continue
        if all(_agree(found[name], expected[name]) for name in expected):
            return _chosen(program, layout, reason)
        reason = reason or "its densities would change"
    return _chosen(program, layouts[-1], reason)


def _numbers(program: Program, batch: Batch, num_samples: int, layout: Layout, held: Values) -> dict[str, Tensor]:
    """Return what the layouts must agree on: the densities, and where a `Delta` lies; always on the same noise."""
    if num_samples == 1:
        layout = layout._replace(kind="plain")
    with seeded(batch.x, 0):
        run = run_laid_out(program, batch, num_samples, layout, held)
    terms = run.terms()
    numbers = {name: value for name, value in (terms.densities | terms.losses).items() if name not in run.deltas}
    for name in run.deltas:
        numbers[name] = run.joined(name, lambda site: to_particles(_place(site), site, run.frame))
    return numbers


def _place(site: Mapping[str, object]) -> Tensor:
    """Return where a `Delta` lies, in the shape of its value."""
    value: Tensor = site["value"]  # type: ignore[assignment]
    place: Tensor = element(site["fn"])[0].v
    return place.reshape(value.shape) if place.numel() == value.numel() else place.expand(value.shape)


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two results are the same but for rounding in the precision of the default dtype."""
    small = torch.finfo(torch.get_default_dtype()).eps
    return found.shape == expected.shape and torch.allclose(
        found.double(), expected.double(), rtol=100 * small, atol=1e4 * small, equal_nan=True
    )


def _chosen(program: Program, layout: Layout, reason: str | None) -> Layout:
    if layout.kind != "particles":
        how = "as repeated rows" if layout.kind == "rows" else "one at a time"
        name = getattr(program, "__qualname__", repr(program))
        _say(f"{name} does not take particles ({reason}): they are read {how}.")
    return layout._replace(reason=reason)


@cache
def _say(line: str) -> None:
    """Log a line once: layouts are chosen again and again."""
    _LOG.info(line)


def _in_short(error: Exception) -> str:
    if is_out_of_memory(error):
        raise error
    return type(error).__name__
