r"""Draws and per-site log-densities of K particles, read from any Pyro program.

A program is a callable of x (B, ...) whose sample sites all stand in one data plate of size B at dim -1.
Reading K particles means running it once for values of shape (K, B, ...) and collecting, for every site s,

    log p_s(value_s | parents)    (K, B), float64, in nats, unscaled.

Two layouts give the same numbers. *Particles*: an outer plate of size K at dim -2, so that a guide encodes
each image once. *Rows*: the K particles as repeated rows of one batch of K*B, for programs whose nets cannot
take leading dimensions (``view(x.shape[0], ...)``, ``unflatten``, ``BatchNorm2d``). The particle layout is
used where a probe of 2 particles and 3 images finds that it reproduces the rows, which any program supports.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.runtime import Message
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.trace.reading import Program, evaluation_mode, fork_rng, owner

_LOG = logging.getLogger("pyro_vae")
_PARTICLES = "_particles"
_PROBE_PARTICLES, _PROBE_IMAGES = 2, 3

# Whether a program takes particles: a fact about its code, found once per program object and method.
_takes_particles: WeakKeyDictionary[Any, dict[Any, bool]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Run:
    """One run of a program for K particles of B images."""

    trace: poutine.Trace
    num_samples: int
    batch_size: int

    @cached_property
    def sites(self) -> dict[str, dict[str, Any]]:
        """The sample sites proper: no plate's subsample and no `pyro.deterministic`."""
        nodes: dict[str, Any] = self.trace.nodes
        return {
            name: site
            for name, site in nodes.items()
            if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
        }

    @property
    def values(self) -> dict[str, Tensor]:
        """The values of the latent sites: {site: (K, B, ...)}."""
        return {
            name: site["value"] if _in_particles(site) else site["value"].unflatten(0, (self.num_samples, -1))
            for name, site in self.sites.items()
            if not site["is_observed"]
        }

    @property
    def observed(self) -> dict[str, tuple[Any, Tensor]]:
        """The observed sites: {site: (distribution, data)}."""
        return {name: (s["fn"], s["value"]) for name, s in self.sites.items() if s["is_observed"]}

    def log_probs(self) -> dict[str, Tensor]:
        """Return {site: log-density (K, B)} in nats, float64, without the scales of `poutine.scale`."""
        totals = {}
        for name, site in self.sites.items():
            value = scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])
            totals[name] = value.double().reshape(self.num_samples, self.batch_size)
        return totals

    def check_plates(self) -> None:
        """Raise ValueError for a site outside the data plate, or inside a second one."""
        for name, site in self.sites.items():
            rows = self.batch_size if _in_particles(site) else self.num_samples * self.batch_size
            plates = [f for f in site["cond_indep_stack"] if f.vectorized and f.name != _PARTICLES]
            if len(plates) != 1 or plates[0].dim != -1 or plates[0].size != rows:
                found = ", ".join(f"{f.name!r} of size {f.size} at dim {f.dim}" for f in plates) or "none"
                raise ValueError(
                    f"Site {name!r} must stand in one data plate of size {rows} at dim -1, found {found}: write "
                    "`with pyro.plate('data', x.shape[0])` around it. A global latent variable cannot be read."
                )


def run(program: Program, x: Tensor, num_samples: int = 1, values: Mapping[str, Tensor] | None = None) -> Run:
    """Run a program for K particles.

    Args:
        program: a model or a guide, called as ``program(x)``.
        x: images, (B, ...).
        num_samples: K.
        values: latents held at given values, {site: (K, B, ...)}; the others are sampled.

    Raises:
        ValueError: a value has no site in the program, or a site stands outside the data plate.
    """
    rows = _needs_rows(program, x, num_samples, values)
    return _run(program, x, num_samples, _laid_out(values or {}, rows), rows=rows)


def run_at(program: Program, x: Tensor, values: Mapping[str, Tensor]) -> Run:
    """Run a program at given values of all its latents, {site: (K, B, ...)}; K = 1 where it has none.

    Raises:
        ValueError: a latent site has no value, or as `run`.
    """
    num_samples = next(iter(values.values())).shape[0] if values else 1
    return _complete(run(program, x, num_samples, values), values)


def run_pair(model: Program, guide: Program, x: Tensor, num_samples: int) -> tuple[Run, Run]:
    """Run a guide for K particles and the model at the values it has drawn; return (model, guide).

    Raises:
        ValueError: model and guide do not have the same latent sites, or as `run`.
    """
    q = run(guide, x, num_samples)
    values = q.values
    num_samples = num_samples if values else 1
    rows = _needs_rows(model, x, num_samples, values)
    # Where the layouts agree the model takes the very tensors of the guide, not views of them: gradients then
    # add up in the order of stock Pyro, and come out with its bits.
    same = all(_in_particles(site) != rows for site in q.sites.values())
    given = {name: q.sites[name]["value"] for name in values} if same else _laid_out(values, rows)
    return _complete(_run(model, x, num_samples, given, rows=rows), values), q


