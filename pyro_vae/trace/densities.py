r"""Draws and per-site log-densities of K particles, read from any Pyro program.

A program is a callable of x (B, ...) whose sample sites all stand in one data plate of size B at dim -1.
Reading K particles means running it once for values of shape (K, B, ...) and collecting, for every site s,

    log p_s(value_s | parents)    (K, B), float64, in nats, unscaled.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_vae.trace.layout import needs_rows
from pyro_vae.trace.reading import Program
from pyro_vae.trace.running import Run, in_particles, lay_out, run_laid_out


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
    rows = needs_rows(program, x, num_samples, values)
    return run_laid_out(program, x, num_samples, lay_out(values or {}, rows), rows=rows)


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
    q = _run_guide(guide, x, num_samples)
    values = q.values
    num_samples = num_samples if values else 1
    rows = needs_rows(model, x, num_samples, values)
    # Where the layouts agree the model takes the very tensors of the guide, not views of them: gradients then
    # add up in the order of stock Pyro, and come out with its bits.
    same = all(in_particles(site) != rows for site in q.sites.values())
    given = {name: q.sites[name]["value"] for name in values} if same else lay_out(values, rows)
    return _complete(run_laid_out(model, x, num_samples, given, rows=rows), values), q


def draw(guide: Program, x: Tensor, num_samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draw K particles from a guide.

    Args:
        guide: a program of latent sites, q(z|x).
        x: images, (B, ...).
        num_samples: K.

    Returns:
        ({site: value (K, B, ...)}, {site: log q (K, B)}), log q in nats and float64.
    """
    result = _run_guide(guide, x, num_samples)
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


def simulate(model: Program, like: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw images from a model, with the latents behind them: an exact draw of the posterior of each.

    Args:
        model: program of p(x, z) with one observed site, which observes x itself.
        like: images (B, ...), of which only number and shape count.

    Returns:
        (x (B, ...), {latent site: (1, B, ...)}).

    Raises:
        ValueError: the model observes several sites or none, or what it observes is not its argument x.
    """
    with torch.no_grad():
        result = run(model, like)
        if len(result.observed) != 1:
            raise ValueError(f"Images are simulated at one observed site, and the model has {len(result.observed)}.")
        ((name, (distribution, value)),) = result.observed.items()
        x = distribution.sample().to(value.dtype).reshape(like.shape) if value.numel() == like.numel() else like
        again = run(model, x, 1, result.values).observed[name][1]
    if again.numel() != x.numel() or not torch.equal(again.reshape(x.shape), x):
        raise ValueError(f"Site {name!r} does not observe the argument x of the model: no image can be simulated.")
    return x, result.values


def _run_guide(guide: Program, x: Tensor, num_samples: int) -> Run:
    result = run(guide, x, num_samples)
    if result.observed:
        raise ValueError(f"The guide observes site {next(iter(result.observed))!r}; a guide only samples.")
    return result


def _complete(result: Run, values: Mapping[str, Tensor]) -> Run:
    if free := sorted(result.values.keys() - values.keys()):
        raise ValueError(f"Latent site {free[0]!r} of the program has no value: the guide does not sample it.")
    return result
