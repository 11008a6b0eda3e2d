r"""A gallery of systems fitted to the same data: a table with one row per system, and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data import Collection
from pyro_vae.errors import UserError
from pyro_vae.evaluate import (
    FeatureNetwork,
    frechet_distance,
    kernel_distance,
    labeled_subsets,
    logistic,
    mean_accuracy,
    standard_error,
    train_feature_network,
)
from pyro_vae.instruments.batches import posterior_means_batched
from pyro_vae.instruments.generated import sample_images
from pyro_vae.instruments.instrument import replace_nonfinite
from pyro_vae.report import images
from pyro_vae.report.tables import format_number, format_percent, format_table, format_with_error
from pyro_vae.runs import Folder, LabeledImages, RunFolder, load_run
from pyro_vae.runs.summary import read_summary
from pyro_vae.text import printable
from pyro_vae.trace import derive_seed

_FEW_LABELS = 100
_DRAWS = 5  # sets of samples, as many as test images in each
_PICTURES = ("prior_samples", "reconstructions")  # figures of a run, in order of preference
# Numbers copied from summary.json of a run.
_KEPT = ("log_likelihood", "log_likelihood_se", "distortion", "squared_error", "parameters", "train_seconds")


def check_images(images: Collection) -> None:
    """Check, before any system is fitted, that features can be trained on a data set.

    Raises:
        UserError: If the data are not images, or have no labels.
    """
    if len(images.pixel_shape) < 2:
        raise UserError(f"--systems compares features of images, and {images.name} has none; compare e.g. --priors.")
    if images.labels is None:
        raise UserError(
            f"--systems trains features on labels, and {images.name} has none; choose labeled data with --data."
        )


def measure_systems(runs: Mapping[str, RunFolder]) -> list[dict[str, Any]]:
    """Measure each run as one system. Systems that observe the same pixels share a feature network.

    Args:
        runs: Finished runs by name.

    Returns:
        A row for each run: its name, numbers from its summary.json, and those of `measure_system`.
    """
    nets: dict[Any, FeatureNetwork] = {}
    rows = []
    for name, folder in runs.items():
        summary = read_summary(folder)
        fitted = load_run(folder.path, download=True)
        config = fitted.config
        with fitted.program.scope():
            train, test = fitted.labeled("train"), fitted.labeled("test")
            observation = config.binarize, fitted.density
            if observation not in nets:
                classes = torch.as_tensor(train.classes, device=train.pixels.device)
                nets[observation] = train_feature_network(train.pixels, classes, config.seed)
            lossy = bool(fitted.no_density_reason) and summary["rate"] is not None
            numbers = measure_system(fitted.program, train, test, nets[observation], lossy=lossy, seed=config.seed)
        rows.append({"name": name, **{key: summary[key] for key in _KEPT}, **numbers})
    return rows


def measure_system(
    program: Any, train: LabeledImages, test: LabeledImages, net: FeatureNetwork, *, lossy: bool, seed: int
) -> dict[str, Any]:
    """Measure the codes and the samples of a system, rather than its densities.

    Args:
        program: Object with ``model(x)`` and ``guide(x)``.
        train: All training images with their classes.
        test: Test images with their classes. The number of samples that are compared with them is the same.
        net: Feature network, trained on labeled images as the program observes them.
        lossy: Whether the likelihood is a loss, which cannot be sampled: decoder means then replace samples.
        seed: Random seed of samples and of labeled subsets.

    Returns:
        Accuracy of logistic regression on posterior means with 100 and with all labels, with standard errors; Fréchet
        and kernel distances to the test images, of samples and of training images, see `distances`; accuracy of the
        feature network. Numbers are None if undefined.
    """
    reference, number = net.features(test.pixels), len(test.x)
    order = torch.randperm(len(train.x), generator=torch.Generator().manual_seed(derive_seed(seed, "training subsets")))
    # Disjoint as long as there are enough training images.
    rows = [order.roll(-draw * number)[:number].to(train.pixels.device) for draw in range(_DRAWS)]
    training = [net.features(train.pixels[chosen]) for chosen in rows]
    numbers: dict[str, Any] = {
        **dict.fromkeys(("frechet", "frechet_se", "kernel_distance", "kernel_distance_se")),
        **{f"{name}_of_training_images": value for name, value in distances(training, reference).items()},
        "feature_accuracy": net.accuracy(test.pixels, torch.as_tensor(test.classes, device=test.pixels.device)),
    }
    draws = [sample_images(program, test.x, derive_seed(seed, "gallery", draw), means=lossy) for draw in range(_DRAWS)]
    samples = [draw for draw in draws if draw is not None]
    if samples:
        numbers |= distances([net.features(draw) for draw in samples], reference)
    train_codes, test_codes = (
        posterior_means_batched(program, split.x, derive_seed(seed, "gallery codes", name)).cpu().numpy()
        for name, split in (("train", train), ("test", test))
    )
    subsets_of = labeled_subsets(train.classes, seed, (_FEW_LABELS,))
    for name, labels in (("few", _FEW_LABELS), ("all", len(train.x))):
        numbers[f"accuracy_{name}"] = numbers[f"accuracy_{name}_se"] = None
        if train_codes.shape[1] and (subsets := subsets_of.get(labels)):
            predictions = [logistic(train_codes[indices], train.classes[indices], test_codes) for indices in subsets]
            accuracy, error = mean_accuracy(np.array(predictions) == test.classes)
            numbers |= {f"accuracy_{name}": accuracy, f"accuracy_{name}_se": error}
    return numbers


def distances(sets: Sequence[Tensor], reference: Tensor) -> dict[str, float | None]:
    """Return the Fréchet and kernel distances of sets of features to those of the test images, with standard errors.

    Args:
        sets: Independent sets of features, shape (N, F) each.
        reference: Features of the test images, shape (N, F).

    Returns:
        The mean Fréchet distance over sets, which is biased upward by their size N, and its standard error over sets,
        which does not include the randomness of the test images; the unbiased kernel distance of all sets together, and
        its standard error, which does. Undefined numbers are None.
    """
    frechet = np.array([frechet_distance(features, reference) for features in sets])
    kernel = kernel_distance(torch.cat(list(sets)), reference)
    return replace_nonfinite(
        {
            "frechet": float(frechet.mean()),
            "frechet_se": standard_error(frechet),
            "kernel_distance": kernel.value,
            "kernel_distance_se": kernel.error,
        }
    )


def gallery_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows of a gallery as a table."""
    heads = [("log p(x)", 17), ("distortion", 12), ("100 labels, %", 15), ("all labels, %", 15)]
    heads += [("Frechet", 16), ("(training)", 16), ("kernel", 17), ("(training)", 17), ("params", 9), ("seconds", 9)]
    longest = max(12, *(len(printable(row["name"])) for row in rows)) + 2
    cells = [
        (
            printable(row["name"]),
            format_with_error(row["log_likelihood"], row["log_likelihood_se"]),
            format_number(row["distortion"]),
            *(format_percent(row[f"accuracy_{name}"], row[f"accuracy_{name}_se"]) for name in ("few", "all")),
            *(
                format_with_error(row[f"{name}{end}"], row[f"{name}_se{end}"], form)
                for name, form in (("frechet", ".2f"), ("kernel_distance", ".3f"))
                for end in ("", "_of_training_images")
            ),
            format_number(row["parameters"], ".0f"),
            format_number(row["train_seconds"], ".0f"),
        )
        for row in rows
    ]
    lines = format_table([("", -longest), *heads], cells)
    lines.append("nats per image, +- 1 s.e.; logistic regression on posterior means; Frechet, kernel: distances of")
    lines.append(
        "samples, or (training) images, to test images in features of a classifier of these data; Frechet: mean"
    )
    lines.append(f"over {_DRAWS} sets, s.e. for these test images; kernel: unbiased MMD^2, which may be negative")
    return "\n".join(lines)


def write_gallery(results: Folder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write systems.csv and .json: the rows."""
    results.write_csv("systems.csv", rows)
    results.write_json("systems.json", rows)


def draw_gallery(results: Folder, runs: Mapping[str, RunFolder]) -> None:
    """Draw systems.png: prior samples or reconstructions of each run that has drawn them."""
    with results.drawing("systems"):
        pictures = {name: _picture(run.figures) for name, run in runs.items()}
        if shown := {name: picture for name, picture in pictures.items() if picture}:
            results.save_figure("systems", images.gallery(shown))


def _picture(figures: Path) -> Path | None:
    paths = (figures / f"{name}.png" for name in _PICTURES)
    return next((path for path in paths if path.is_file()), None)
