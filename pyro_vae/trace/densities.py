r"""Sample K particles from any Pyro program and evaluate the log-density of every site.

Models and guides are callables of a batch of B images. Most of their sample sites are inside one data plate of size B.
Running K particles means running the callable for values of shape (K, B, ...) and collecting, for every site s,

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
    """Run a model or guide for K particles.

    Args:
        program: Model or guide.
        batch: Arguments of the program: x, shape (B, ...), a tuple of arguments, or a `Batch`.
        num_samples: Number of particles, K.
        values: Values at which latents are held, {site: (K, B, ...)}. Other latents are sampled.
        layout: Layout from an earlier `choose_layout`. None chooses one.

    Raises:
        ValueError: A value has no matching site in the program, or no plate has the size of the batch.
    """
    batch = Batch.of(batch)
    if layout is None or num_samples == 1:
        layout = choose_layout(program, batch, num_samples, values, layout and layout.data)
    return trace_in_layout(program, batch, num_samples, layout, values or {})


def replay_at(
    program: Program, batch: Data, values: Mapping[str, Tensor], layout: Layout | None = None
) -> ParticleTrace:
    """Run a model or guide with its latents held at given values, {site: (K, B, ...)}. Without latents, K = 1.

    Discrete latents without a value are summed out.

    Raises:
        ValueError: A latent site has no value and cannot be summed out; or see `trace_particles`.
    """
    batch = Batch.of(batch)
    if layout is not None and layout.summed:
        return _require_values(trace_summed(program, batch, values, layout), values)
    num_samples = next(iter(values.values())).shape[0] if values else 1
    result = trace_particles(program, batch, num_samples, values, layout)
    if set(result.latents) <= set(values):
        return _require_values(result, values)
    summed = find_summed_sites(result, values)
    pair = {name: value[:1].expand(2, *value.shape[1:]) for name, value in values.items()}  # to compare layouts
    layout = choose_layout(program, batch, 2, pair, result.frame.data)
    layout = choose_summed_layout(program, batch, pair, layout, summed)
    return _require_values(trace_summed(program, batch, values, layout), values)


def trace_model_and_guide(
    model: Program,
    guide: Program,
    batch: Data,
    num_samples: int,
    layouts: Layouts | None = None,
    noise: tuple[SharedNoise, SharedNoise] | None = None,
) -> tuple[ParticleTrace, ParticleTrace]:
    """Run a guide for K particles and the model at the values that the guide sampled.

    Args:
        model: Model, p(x, z).
        guide: Guide, q(z | x).
        batch: Arguments of both.
        num_samples: Number of particles, K.
        layouts: Layouts from an earlier `choose_layouts`. None chooses them.
        noise: Two recorders, for the model and for the guide. They keep the noise that each draws outside its sample
            sites (e.g. dropout), for `replay`.

    Returns:
        (run of the model, run of the guide).

    Raises:
        ValueError: The model and the guide do not have the same latent sites; or see `trace_particles`.
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
    return _require_values(p, q.latents), q


def trace_guide(guide: Program, batch: Batch, num_samples: int, layout: Layout) -> ParticleTrace:
    """Run a guide for K particles at each of the S joint values of the sites that it enumerates.

    K varies fastest among the S * K particles.
    """
    if not layout.enumerated:
        return trace_in_layout(guide, batch, num_samples, layout, {})
    given = expand_over_states(layout.enumerated, {}, num_samples, batch.x)
    result = trace_in_layout(guide, batch, num_samples * count_states(layout.enumerated), layout, given)
    check_sizes(result)
    return result


def _trace_model(model: Program, batch: Batch, q: ParticleTrace, layout: Layout) -> ParticleTrace:
    """Run a model at the values that a guide sampled.

    If both layouts match, the model receives the guide's tensors themselves rather than views of them. Gradients then
    accumulate in the order of stock Pyro and are bit-identical to its gradients.
    """
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
    """Sample K particles from a guide and score them.

    Args:
        guide: Guide, q(z | x).
        batch: Arguments of the guide.
        num_samples: Number of particles, K.
        layout: See `trace_particles`.

    Returns:
        ({latent site: value (K, B, ...)}, {site: log q (K, B)}), with log q in nats, float64. The second dictionary
        also includes auxiliary sites. If the layout enumerates sites, the leading dimension is S * K.
    """
    if layout is not None and layout.enumerated:
        result = trace_guide(guide, Batch.of(batch), num_samples, layout)
    else:
        result = trace_particles(guide, batch, num_samples, layout=layout)
    return result.values, result.terms(guide=True).densities


def log_density(
    program: Program, batch: Data, values: Mapping[str, Tensor], layout: Layout | None = None
) -> dict[str, Tensor]:
    """Evaluate the log-density of every site, including observed ones, at given latents.

    Args:
        program: Model, or a guide to be scored at values that it did not sample.
        batch: Arguments of the program.
        values: Values of all latent sites, {site: (K, B, ...)}. Without latents, K = 1.
        layout: See `trace_particles`.

    Returns:
        {site: log-density (K, B)} in nats, float64, differentiable with respect to the values and the parameters.

    Raises:
        ValueError: See `replay_at`.
    """
    return replay_at(program, batch, values, layout).log_probs()


def replay(
    program: Program, batch: Batch, values: Values, first: ParticleTrace, noise: SharedNoise | None
) -> ParticleTrace:
    """Run a model or guide again at given latents, in the layout of its first run.

    Args:
        program: Model or guide.
        batch: Arguments of the program.
        values: Values of its latents, {site: (K, B, ...)}.
        first: First run, whose layout and plate subsamples are reused.
        noise: Noise recorded in the first run and replayed here. None draws new noise.
    """
    with nullcontext() if noise is None else noise.give():
        if first.summed:
            again = trace_summed(program, batch, values, first.layout, first.subsamples())
        else:
            again = trace_in_layout(program, batch, first.num_samples, first.layout, values, first.subsamples())
    return _require_values(again, values)


def _require_values(result: ParticleTrace, values: Collection[str]) -> ParticleTrace:
    """Return the run. Raise if a latent has no given value or was computed from an auxiliary site."""
    if values and (auxiliary := sorted(set(result.drawn) - set(result.latents))):
        raise UserError(
            f"The guide draws its latents through the auxiliary site {auxiliary[0]!r}: its density cannot "
            "be evaluated at given values."
        )
    if missing := sorted(set(result.latents) - set(values)):
        raise UserError(f"Latent site {missing[0]!r} of the program has no value: the guide does not sample it.")
    return result
