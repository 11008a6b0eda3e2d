r"""Disentanglement: scores of the latent units of a run against the known factors of its data, and traversals."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pyro_vae import parallel
from pyro_vae.errors import UserError
from pyro_vae.evaluate import decode_units, disentanglement_scores, posterior_means, traverse
from pyro_vae.instruments.batches import posterior_means_batched
from pyro_vae.instruments.instrument import EvaluatedRun, Result
from pyro_vae.report.labels import figure_label
from pyro_vae.report.latents import traversals
from pyro_vae.report.tables import format_number, format_table
from pyro_vae.text import printable
from pyro_vae.trace import Batch, Data, derive_seed

if TYPE_CHECKING:
    from pyro_vae.instruments.instrument import Figure

_CLASSIFIED_IMAGES = 5000  # maximum number of training images for the classifiers of factors
_NUM_VALUES = 10  # images per traversal
_TAIL = 0.01  # a traversal goes from this quantile of the codes to the opposite one
_SCORES = {
    "mig": "MIG",
    "sap": "SAP",
    "disentanglement": "DCI disentanglement",
    "completeness": "completeness",
    "informativeness": "informativeness",
}


@dataclass(frozen=True)
class Factors:
    """Latent units against known factors of the data. --disentanglement writes figures/factors.png.

    Args:
        disentanglement: Score the latent units against the known factors of the data, and draw traversals of the most
            informative unit for each factor. The data need two or more factors, as shapes have.
    """

    name: ClassVar[str] = "disentanglement"

    disentanglement: bool = False

    @property
    def requested(self) -> bool:
        """Whether --disentanglement is set."""
        return self.disentanglement

    def check(self, run: EvaluatedRun) -> None:
        """Raise UserError if the data have fewer than two known factors."""
        labels = run.fitted.labels
        if labels is None or len(labels.names) < 2:
            raise UserError(
                f"{run.folder.path}: --disentanglement requires data with two or more known factors, e.g. shapes."
            )

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Compute the scores, and traverse the most informative unit of each factor."""
        labels = run.fitted.labels
        assert labels is not None
        subset = slice(_CLASSIFIED_IMAGES)
        train = Batch.of(run.fitted.observed("train"))[subset], labels.train[subset]
        return measure_factors(run.fitted.program, train, (run.test, labels.test), labels.names, seed)

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Return a table of the factors of each run."""
        return factor_table({name: numbers[self.name] for name, numbers in summaries.items()})


def measure_factors(
    program: Any, train: tuple[Data, Tensor], test: tuple[Data, Tensor], names: Sequence[str], seed: int
) -> Result:
    """Score posterior means against known factors, and traverse the most informative unit of each factor.

    Args:
        program: Object with ``model(x)`` and ``guide(x)``.
        train: Images as the program observes them, shape (N, ...), and their factors, shape (N, F), to fit classifiers.
        test: Held-out images and factors.
        names: Names of the F factors.
        seed: Random seed of posterior samples and random forests.

    Returns:
        The scores and matrices of `evaluate.Disentanglement` as JSON values, and a figure with one row per unit that is
        the most informative one of a factor: the first test image decoded while the unit moves from the 1st to the 99th
        percentile of the codes.

    Raises:
        ValueError: See `evaluate.disentanglement_scores`.
    """
    start = time.perf_counter()
    halves = [
        (
            posterior_means_batched(program, x, derive_seed(seed, "factors", split)).cpu().numpy(),
            labels.cpu().numpy(),
        )
        for split, (x, labels) in (("train", train), ("test", test))
    ]
    scores = parallel.on_first(lambda: disentanglement_scores(halves[0], halves[1], seed))  # on all cores
    summary = {
        "num_train_images": len(train[0]),
        "num_test_images": len(test[0]),
        **{name: getattr(scores, name) for name in _SCORES},
        "factors": list(names),
        "units": scores.information.argmax(0).tolist(),
        **{name: matrix.tolist() for name, matrix in vars(scores).items()},
        "seconds": time.perf_counter() - start,
    }
    codes_of_both = np.concatenate([half[0] for half in halves])
    figure = partial(_traversals, program, Batch.of(test[0])[:1], codes_of_both, summary, seed)
    return Result(summary, figures={"factors": figure})


def factor_table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the results of one or more runs as tables with one line per factor."""
    lines = []
    for name, summary in measured.items():
        columns = [(printable(name)[-23:], -24), ("unit", 6), ("MI", 8), ("next MI", 8), ("forest", 12)]
        rows = []
        for factor, unit, information, accuracy in zip(
            summary["factors"], summary["units"], np.array(summary["information"]).T, summary["accuracy"], strict=True
        ):
            second, best = np.sort(information)[-2:]
            rows.append(
                [
                    f"  {printable(factor)}",
                    str(unit),
                    format_number(best),
                    format_number(second),
                    format_number(accuracy),
                ]
            )
        lines += format_table(columns, rows)
        lines.append("  " + ", ".join(f"{head} {summary[score]:.2f}" for score, head in _SCORES.items()))
    lines.append(
        "MI: I(unit; factor) / H(factor) of the most informative unit, and of the next one; forest: balanced accuracy "
        "of a random forest on all units, held out"
    )
    return "\n".join(lines)


def _traversals(program: Any, x: Data, codes: np.ndarray, numbers: Mapping[str, Any], seed: int) -> Figure:
    """Show one image, shape (1, ...), as each unit in `numbers` moves through its range in `codes`, (N, units)."""
    base = posterior_means(program.guide, x, derive_seed(seed, "factors", "figure"))[0]
    low, high = torch.as_tensor(np.quantile(codes, [_TAIL, 1 - _TAIL], axis=0)).to(base)
    names: dict[int, str] = {}
    for factor, (name, unit) in enumerate(zip(numbers["factors"], numbers["units"], strict=True)):
        label = f"{figure_label(name)} {numbers['information'][unit][factor]:.2f}"
        names[unit] = f"{names[unit]}\n{label}" if unit in names else label
    names = {unit: f"{name}\nunit {unit}" for unit, name in names.items()}
    latents = traverse(base, low, high, torch.tensor(list(names), device=base.device), _NUM_VALUES)
    decoded, _ = decode_units(program.model, program.guide, x, latents, derive_seed(seed, "factors", "figure"))
    title = "traversals of the most informative unit of each factor,\nwith I(unit; factor) / H(factor)"
    return traversals(names, decoded, base, low, high, title)
