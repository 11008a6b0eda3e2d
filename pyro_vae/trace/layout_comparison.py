r"""Compare layouts with single runs, by their densities at the same values and on the same noise.

A layout is correct if it reproduces the densities of one particle at a time, up to rounding. A network that raises in a
layout does not support it; a network that mixes particles there changes the densities. See `layout` for the layouts.
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
NUM_COMPARED = 2  # particles; mixing shows as soon as two of them differ


@contextmanager
def comparison_context(batch: Batch, *programs: Program) -> Iterator[Any]:
    """Run programs in evaluation mode, without gradients, validation or side effects.

    Yields:
        The modules that were switched to evaluation mode, with their earlier states.
    """
    with (
        torch.no_grad(),
        fork_rng(batch.x),
        evaluation_mode(*programs) as kept,
        pyro.validation_enabled(False),
        isolated_param_store(),
    ):
        yield kept


def choose_agreeing_layout(program: Program, batch: Batch, layouts: list[Layout], held: Values) -> Layout:
    """Return the first layout that reproduces the densities of single runs at given values.

    Args:
        program: Model or guide.
        batch: Arguments of the program.
        layouts: Candidates in order of preference. The last one is the fallback and is not compared.
        held: Values of the sampled sites, {site: (2, B, ...)}, for two particles.
    """
    reason = None
    try:
        singles = [
            _comparable_quantities(program, batch, 1, layouts[0], {n: z[k : k + 1] for n, z in held.items()})
            for k in range(2)
        ]
        expected = {name: torch.cat([single[name] for single in singles]) for name in singles[0]}
    except Exception as error:  # noqa: BLE001 -- nothing to compare with, e.g. a flow without an inverse
        return with_reason(program, layouts[-1], _error_name(error))
    for layout in layouts[:-1]:
        try:
            densities = _comparable_quantities(program, batch, NUM_COMPARED, layout, held)
        except Exception as error:  # noqa: BLE001 -- third-party networks may raise anything
            reason = reason or _error_name(error)
            continue
        if all(_agree(densities[name], expected[name]) for name in expected):
            return with_reason(program, layout, reason)
        reason = reason or "its densities would change"
    return with_reason(program, layouts[-1], reason)


def _comparable_quantities(
    program: Program, batch: Batch, num_samples: int, layout: Layout, held: Values
) -> dict[str, Tensor]:
    """Return the quantities on which all layouts must agree, computed on the same noise.

    These are the densities and loss terms of all sites, except that a `Delta` is compared by its location.
    """
    if num_samples == 1:
        layout = layout._replace(kind="plain")
    with seed_rng(batch.x, 0):
        run = trace_in_layout(program, batch, num_samples, layout, held)
    terms = run.terms()
    numbers = {name: value for name, value in (terms.densities | terms.losses).items() if name not in run.deltas}
    for name in run.deltas:
        numbers[name] = run.join(name, lambda site: to_particles(_delta_location(site), site, run.frame))
    return numbers


def _delta_location(site: Mapping[str, object]) -> Tensor:
    """Return the location of a `Delta` in the shape of its value."""
    value: Tensor = site["value"]  # type: ignore[assignment]
    location: Tensor = unwrap(site["fn"])[0].v
    return location.reshape(value.shape) if location.numel() == value.numel() else location.expand(value.shape)


def _agree(actual: Tensor, expected: Tensor) -> bool:
    """Return whether two tensors are equal up to rounding errors in the default dtype."""
    eps = torch.finfo(torch.get_default_dtype()).eps
    return actual.shape == expected.shape and torch.allclose(
        actual.double(), expected.double(), rtol=100 * eps, atol=1e4 * eps, equal_nan=True
    )


def choose_summed_layout(
    program: Program, batch: Batch, values: Values, layout: Layout, summed: tuple[FiniteSite, ...]
) -> Layout:
    """Return the layout in which sites are summed out.

    If the program supports it, their values are in a separate dimension to the left of the particles. Computations that
    do not depend on them, often the decoder, then run once instead of S times. Otherwise particles are repeated.

    Args:
        program: Model.
        batch: Arguments of the model.
        values: Values of its other latents, {site: (K, B, ...)}, at which the layouts are compared.
        layout: Layout of the model for many particles.
        summed: The sites to sum out.
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
        except Exception as error:  # noqa: BLE001 -- third-party networks may raise anything
            _error_name(error)  # raises if out of memory
            return repeated
    same = densities.keys() == expected.keys() and all(_agree(densities[name], expected[name]) for name in expected)
    return by_states if same else repeated


def rows_agree(model: Program, guide: Program, batch: Batch, values: Values, layout: Layout) -> bool:
    """Return whether both programs reproduce the densities of single runs as rows."""
    rows = layout._replace(kind="rows")
    single = layout._replace(kind="singly")
    with comparison_context(batch, model, guide):
        return all(
            choose_agreeing_layout(program, batch, [rows, single], values).kind == "rows" for program in (model, guide)
        )


def with_reason(program: Program, layout: Layout, reason: str | None) -> Layout:
    """Return a layout with the reason why it is not ``particles``, and log that reason."""
    if layout.kind != "particles":
        manner = "as repeated rows" if layout.kind == "rows" else "one at a time"
        name = getattr(program, "__qualname__", repr(program))
        _log_once(f"{name} does not support a particle dimension ({reason}): particles are run {manner}.")
    return layout._replace(reason=reason)


@cache
def _log_once(message: str) -> None:
    """Log a message once per process, since layouts are chosen repeatedly."""
    _LOG.info(message)


def _error_name(error: Exception) -> str:
    """Return the name of an error's class. Errors for lack of memory are raised again."""
    if is_out_of_memory(error):
        raise error
    return type(error).__name__
