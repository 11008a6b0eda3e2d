r"""A gallery of systems that were fitted to the same data: one row each, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.evaluate import (
    Features,
    drawn_images,
    frechet_distance,
    labelled_subsets,
    logistic,
    mean_accuracy,
    prior_latents,
    shown_images,
)
from pyro_vae.report import pictures
from pyro_vae.report.probing import Labelled
from pyro_vae.report.results import IMAGES_AT_ONCE, Program, codes
from pyro_vae.runs.folder import Folder
from pyro_vae.text import printable
from pyro_vae.trace import Batch, Data, derive

_FEW_LABELS = 100
_PICTURES = ("prior_samples", "reconstructions")  # of a run, the first that it has


def measure_system(
    program: Program, train: Labelled, test: Labelled, net: Features, *, lossy: bool, seed: int
) -> dict[str, Any]:
    """Measure what a system is good for, besides its densities.

    Args:
        program: an object with ``model(x)`` and ``guide(x)``.
        train: all training images with their classes.
        test: test images, as many of which are generated to be compared with them.
        net: a network of features, trained on labelled images as this program observes them.
        lossy: whether its likelihood is a loss, from which nothing can be drawn: then its means are its samples.
        seed: of all noise.

    Returns:
        Accuracy of logistic regression on posterior means with 100 and with all labels, with standard errors; Frechet
        distance of samples to test images, and that of as many training images; None where there is no such thing.
    """
    reference = net.features(test.pixels)
    some = torch.randperm(len(train.x), generator=torch.Generator().manual_seed(seed))[: len(test.x)]
    training = net.features(train.pixels[some.to(train.pixels.device)])
    numbers: dict[str, Any] = {
        "frechet": None,
        "frechet_of_training_images": frechet_distance(training, reference),
        "feature_accuracy": net.accuracy(test.pixels, torch.as_tensor(test.classes, device=test.pixels.device)),
    }
    samples = generated(program, test.x, seed, means=lossy)
    if samples is not None:
        numbers["frechet"] = frechet_distance(net.features(samples), reference)
    own_codes, other = (codes(program, part.x, seed).cpu().numpy() for part in (train, test))
    subsets_of = labelled_subsets(train.classes, seed, (_FEW_LABELS,))
    for name, labels in (("few", _FEW_LABELS), ("all", len(train.x))):
        numbers[f"accuracy_{name}"] = numbers[f"accuracy_{name}_se"] = None
        if own_codes.shape[1] and (subsets := subsets_of.get(labels)):
            found = [logistic(own_codes[own], train.classes[own], other) for own in subsets]
            accuracy, error = mean_accuracy(np.array(found) == test.classes)
            numbers |= {f"accuracy_{name}": accuracy, f"accuracy_{name}_se": error}
    return numbers


def generated(program: Program, like: Data, seed: int, *, means: bool) -> Tensor | None:
    """Return images (N, ...) that a program generates, or None where it has no prior.

    Args:
        program: an object with ``model(x)``.
        like: images (N, ...) of which only number and shape count.
        seed: of the draws.
        means: whether means of p(x|z) stand for draws.
    """
    batches = []
    for number, part in enumerate(Batch.of(like).split(IMAGES_AT_ONCE)):
        own = derive(seed, "batch", number)
        values = prior_latents(program.model, part, own)
        if values is None:
            return None
        arguments = program.model, part, values, own
        batches.append(shown_images(*arguments)[0] if means else drawn_images(*arguments))
    return torch.cat(batches)


def gallery_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the gallery."""
    heads = ("log p(x)", "distortion", "100 labels, %", "all labels, %", "Frechet", "(training)", "params", "seconds")
    widths = (17, 12, 15, 15, 9, 12, 9, 9)
    longest = max(12, *(len(printable(row["name"])) for row in rows)) + 2
    lines = [f"{'':{longest}}" + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]
    for row in rows:
        cells = (
            _cell(row["log_likelihood"], row["log_likelihood_se"], 2),
            _cell(row["distortion"], None, 2),
            *(_cell(row[f"accuracy_{name}"], row[f"accuracy_{name}_se"], 1, 100) for name in ("few", "all")),
            _cell(row["frechet"], None, 2),
            _cell(row["frechet_of_training_images"], None, 2),
            _cell(row["parameters"], None, 0),
            _cell(row["train_seconds"], None, 0),
        )
        line = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{printable(row['name']):{longest}}{line}")
    lines.append(
        "nats per image, +- 1 s.e.; logistic regression on posterior means; Frechet distance of samples to test"
    )
    lines.append("images in features of a network trained on the labels of these data, beside that of training images")
    return "\n".join(lines)


def write_gallery(folder: Path, rows: Sequence[Mapping[str, Any]], runs: Mapping[str, Path]) -> None:
    """Write systems.csv, .json and .png: the rows, and what each run generates or else reconstructs."""
    results = Folder(folder, figures=".")
    results.write_csv("systems.csv", rows)
    results.write_json("systems.json", rows)
    found = {name: _picture(run) for name, run in runs.items()}
    results.save_figure("systems", pictures.gallery({name: picture for name, picture in found.items() if picture}))


def _picture(run: Path) -> Path | None:
    paths = (run / "figures" / f"{name}.png" for name in _PICTURES)
    return next((path for path in paths if path.is_file()), None)


def _cell(value: float | None, error: float | None, digits: int, factor: float = 1) -> str:
    if value is None:
        return "-"
    return f"{factor * value:.{digits}f}" + (f" +- {factor * error:.{digits}f}" if error is not None else "")