def draw(guide: Program, x: Tensor, num_samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw K particles from a guide.

    Args:
        guide: a program of latent sites, q(z|x).
        x: images, (B, ...).
        num_samples: K.

    Returns:
        ({site: value (K, B, ...)}, {site: log q (K, B)}), log q in nats and float64.
    """
    result = run(guide, x, num_samples)
    return result.values, result.log_probs()


def log_density(program: Program, x: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Score a program at given latents, observed sites included.

    Args:
        program: a model, or a guide that is to be scored at values it has not drawn.
        x: images, (B, ...).
        values: {latent site: (K, B, ...)}, every latent site of the program. Without latents K is 1.

    Returns:
        {site: log-density (K, B)} in nats, float64, differentiable in the values and the parameters.

    Raises:
        ValueError: as `run_at`.
    """
    return run_at(program, x, values).log_probs()


class _SampleSites(TraceMessenger):
    """Records sample sites alone: a program names its parameters anew at every run, and there may be many."""

    def _pyro_post_param(self, msg: Message) -> None:
        pass


def _in_particles(site: dict[str, Any]) -> bool:
    return any(frame.name == _PARTICLES for frame in site["cond_indep_stack"])


def _laid_out(values: Mapping[str, Tensor], rows: bool) -> Mapping[str, Tensor]:
    return {name: value.flatten(0, 1) for name, value in values.items()} if rows else values


def _complete(result: Run, values: Mapping[str, Tensor]) -> Run:
    if free := sorted(result.values.keys() - values.keys()):
        raise ValueError(f"Latent site {free[0]!r} of the program has no value: the guide does not sample it.")
    return result


def _run(program: Program, x: Tensor, num_samples: int, given: Mapping[str, Tensor], *, rows: bool) -> Run:
    """Run a program in one layout, with values in that layout."""
    batch_size = x.shape[0]
    if rows and num_samples > 1:
        x = x.repeat(num_samples, *([1] * (x.dim() - 1)))
    program_of_particles = program if rows else pyro.plate(_PARTICLES, num_samples, dim=-2)(program)
    if given:
        replayed = poutine.Trace()
        for name, value in given.items():
            replayed.add_node(name, type="sample", is_observed=False, value=value, infer={})
        program_of_particles = poutine.replay(program_of_particles, trace=replayed)
    result = Run(_SampleSites()(program_of_particles).get_trace(x), num_samples, batch_size)
    if missing := sorted(given.keys() - result.sites.keys()):
        raise ValueError(f"The program has no site {missing[0]!r}; its sites are {list(result.sites)}.")
    result.check_plates()
    return result


def _needs_rows(program: Program, x: Tensor, num_samples: int, values: Mapping[str, Tensor] | None) -> bool:
    """Decide the layout, once per program object and method. One particle is one batch of rows anyway."""
    if num_samples == 1:
        return True
    known = _takes_particles.setdefault(owner(program), {})
    key = getattr(program, "__func__", None)
    if key not in known:
        reason = _probe(program, x, values)
        known[key] = reason is None
        if reason is not None:
            name = getattr(program, "__qualname__", repr(program))
            _LOG.info("%s does not take particles (%s): they are read as repeated rows.", name, reason)
    return not known[key]


def _probe(program: Program, x: Tensor, values: Mapping[str, Tensor] | None) -> str | None:
    """Say why the particle layout does not reproduce the rows, or None where it is to be used.

    A net that mixes leading dimensions can run under a particle plate and be wrong, so the numbers are
    compared, not only the exceptions. Three images and two particles, so that no two sizes coincide. A
    program that is tied to its own batch (a parameter for each image) cannot be read as rows at all.
    """
    few = torch.arange(_PROBE_IMAGES, device=x.device) % x.shape[0]
    x = x[few]
    with torch.no_grad(), fork_rng(x), evaluation_mode(program), pyro.validation_enabled(False):
        try:
            if values is None:
                values = _run(program, x, _PROBE_PARTICLES, {}, rows=True).values
            else:
                values = {name: value[:_PROBE_PARTICLES, few] for name, value in values.items()}
            given = _laid_out(values, rows=True)
            expected = _run(program, x, _PROBE_PARTICLES, given, rows=True).log_probs()
        except Exception:  # noqa: BLE001 -- whatever is wrong shows again when the program itself is run
            return None
        try:
            found = _run(program, x, _PROBE_PARTICLES, values, rows=False).log_probs()
        except Exception as error:  # noqa: BLE001 -- a stranger's net may fail in any way; rows then serve
            return type(error).__name__
    same = all(torch.allclose(found[name], expected[name], rtol=1e-3, equal_nan=True) for name in expected)
    return None if same else "its densities would change"
