r"""From a fitted program to the results in a folder: scores, summary, figures, and the table at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.evaluate import (
    Moments,
    Scores,
    active_units,
    discrete_values,
    mean_images,
    posterior_latents,
    posterior_means,
    posterior_moments,
    prior_latents,
    score,
    shown_images,
    standard_error,
    summary,
    surgery,
    verdict,
)
from pyro_vae.report import pictures, plots
from pyro_vae.runs.folder import Folder
from pyro_vae.runs.run_folder import versions
from pyro_vae.text import printable
from pyro_vae.trace import Batch, Data, derive, describe

_LOG = logging.getLogger("pyro_vae")

IMAGES_AT_ONCE = 100
_AGGREGATED_IMAGES = 1000
_SHOWN_IMAGES, _SHOWN_COLUMNS = 20, 10
_MOST_ROWS = 50  # of a picture of classes
Program = Any


def measure(
    program: Program, x: Data, num_samples: int, *, density: bool, seed: int, compiled: bool = False
) -> tuple[Scores, dict[str, Any]]:
    """Score test images and summarise them.

    Args:
        program: an object with ``model(x)`` and ``guide(x)``.
        x: test images (N, ...) as the program observes them, or a `Batch` of these and the program's other arguments.
        num_samples: K of the importance-sampled log-likelihood.
        density: whether x is observed under a density over dequantized pixels.
        seed: of the draws.
        compiled: whether the programs are read by compiled graphs.

    Returns:
        The scores of all images, and the summary with the seconds it took.
    """
    start = time.perf_counter()
    batch = Batch.of(x)
    parts = list(batch.split(IMAGES_AT_ONCE))
    scores = score(
        program.model,
        program.guide,
        batch,
        num_samples,
        batch_size=IMAGES_AT_ONCE,
        seed=seed,
        compile=compiled,
        progress=True,
    )
    moments = Moments.concatenate(
        posterior_moments(program.guide, images, seed=derive(seed, "batch", number))
        for number, images in enumerate(parts)
    )
    numbers = summary(scores, active_units(moments), batch.x[0].numel(), density=density)
    more: dict[str, float | None] = dict.fromkeys(("mutual_information", "marginal_kl", "squared_error"))
    if numbers["rate"] is not None:
        split = surgery(program.model, program.guide, batch[:_AGGREGATED_IMAGES], seed=seed)
        more["mutual_information"] = float(split.mutual_information.mean())
        more["marginal_kl"] = float(split.marginal_kl.mean())
    described = describe(program.model, program.guide, parts[0])
    observed = [name for name, site in described.model.items() if site.role == "observed"]
    if as_it_is := described.image is not None:
        more["squared_error"] = _squared_error(program, parts, seed)
    numbers["reasons"] |= {name: _reason(name, scores) for name, value in more.items() if value is None}
    if not as_it_is:
        numbers["reasons"]["squared_error"] = _OTHER_UNIT
    if (density and not as_it_is) or (as_it_is and len(observed) > 1):
        numbers["bits_per_dim"] = None
        numbers["reasons"]["bits_per_dim"] = _OTHER_UNIT if not as_it_is else "the program observes more than x"
    return scores, {**numbers, **more, "evaluate_seconds": time.perf_counter() - start, "versions": versions()}


def rehearse(program: Program, x: Data, *, density: bool) -> None:
    """Ask of an untrained program all that is asked of a fitted one, on a few images.

    Raises:
        ValueError: whatever it cannot do, and what would otherwise end the run after it has been trained.
    """
    some = Batch.of(x)[:2]
    measure(program, some, 2, density=density, seed=0)
    if shows_x(program, some):
        pictured(program, some, posterior_latents(program.guide, some, 0), 0)


def shows_x(program: Program, x: Data) -> bool:
    """Whether a program observes x as it is, at one site, so that what it makes of x is an image."""
    return describe(program.model, program.guide, x).image is not None


_OTHER_UNIT = "the program observes something else than x, in a unit of its own"


def codes(program: Program, x: Data, seed: int) -> Tensor:
    """Return the posterior means (N, units), float64, of images x (N, ...)."""
    parts = enumerate(Batch.of(x).split(IMAGES_AT_ONCE))
    return torch.cat([posterior_means(program.guide, images, derive(seed, "batch", n)) for n, images in parts])


def _squared_error(program: Program, parts: Sequence[Batch], seed: int) -> float | None:
    """Return the squared error of reconstructed images, summed over pixels, mean over images."""
    total = 0.0
    for number, images in enumerate(parts):
        values = posterior_latents(program.guide, images, derive(seed, "batch", number))
        means = mean_images(program.model, images, values)
        if means is None:
            return None
        total += float((images.x - means).double().square().sum())
    return total / sum(map(len, parts))


def class_rows(x: Data, columns: int) -> Batch:
    """Return a batch to draw with a row of so many images for each class of the labels beside x.

    Where nothing stands beside x it is the first image throughout, as many rows as columns.
    """
    batch = Batch.of(x)
    beside = [
        leaf for leaf in (*batch.args, *batch.kwargs.values()) if isinstance(leaf, Tensor) and leaf is not batch.x
    ]
    rows = [leaf for leaf in beside if leaf.dim() and len(leaf) == len(batch) and not leaf.is_floating_point()]
    if not rows:
        return batch.expand(columns * columns)
    classes = rows[0].reshape(len(batch), -1)[:, 0]
    first = [int((classes == each).nonzero()[0]) for each in classes.unique()]  # an image of each class
    return batch[torch.tensor(first, device=batch.device).repeat_interleave(columns)]


def prior_grid(program: Program, x: Data, columns: int, seed: int) -> tuple[Batch, dict[str, Tensor] | None]:
    """Draw latents from the prior, a row for each class where the program has some: labels, or a discrete latent.

    Returns:
        What the model is called with, and {site: (1, N, ...)}, or None where the prior is improper.
    """
    batch = Batch.of(x)
    classes = discrete_values(program.model, program.guide, batch[:1])
    if not classes or len(next(iter(classes.values()))) > _MOST_ROWS:
        like = class_rows(batch, columns)
        return like, prior_latents(program.model, like, seed)
    given = {name: value.repeat_interleave(columns, 0).unsqueeze(0) for name, value in classes.items()}
    like = batch.expand(next(iter(given.values())).shape[1])
    return like, prior_latents(program.model, like, seed, given)


def _reason(name: str, scores: Scores) -> str:
    if name == "squared_error":
        return "the mean of p(x|z) has no closed form"
    return scores.reason or "the rate is not finite"


def write_results(folder: Folder, program: Program, x: Data, scores: Scores, seed: int) -> None:
    """Write the per-image scores and the figures that show a program at work."""
    folder.write_scores(scores)
    folder.save_figure("khat", plots.khat(scores.khat, scores.num_samples))
    batch = Batch.of(x)
    some = batch[:_SHOWN_IMAGES]
    if not shows_x(program, some):
        _LOG.warning("The program does not observe x as it is, at one site: there are no pictures.")
        return
    if values := posterior_latents(program.guide, some, seed):
        shown, _ = pictured(program, some, values, seed)
        folder.save_figure("reconstructions", pictures.reconstructions(some.x, shown))
    like, latents = prior_grid(program, batch, _SHOWN_COLUMNS, seed)
    if latents is None:
        _LOG.info("The prior is improper: there are no prior samples.")
        return
    shown, what = pictured(program, like, latents, seed)
    where = " for z from the prior" if latents else ""
    folder.save_figure("prior_samples", pictures.image_grid(shown, what + where))


def pictured(program: Program, like: Data, values: dict[str, Tensor], seed: int) -> tuple[Tensor, str]:
    """Return what to show of p(x|z) at latents, (N, ...), and what it is: the means, or draws where there are none."""
    images, are_means = shown_images(program.model, like, values, seed)
    if are_means:
        return images, "means of p(x|z)"
    return images, "draws from p(x|z)" if values else "draws from p(x)"


def table(summaries: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Scores]) -> str:
    """Lay out the short table of one or more runs, in nats per image."""
    annealed = any("annealing" in numbers for numbers in summaries.values())
    lossy = any(each.reason for each in scores.values())
    widths = {"ELBO": 10, "IWAE_5": 10, "IWAE_50": 10, "log p(x)": 18, "PSIS": 10, "JVI-2": 10}
    widths |= {"AIS": 10, "gap": 16} if annealed else {}
    widths |= {"distortion": 12, "sq. error": 11} if lossy else {}
    lines = [f"{'':24}" + "".join(f"{head:>{width}}" for head, width in widths.items()) + "   k-hat"]
    for name, numbers in summaries.items():
        path = numbers.get("annealing", {})
        cells = {
            "ELBO": _number(numbers["elbo"]),
            "IWAE_5": _number(numbers["iwae"].get("5")),
            "IWAE_50": _number(numbers["iwae"].get("50")),
            "log p(x)": _with_error(numbers["log_likelihood"], numbers["log_likelihood_se"]),
            "PSIS": _number(numbers["psis"]),
            "JVI-2": _number(numbers["jvi2"]),
            "AIS": _number(path.get("log_likelihood")),
            "gap": _with_error(path.get("gap"), path.get("gap_se")),
            "distortion": _number(numbers.get("distortion")),
            "sq. error": _number(numbers.get("squared_error")),
        }
        row = "".join(f"{cells[head]:>{width}}" for head, width in widths.items())
        words = scores[name].reason or verdict(scores[name].khat, scores[name].num_samples)
        lines.append(f"{printable(name)[-23:]:24}{row}   {words}")
    lines.append("nats per image; +- 1 s.e. over images; log p(x) is a lower bound in expectation, from K samples")
    if annealed:
        lines.append("AIS: annealed importance sampling; gap: upper minus lower bound on images of the model's own")
    return "\n".join(lines)


def write_bounds(folder: Folder, scores: Scores) -> None:
    """Write bounds.csv: the IWAE bound over K with its standard errors, over images and over groups of particles."""
    rows = ["num_particles,iwae,se_over_images,se_over_groups"]
    for k, bound, error in zip(scores.ladder, scores.iwae, scores.iwae_se, strict=True):
        # Of a single group, the delta method.
        spread = scores.relative_variance if k == scores.num_samples else error**2
        of_groups = float(np.sqrt(spread.sum()) / scores.num_images)
        rows.append(f"{k},{bound.mean()},{standard_error(bound)},{of_groups}")
    folder.write_text("bounds.csv", "\n".join(rows) + "\n")


def _with_error(value: float | None, error: float | None) -> str:
    return "-" if value is None else f"{value:.2f} +- {_number(error)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
