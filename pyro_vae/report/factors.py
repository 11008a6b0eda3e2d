r"""What the latent units of a run tell of the known factors of its data: scores, their table, and traversals."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.evaluate import decoded, disentanglement, posterior_means, traversed
from pyro_vae.report import pictures
from pyro_vae.report.results import Program, codes
from pyro_vae.text import printable
from pyro_vae.trace import Batch, Data

_NUM_VALUES = 10  # of a traversal
_TAIL = 0.01  # of the codes, on either side of where it goes
_SCORES = {
    "mig": "MIG",
    "sap": "SAP",
    "disentanglement": "DCI disentanglement",
    "completeness": "completeness",
    "informativeness": "informativeness",
}


def measure_factors(
    program: Program, train: tuple[Data, Tensor], test: tuple[Data, Tensor], names: Sequence[str], seed: int
) -> tuple[dict[str, Any], Figure]:
    """Score the posterior means of images against their factors, and traverse the best unit of each.

    Args:
        program: an object with ``model(x)`` and ``guide(x)``.
        train: images (N, ...) as the program observes them and their factors (N, F), for the classifiers.
        test: likewise, held out.
        names: of the factors.
        seed: of draws and forests.

    Returns:
        The scores and matrices of `evaluate.Disentanglement` as JSON values, and a figure with a row for each factor:
        the first test image, as the unit of most information goes from the 1st to the 99th percentile of its codes.

    Raises:
        ValueError: as `evaluate.disentanglement`.
    """
    start = time.perf_counter()
    halves = [(codes(program, x, seed).cpu().numpy(), labels.cpu().numpy()) for x, labels in (train, test)]
    found = disentanglement(halves[0], halves[1], seed)
    numbers = {
        "num_train_images": len(train[0]),
        "num_test_images": len(test[0]),
        **{name: getattr(found, name) for name in _SCORES},
        "factors": list(names),
        "units": found.information.argmax(0).tolist(),
        **{name: matrix.tolist() for name, matrix in vars(found).items()},
        "seconds": time.perf_counter() - start,
    }
    codes_of_both = np.concatenate([half[0] for half in halves])
    return numbers, _traversals(program, Batch.of(test[0])[:1], codes_of_both, numbers, seed)


def factor_table(numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out what was measured of one or more runs, a line for each factor."""
    lines = []
    for name, found in numbers.items():
        information = np.array(found["information"])
        lines.append(f"{printable(name)[-23:]:24}{'unit':>6}{'tells':>8}{'next':>8}{'all units':>12}")
        for factor, unit, told, accuracy in zip(
            found["factors"], found["units"], information.T, found["accuracy"], strict=True
        ):
            second, best = np.sort(told)[-2:]
            lines.append(f"  {factor:22}{unit:6}{best:8.2f}{second:8.2f}{accuracy:12.2f}")
        lines.append("  " + ", ".join(f"{head} {found[score]:.2f}" for score, head in _SCORES.items()))
    lines.append(
        "tells: I(unit; factor) / H(factor), and of the second unit; all units: balanced accuracy of a forest, held out"
    )
    return "\n".join(lines)


def _traversals(program: Program, x: Data, of_images: np.ndarray, numbers: Mapping[str, Any], seed: int) -> Figure:
    """Draw for each factor one image (1, ...) as its unit goes through the range of the codes of images (N, units)."""
    base = posterior_means(program.guide, x, seed)[0]
    low, high = torch.as_tensor(np.quantile(of_images, [_TAIL, 1 - _TAIL], axis=0)).to(base)
    units = torch.tensor(numbers["units"], device=base.device)
    latents = traversed(base, low, high, units, _NUM_VALUES)
    images, _ = decoded(program.model, program.guide, x, latents, seed)
    shares = [numbers["information"][unit][factor] for factor, unit in enumerate(numbers["units"])]
    labels = zip(numbers["factors"], numbers["units"], shares, strict=True)
    named = {f"{name}: unit {unit}, {share:.2f}": row for (name, unit, share), row in zip(labels, images, strict=True)}
    return pictures.rows(named, "traversals of the unit that tells most of each factor")
