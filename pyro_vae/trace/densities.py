r"""Draws and per-site log-densities of K particles, read from any Pyro program.

A program is a callable of a batch of B images, most of whose sample sites stand in one data plate of that size.
Reading K particles means running it for values of shape (K, B, ...) and collecting, for every site s,

    log p_s(value_s | parents)    (K, B), float64, in nats, unscaled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext

from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace.batch import Batch, Data, Program
from pyro_vae.trace.discrete import check_sizes, find_enumerated_sites, find_summed_sites
from pyro_vae.trace.enumeration import count_states, expand_over_states
from pyro_vae.trace.execution import trace_in_layout, trace_plain_pair, trace_summed
from pyro_vae.trace.layout import Layouts, choose_layout, choose_layouts
from pyro_vae.trace.layout_comparison import choose_summed_layout
from pyro_vae.trace.noise import SharedNoise
from pyro_vae.trace.plates import Layout
from pyro_vae.trace.run_result import ParticleTrace, Values


def trace_particles(
    program: Program,
    batch: Data,
    num_samples: int = 1,
    values: Values | None = None,
    layout: Layout | None = None,
) -> ParticleTrace:
    """Run a program for K particles.

    Args:
        program: a model or a guide.
        batch: what it is called with: x (B, ...), a tuple of arguments, or a `Batch`.
        num_samples: K.
        values: latents held at given values, {site: (K, B, ...)}; the others are sampled.
        layout: how, where `choose_layout` has been asked before.

    Raises:
        ValueError: a value has no site in the program, or no plate has the size of the batch.
    """
    batch = Batch.of(batch)
    if layout is None or num_samples == 1:
        layout = choose_layout(program, batch, num_samples, values, layout and layout.data)
    return trace_in_layout(program, batch, num_samples, layout, values or {})


def replay_at(
    program: Program, batch: Data, values: Mapping[str, Tensor], layout: Layout | None = None
) -> ParticleTrace:
    """Run a program at given values of its latents, {site: (K, B, ...)}; K = 1 where it has none.

    Discrete ones without a value are summed out.

    Raises:
        ValueError: a latent site has no value and cannot be summed out, or as `trace_particles`.
    """
    batch = Batch.of(batch)
    if layout is not None and layout.summed:
        return _complete(trace_summed(program, batch, values, layout), values)
    num_samples = next(iter(values.values())).shape[0] if values else 1
    result = trace_particles(program, batch, num_samples, values, layout)
    if set(result.latents) <= set(values):
        return _complete(result, values)
    summed = find_summed_sites(result, values)
    two = {name: value[:1].expand(2, *value.shape[1:]) for name, value in values.items()}
    layout = choose_layout(program, batch, 2, two, result.frame.data)
    layout = choose_summed_layout(program, batch, two, layout, summed)
    return _complete(trace_summed(program, batch, values, layout), values)


def trace_model_and_guide(
    model: Program,
    guide: Program,
    batch: Data,
    num_samples: int,
    layouts: Layouts | None = None,
    noise: tuple[SharedNoise, SharedNoise] | None = None,
) -> tuple[ParticleTrace, ParticleTrace]:
    """Run a guide for K particles and the model at the values it has drawn; return (model, guide).

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        batch: what they are called with.
        num_samples: K.
        layouts: how, where `choose_layouts` has been asked before.
        noise: keeps the noise of the model and that of the guide beside their sites, for `replay`.

    Raises:
        ValueError: model and guide do not have the same latent sites, or as `trace_particles`.
    """
    batch = Batch.of(batch)
    keep_p, keep_q = (nullcontext if part is None else part.keep for part in noise or (None, None))
    if num_samples == 1 and not (layouts and layouts.repeat):
        p, q = trace_plain_pair(model, guide, batch, (keep_p(), keep_q()))
        if set(p.latents) - set(q.latents) or find_enumerated_sites(q):
            return trace_model_and_guide(
                model, guide, batch, 1, choose_layouts(model, guide, batch, 1, as_trained=True), noise
            )
    else:
        layouts = layouts or choose_layouts(model, guide, batch, num_samples)
        with keep_q():
            q = trace_guide(guide, batch, num_samples, layouts.guide)
        with keep_p():
            p = _trace_model(model, batch, q, layouts.model)
    if missing := sorted(name for name in q.latents if name not in p.sites):
        raise UserError(f"The program has no latent site {missing[0]!r}; it has {p.latents}.")
    return _complete(p, q.latents), q


def trace_guide(guide: Program, batch: Batch, num_samples: int, layout: Layout) -> ParticleTrace:
    """Run a guide for K particles, at each of the S joint values of what it enumerates: S * K particles, K inside S."""
    if not layout.enumerated:
        return trace_in_layout(guide, batch, num_samples, layout, {})
    given = expand_over_states(layout.enumerated, {}, num_samples, batch.x)
    result = trace_in_layout(guide, batch, num_samples * count_states(layout.enumerated), layout, given)
    check_sizes(result)
    return result


def _trace_model(model: Program, batch: Batch, q: ParticleTrace, layout: Layout) -> ParticleTrace:
    """Run a model at what a guide has drawn: at its very tensors where the layouts agree, not at views of them."""
    if layout.summed:
        return trace_summed(model, batch, q.values, layout, q.subsamples())
    if not q.latents:
        return trace_in_layout(model, batch, 1, layout._replace(kind="plain"), {}, q.native_values())
    if len(q.traces) == 1 and (q.layout.kind, q.layout.nesting) == (layout.kind, layout.nesting):
        return trace_in_layout(model, batch, q.num_samples, layout, {}, q.native_values())
    return trace_in_layout(model, batch, q.num_samples, layout, q.values)


def draw(
    guide: Program, batch: Data, num_samples: int, layout: Layout | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw K particles from a guide.

    Args:
        guide: a program of latent sites, q(z|x).
        batch: what it is called with.
        num_samples: K.
        layout: as in `trace_particles`.

    Returns:
        ({latent site: value (K, B, ...)}, {site: log q (K, B)}), log q in nats and float64; it may have auxiliary
        sites more. With a layout that enumerates sites, they are S * K particles.
    """
    if layout is not None and layout.enumerated:
        result = trace_guide(guide, Batch.of(batch), num_samples, layout)
    else:
        result = trace_particles(guide, batch, num_samples, layout=layout)
    return result.values, result.terms(guide=True).densities


