r"""Agreement of a discrete latent with the labels of the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pyro_vae import parallel
from pyro_vae.evaluate import discrete_values, posterior_probs
from pyro_vae.instruments.batches import Part, batches
from pyro_vae.instruments.instrument import EvaluatedRun, Result
from pyro_vae.text import printable
from pyro_vae.trace import Data


@dataclass(frozen=True)
class Classes:
    """Accuracy or purity of a discrete latent, if the run has one and its data have labels. It needs no flag."""

    name: ClassVar[str] = "classes"
    requested: ClassVar[bool] = True

    def check(self, run: EvaluatedRun) -> None:
        """Accept every run: without a discrete latent or labels the result is empty."""

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Compare the most probable latent value of each test image with its label."""
        labels = run.fitted.labels
        if labels is None or len(labels.names) != 1 or run.fitted.no_density_reason:
            return Result()
        return measure_classes(run.fitted.program, run.test, labels.test[:, 0].cpu().numpy(), seed)

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Return one line per run with a result."""
        lines = []
        for name, summary in summaries.items():
            if measured := summary.get(self.name):
                score = "accuracy" if "accuracy" in measured else "purity"
                lines.append(
                    f"{printable(name)}: {score} of the classes {measured[score]:.3f} +- {measured[f'{score}_se']:.3f}"
                )
        return "\n".join(lines)


def measure_classes(program: Any, x: Data, labels: np.ndarray, seed: int) -> Result:
    """Compare the most probable value of a discrete latent y with the labels.

    Let n_lv be the number of images with label l and most probable value v. The purity is sum_v max_l n_lv / N: the
    accuracy after each value has been assigned its most frequent label. Standard errors are sqrt(p (1 - p) / N).

    Args:
        program: Object with ``model(x)`` and ``guide(x)``.
        x: Test images as the program observes them, shape (N, ...).
        labels: Integer labels, shape (N,).
        seed: Random seed of the samples that estimate p(y | x).

    Returns:
        The `confusion` matrix n and the `purity`. If the program observes labels in training, also the `accuracy`, the
        fraction of images with y = label. The result is empty unless exactly one discrete latent is summed out.
    """
    parts = list(batches(x, seed))
    if len(discrete_values(program.model, program.guide, parts[0][0])) != 1:
        return Result()

    def probs_of(part: Part) -> Tensor:
        images, batch_seed = part
        return next(iter(posterior_probs(program.model, program.guide, images, seed=batch_seed).values()))

    probs = list(parallel.map_parts(probs_of, parts))
    values = torch.cat(probs).argmax(1).cpu().numpy()
    confusion = np.zeros((int(labels.max()) + 1, probs[0].shape[1]), int)
    np.add.at(confusion, (labels, values), 1)
    purity = float(confusion.max(0).sum() / len(labels))
    numbers = {"purity": purity, "purity_se": _standard_error(purity, len(labels)), "confusion": confusion.tolist()}
    if hasattr(program, "num_labels"):
        accuracy = float((values == labels).mean())
        numbers |= {"accuracy": accuracy, "accuracy_se": _standard_error(accuracy, len(labels))}
    return Result(numbers)


def _standard_error(fraction: float, num_images: int) -> float:
    return float(np.sqrt(fraction * (1 - fraction) / num_images))
