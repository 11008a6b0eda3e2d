r"""Layouts held against single runs: by their densities, at the same values and on the same noise.

A layout is right where it gives the numbers of one particle at a time,

    particles    (K, B, D)    a particle plate to the left of that of the images
    rows         (K*B, D)     the images repeated in one larger batch
    singly       K times (B, D)

A net that raises in a layout cannot take it; one that mixes particles gives other densities there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.errors import is_out_of_memory
from pyro_vae.trace.batch import Batch, Program
from pyro_vae.trace.elements import unwrap
from pyro_vae.trace.enumeration import FiniteSite
from pyro_vae.trace.execution import trace_in_layout, trace_summed
from pyro_vae.trace.isolation import fork_rng, isolated_param_store, seed_rng
from pyro_vae.trace.modes import evaluation_mode
from pyro_vae.trace.plates import Layout
from pyro_vae.trace.run_result import Values
from pyro_vae.trace.shapes import to_particles

_LOG = logging.getLogger("pyro_vae")
NUM_COMPARED = 2  # particles


@contextmanager
def comparison_context(batch: Batch, *programs: Program) -> Iterator[Any]:
    """Run programs in evaluation mode, without leaving a mark."""
    with (
        torch.no_grad(),
        fork_rng(batch.x),
        evaluation_mode(*programs) as kept,
        pyro.validation_enabled(False),
        isolated_param_store(),
    ):
        yield kept


def choose_agreeing_layout(program: Program, batch: Batch, layouts: list[Layout], held: Values) -> Layout:
    """Return the first layout that has the densities of single runs at given values."""
    reason = None
    try:
        singles = [
            _numbers(program, batch, 1, layouts[0], {n: z[k : k + 1] for n, z in held.items()}) for k in range(2)
        ]
        expected = {name: torch.cat([part[name] for part in singles]) for name in singles[0]}
    except Exception as error:  # noqa: BLE001 -- a flow without an inverse, for one: nothing can be compared
        return with_reason(program, layouts[-1], _in_short(error))
    for layout in layouts[:-1]:
        try:
            densities = _numbers(program, batch, NUM_COMPARED, layout, held)
        except Exception as error:  # noqa: BLE001 -- a net may fail in any way that its author has not thought of
            reason = reason or _in_short(error)
            continue
        if all(_agree(densities[name], expected[name]) for name in expected):
            return with_reason(program, layout, reason)
        reason = reason or "its densities would change"
    return with_reason(program, layouts[-1], reason)


def _numbers(program: Program, batch: Batch, num_samples: int, layout: Layout, held: Values) -> dict[str, Tensor]:
    """Return what the layouts must agree on: the densities, and where a `Delta` lies; always on the same noise."""
    if num_samples == 1:
        layout = layout._replace(kind="plain")
    with seed_rng(batch.x, 0):
        run = trace_in_layout(program, batch, num_samples, layout, held)
    terms = run.terms()
    numbers = {name: value for name, value in (terms.densities | terms.losses).items() if name not in run.deltas}
    for name in run.deltas:
        numbers[name] = run.join(name, lambda site: to_particles(_place(site), site, run.frame))
    return numbers


def _place(site: Mapping[str, object]) -> Tensor:
    """Return where a `Delta` lies, in the shape of its value."""
    value: Tensor = site["value"]  # type: ignore[assignment]
    location: Tensor = unwrap(site["fn"])[0].v
    return location.reshape(value.shape) if location.numel() == value.numel() else location.expand(value.shape)


def _agree(actual: Tensor, expected: Tensor) -> bool:
    """Whether two results are the same but for rounding in the precision of the default dtype."""
    eps = torch.finfo(torch.get_default_dtype()).eps
    return actual.shape == expected.shape and torch.allclose(
        actual.double(), expected.double(), rtol=100 * eps, atol=1e4 * eps, equal_nan=True
    )


def choose_summed_layout(
    program: Program, batch: Batch, values: Values, layout: Layout, summed: tuple[FiniteSite, ...]
) -> Layout:
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
    by_states = repeated._replace(kind="states")
    with comparison_context(batch, program):
        try:
            with seed_rng(batch.x, 0):
                expected = trace_summed(program, batch, values, repeated).terms().densities
            with seed_rng(batch.x, 0):
                densities = trace_summed(program, batch, values, by_states).terms().densities
        except Exception as error:  # noqa: BLE001 -- a net may fail in any way that its author has not thought of
            _in_short(error)
            return repeated
    same = densities.keys() == expected.keys() and all(_agree(densities[name], expected[name]) for name in expected)
    return by_states if same else repeated


def rows_agree(model: Program, guide: Program, batch: Batch, values: Values, layout: Layout) -> bool:
    """Whether both programs have the densities of single runs as rows."""
    rows = layout._replace(kind="rows")
    single = layout._replace(kind="singly")
    with comparison_context(batch, model, guide):
        return all(
            choose_agreeing_layout(program, batch, [rows, single], values).kind == "rows" for program in (model, guide)
        )


def with_reason(program: Program, layout: Layout, reason: str | None) -> Layout:
    """Return a layout with the reason why it is not particles, and log that reason."""
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
