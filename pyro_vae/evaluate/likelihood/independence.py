r"""Whether what a program says of one image depends on the images beside it.

Batch statistics in the forward pass make it so, BatchNorm in training mode for one: then p(x_i | z) is no density of
image i, and a bound on log p(x) of it means nothing.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.trace import Batch, ParticleTrace, Program
from pyro_vae.trace.execution import trace_in_layout
from pyro_vae.trace.isolation import seed_rng
from pyro_vae.trace.plates import Layout
from pyro_vae.trace.run_result import Values


def check_independence(model: Program, guide: Program, batch: Batch, p: ParticleTrace, q: ParticleTrace) -> None:
    """Refuse programs whose densities of the first image change with the other images, at a batch of the same size.

    The other rows become copies of the first, images and latents alike. A program that cannot be run so, or scored at
    given values, is let through: nothing is found out of it.

    Args:
        model: program of p(x, z).
        guide: program of q(z|x).
        batch: what they are called with.
        p: a run of the model for one particle.
        q: a run of the guide for one particle.

    Raises:
        ValueError: names the program and the site.
    """
    if len(batch) == 1:
        return
    copies = batch.map_rows(_copied)
    values = q.values | p.get_values(p.summed)  # at the first of their values
    alike = {name: _copied(value[0]).unsqueeze(0) if name not in q.shared else value for name, value in values.items()}
    # A tensor beside x may have as many rows by accident, a vocabulary for one, and then stays as it is.
    images = batch.replace_x(_copied(batch.x))
    for kind, program, run in (("model", model, p), ("guide", guide, q)):
        of_first = partial(_of_first, program, Layout("plain", run.frame.data))
        try:
            before = of_first(batch, values)
            if not (name := _changed(before, of_first(copies, alike))):
                continue
            # Not where it changes from call to call, nor where only what stands beside x has made the difference.
            if _changed(before, of_first(batch, values)) or not (name := _changed(before, of_first(images, alike))):
                continue
        except Exception:  # noqa: BLE001 -- any program may fail in its own way
            return
        raise UserError(
            f"The {kind} scores an image at site {name!r} by the images beside it: what depends on the other images of "
            "a batch is no density of one. Give BatchNorm running statistics and put it into evaluation mode."
        )


def _of_first(program: Program, layout: Layout, batch: Batch, latents: Values) -> Values:
    """Score the first image at each site; noise of the program's own is the same at every call."""
    with seed_rng(batch.x, 0):
        terms = trace_in_layout(program, batch, 1, layout, latents).log_probs()
    return {name: term[0, 0] for name, term in terms.items()}


def _changed(before: Values, after: Values) -> str | None:
    """Return the first site whose density has changed by more than rounding."""
    return next((n for n, term in before.items() if (after[n] - term).abs() > 1e-3 * (1 + term.abs())), None)


def _copied(rows: Tensor) -> Tensor:
    return rows[:1].expand_as(rows).contiguous()