def log_density(
    program: Program, batch: Data, values: Mapping[str, Tensor], layout: Layout | None = None
) -> dict[str, Tensor]:
    """Score a program at given latents, observed sites included.

    Args:
        program: a model, or a guide that is to be scored at values it has not drawn.
        batch: what it is called with.
        values: {latent site: (K, B, ...)}, every latent site of the program. Without latents K is 1.
        layout: as in `trace_particles`.

    Returns:
        {site: log-density (K, B)} in nats, float64, differentiable in the values and the parameters.

    Raises:
        ValueError: as `replay_at`.
    """
    return replay_at(program, batch, values, layout).log_probs()


def replay(
    program: Program, batch: Batch, values: Values, first: ParticleTrace, noise: SharedNoise | None
) -> ParticleTrace:
    """Run a program again at given values of its latents, in the layout and under the noise of its first run."""
    with nullcontext() if noise is None else noise.give():
        if first.summed:
            again = trace_summed(program, batch, values, first.layout, first.subsamples())
        else:
            again = trace_in_layout(program, batch, first.num_samples, first.layout, values, first.subsamples())
    return _complete(again, values)


def _complete(result: ParticleTrace, values: Collection[str]) -> ParticleTrace:
    if values and (auxiliary := sorted(set(result.drawn) - set(result.latents))):
        raise UserError(
            f"The guide draws its latents through the auxiliary site {auxiliary[0]!r}: it has no density at values "
            "that it has not drawn."
        )
    if free := sorted(set(result.latents) - set(values)):
        raise UserError(f"Latent site {free[0]!r} of the program has no value: the guide does not sample it.")
    return result
