r"""The values of a discrete latent against the labels of the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from pyro_vae.evaluate import discrete_values, posterior_probs
from pyro_vae.instruments.batches import batches
from pyro_vae.instruments.instrument import EvaluatedRun, Result
from pyro_vae.text import printable
from pyro_vae.trace import Data


@dataclass(frozen=True)
class Classes:
    """Accuracy or purity of a discrete latent, for each run with one and with labels. It needs no flag."""

    name: ClassVar[str] = "classes"
    requested: ClassVar[bool] = True

    def check(self, run: EvaluatedRun) -> None:
        """Refuse nothing: there are no numbers where there are no classes."""

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Compare the most probable values for the test images with their labels."""
        labels = run.fitted.labels
        if labels is None or len(labels.names) != 1 or run.fitted.no_density_reason:
            return Result()
        return measure_classes(run.fitted.program, run.test, labels.test[:, 0].cpu().numpy(), seed)

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Return a line for each run with classes."""
        lines = []
        for name, summary in summaries.items():
            if measured := summary.get(self.name):
                score = "accuracy" if "accuracy" in measured else "purity"
                lines.append(
                    f"{printable(name)}: {score} of the classes {measured[score]:.3f} +- {measured[f'{score}_se']:.3f}"
                )
        return "\n".join(lines)


def measure_classes(program: Any, x: Data, labels: np.ndarray, seed: int) -> Result:
    """Compare the most probable value of the one discrete latent with the labels.

    Args:
        program: an object with ``model(x)`` and ``guide(x)``.
        x: test images (N, ...) as the program observes them.
        labels: whole numbers (N,).
        seed: of all noise.

    Returns:
        No numbers where there is not one discrete latent. Otherwise `confusion`, images of each label (rows) at each
        value (columns), and the `purity` of the values: the share of the images whose label is the most frequent one
        of their value, with its standard error. Of a program that is told labels also its `accuracy`.
    """
    parts = list(batches(x, seed))
    if len(discrete_values(program.model, program.guide, parts[0][0])) != 1:
        return Result()
    probs = [
        next(iter(posterior_probs(program.model, program.guide, images, seed=batch_seed).values()))
        for images, batch_seed in parts
    ]
    values = torch.cat(probs).argmax(1).cpu().numpy()
    confusion = np.zeros((int(labels.max()) + 1, probs[0].shape[1]), int)
    np.add.at(confusion, (labels, values), 1)
    purity = float(confusion.max(0).sum() / len(labels))
    numbers = {"purity": purity, "purity_se": _standard_error(purity, len(labels)), "confusion": confusion.tolist()}
    if hasattr(program, "num_labels"):
        accuracy = float((values == labels).mean())
        numbers |= {"accuracy": accuracy, "accuracy_se": _standard_error(accuracy, len(labels))}
    return Result(numbers)


def _standard_error(share: float, num_images: int) -> float:
    return float(np.sqrt(share * (1 - share) / num_images))
