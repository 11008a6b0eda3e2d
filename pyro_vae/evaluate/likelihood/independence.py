r"""Check that the log-density of an image does not depend on the other images of its batch.

Batch statistics in the forward pass violate this, e.g. BatchNorm in training mode. Then p(x_i | z) is not a density of
image i, and a bound on its log p(x) is meaningless.
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
    """Raise if the log-densities of the first image change with the other images of the batch.

    All other rows are replaced by copies of the first, images and latents alike, at the same batch size. The check is
    inconclusive, and passes, if a program cannot run on such a batch or be scored at given values.

    Args:
        model: Model p(x, z).
        guide: Guide q(z|x).
        batch: Arguments of both.
        p: Trace of the model for one particle.
        q: Trace of the guide for one particle.

    Raises:
        ValueError: The model or the guide, which is named with the site, depends on the other images.
    """
    if len(batch) == 1:
        return
    repeated = batch.map_rows(_repeat_first_row)
    values = q.values | p.get_values(p.summed)  # summed-out latents at their first value
    repeated_values = {
        name: _repeat_first_row(value[0]).unsqueeze(0) if name not in q.shared else value
        for name, value in values.items()
    }
    # Another argument may have B rows by coincidence, e.g. a vocabulary: this batch changes only x.
    repeated_x = batch.replace_x(_repeat_first_row(batch.x))
    for kind, program, trace in (("model", model, p), ("guide", guide, q)):
        score_first = partial(_score_first_image, program, Layout("plain", trace.frame.data))
        try:
            before = score_first(batch, values)
            if not (name := _find_changed_site(before, score_first(repeated, repeated_values))):
                continue
            # Ignore log-densities that change from call to call, and changes due only to arguments other than x.
            if _find_changed_site(before, score_first(batch, values)) or not (
                name := _find_changed_site(before, score_first(repeated_x, repeated_values))
            ):
                continue
        except Exception:  # noqa: BLE001 -- any program may fail in its own way
            return
        raise UserError(
            f"The {kind}'s log-density of an image at site {name!r} depends on the other images of the batch. Give "
            "BatchNorm running statistics and put it into evaluation mode."
        )


def _score_first_image(program: Program, layout: Layout, batch: Batch, latents: Values) -> Values:
    """Return the log-density of the first image at each site. Noise outside the sites is the same in every call."""
    with seed_rng(batch.x, 0):
        terms = trace_in_layout(program, batch, 1, layout, latents).log_probs()
    return {name: term[0, 0] for name, term in terms.items()}


def _find_changed_site(before: Values, after: Values) -> str | None:
    """Return the first site whose log-density has changed by more than rounding error, or None."""
    return next((n for n, term in before.items() if (after[n] - term).abs() > 1e-3 * (1 + term.abs())), None)


def _repeat_first_row(rows: Tensor) -> Tensor:
    return rows[:1].expand_as(rows).contiguous()
