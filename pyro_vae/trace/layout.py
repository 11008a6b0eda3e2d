r"""Which layout a program takes: found by a probe, remembered for the program.

A net that cannot take leading dimensions (``view(x.shape[0], ...)``, ``unflatten``, ``BatchNorm2d``) raises under a
particle plate, and one that mixes them (``softmax(1)``) is silently wrong. So the probe compares numbers: the
particle layout is used where it reproduces the rows, with all parameters moved from their present values, since a
decoder that starts at zero would hide what its inputs go through.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.trace.reading import Program, evaluation_mode, fork_rng, modules, owner, scoped_store
from pyro_vae.trace.running import Run, lay_out, run_laid_out

_LOG = logging.getLogger("pyro_vae")
# (K, B) of two probes: a net whose width is one of them, by coincidence, is not fooled by the other.
_PROBES = ((2, 5), (3, 7))

# What is known of each program: by the id of its owner, for as long as that lives.
_known: dict[int, dict[Any, str | None]] = {}


def needs_rows(program: Program, x: Tensor, num_samples: int, values: Mapping[str, Tensor] | None) -> bool:
    """Decide the layout of a program, once while its modules stay the same; one particle is rows anyway.

    Args:
        program: a model or a guide.
        x: images, (B, ...).
        num_samples: K.
        values: its latents, {site: (K, B, ...)}, where it is scored and does not sample them.
    """
    if num_samples == 1:
        return True
    known = _memory(owner(program))
    parts = tuple((id(part), type(part)) for root in modules(program) for part in root.modules())
    key = (getattr(program, "__func__", None), parts)
    if key not in known:
        try:
            reason = _why_rows(program, x, values or {})
        except Exception:  # noqa: BLE001 -- it cannot be run as rows of other images; nothing is learned from that
            return False
        known[key] = reason
        if reason is not None:
            name = getattr(program, "__qualname__", repr(program))
            _LOG.info("%s does not take particles (%s): they are read as repeated rows.", name, reason)
    return known[key] is not None


def _memory(program_owner: Any) -> dict[Any, str | None]:
    key = id(program_owner)
    if key not in _known:
        try:
            weakref.finalize(program_owner, _known.pop, key, None).atexit = False
        except TypeError:  # it cannot be watched, so it is not remembered
            return {}
        _known[key] = {}
    return _known[key]


def _why_rows(program: Program, x: Tensor, values: Mapping[str, Tensor]) -> str | None:
    """Say why the particle layout does not reproduce the rows, or None; raise where the rows cannot be run."""
    for num_samples, num_images in _PROBES:
        few = torch.arange(num_images, device=x.device) % x.shape[0]
        images = x[few]
        with (
            torch.no_grad(),
            fork_rng(x),
            evaluation_mode(program),
            pyro.validation_enabled(False),
            scoped_store(),
        ):
            given = {name: z[torch.arange(num_samples, device=z.device) % len(z)][:, few] for name, z in values.items()}
            # Once as it stands, so that its parameters are in the store, those of each image at the size of the probe.
            run_laid_out(program, images, 1, lay_out({name: z[:1] for name, z in given.items()}, rows=True), rows=True)
            with _moved(program):
                if not values:
                    given = run_laid_out(program, images, num_samples, {}, rows=True).values
                rows = _numbers(run_laid_out(program, images, num_samples, lay_out(given, rows=True), rows=True))
                try:
                    particles = _numbers(run_laid_out(program, images, num_samples, given, rows=False))
                except Exception as error:  # noqa: BLE001 -- a stranger's net may fail in any way; rows then serve
                    return type(error).__name__
        for name, expected in rows.items():
            if not ((particles[name] - expected).abs() <= 1e-3 + 1e-5 * expected.abs()).all():
                return "its densities would change"
    return None


def _numbers(result: Run) -> dict[str, Tensor]:
    """Return what the layouts must agree on: the densities, and where a `Delta` lies, which may have none."""
    return result.log_probs() | result.places


@contextmanager
def _moved(program: Program) -> Iterator[None]:
    """Move every parameter of a program by a random amount, and back.

    The tensors' data are exchanged, not written to, so that a graph which holds them stays valid.
    """
    store: Any = pyro.get_param_store()
    params = {id(p): p for root in modules(program) for p in root.parameters()}
    params |= {id(p): p for p in (store[name].unconstrained() for name in store)}
    before = [(p, p.data) for p in params.values() if p.is_floating_point()]
    try:
        for p, data in before:
            p.data = data + 0.1 * (data.abs().mean() + 0.1) * torch.randn_like(data)
        yield
    finally:
        for p, data in before:
            p.data = data
