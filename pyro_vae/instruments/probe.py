r"""Probes of the features of a program: accuracy of classifiers trained on few labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyro
from torch import Tensor

from pyro_vae import parallel
from pyro_vae.evaluate import (
    Accuracy,
    NoAnalyticMeanError,
    finetune,
    labeled_subsets,
    mean_accuracy,
    principal_components,
    probe,
)
from pyro_vae.instruments.batches import posterior_means_batched, progress_bar
from pyro_vae.instruments.instrument import EvaluatedRun, Result, replace_nonfinite
from pyro_vae.report import curves
from pyro_vae.report.tables import format_percent, format_table
from pyro_vae.runs import LabeledImages
from pyro_vae.runs.load import rebuild
from pyro_vae.text import printable
from pyro_vae.trace import Batch, Data, derive_seed
from pyro_vae.trace.isolation import isolated_param_store

_LOG = logging.getLogger("pyro_vae")
_FINETUNED_SUBSETS = 5  # labeled subsets per number of labels: fine-tuning is the slowest probe


@dataclass(frozen=True)
class Probe:
    """Accuracy of classifiers trained on few labels. --probe writes figures/probe.png.

    Args:
        probe: Predict the first label of the test images from posterior means and from pixels, with classifiers trained
            on 10, 100, 1,000 and all labels, and with a fine-tuned encoder. Accuracies are in percent.
    """

    name: ClassVar[str] = "probe"

    probe: bool = False

    @property
    def requested(self) -> bool:
        """Whether --probe is set."""
        return self.probe

    def check(self, run: EvaluatedRun) -> None:
        """Accept every run: if there is nothing to predict, the result is None with a reason."""

    def measure(self, run: EvaluatedRun, seed: int) -> Result:
        """Probe the fitted program, and the same program with its initial weights."""
        fitted = run.fitted
        untrained = rebuild(run.folder, fitted.config, fitted.images)
        x = {"train": fitted.observed("train"), "test": run.test}
        return measure_probe(fitted.program, untrained, x, fitted.labels, seed)

    def table(self, summaries: Mapping[str, Mapping[str, Any]]) -> str:
        """Return an empty line and a table of the probes of each run."""
        return "\n" + probe_table(summaries)


def measure_probe(program: Any, untrained: Any, x: Mapping[str, Data], labels: Any, seed: int) -> Result:
    """Probe a program if there are labels to predict.

    Args:
        program: Fitted object with ``model(x)`` and ``guide(x)``.
        untrained: The same program with its random initial weights.
        x: Images as the program observes them, by split, ``train`` and ``test``.
        labels: `data.Labels`, whose first label is predicted, or None.
        seed: Random seed of labeled subsets, classifiers and posterior samples.

    Returns:
        The rows of `probe_rows` and their figure, or None and the reason.
    """
    if labels is None:
        return _no_result("the images have no labels")
    if isinstance(x["train"], Batch):
        return _no_result("the program takes the labels as an argument")
    name = labels.names[0]
    train, test = (LabeledImages(x[split], labels.get(name, split).cpu().numpy()) for split in ("train", "test"))
    if len(np.unique(train.classes)) == 1:
        return _no_result(f"all training images have the same {name}")
    rows = probe_rows(program, untrained, train, test, seed)
    return Result(rows, figures={"probe": partial(curves.probe, rows)})


def _no_result(reason: str) -> Result:
    return Result(None, {Probe.name: reason})


def probe_rows(
    program: Any, untrained: Any, train: LabeledImages, test: LabeledImages, seed: int
) -> list[dict[str, Any]]:
    """Classify test images from posterior means, pixels and principal components, and with fine-tuned encoders.

    Args:
        program: Fitted object with ``model(x)`` and ``guide(x)``.
        untrained: The same program with its random initial weights, a single initialization.
        train: All training images, with at least two classes. All features use the same labeled subsets of them.
        test: Test images.
        seed: Random seed of labeled subsets, classifiers and posterior samples.

    Returns:
        Rows of `evaluate.Accuracy` as JSON values. Undefined standard errors are None.
    """
    subsets = labeled_subsets(train.classes, seed)
    bar = progress_bar("probe", "classifier")
    classes = (train.classes, test.classes)
    features = _features(program, train.pixels, test.pixels, seed)
    rows = parallel.on_first(lambda: probe(features, classes, subsets, bar))  # on all cores
    first_subsets = {num_labels: draws[:_FINETUNED_SUBSETS] for num_labels, draws in subsets.items()}
    try:
        rows += _finetune_rows("fitted encoder", program, train, test, first_subsets, seed)
        with _fresh_param_store():
            rows += _finetune_rows("random encoder", untrained, train, test, first_subsets, seed)
    except NoAnalyticMeanError as error:
        _LOG.info("No encoder is fine-tuned: %s.", error)
    return [replace_nonfinite(row._asdict()) for row in rows]


def _features(program: Any, train: Tensor, test: Tensor, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    means, pixels = [], []
    for split, x in (("train", train), ("test", test)):
        codes = posterior_means_batched(program, x, derive_seed(seed, "probe", split))
        means.append(codes.cpu().numpy())
        pixels.append(x.flatten(1).double().cpu().numpy())
    raw = {"pixels": (pixels[0], pixels[1])}
    if not (units := means[0].shape[1]):
        _LOG.info("No posterior means are probed: the program has no latent site.")
        return raw
    return {
        "posterior means": (means[0], means[1]),
        **raw,
        "principal components": principal_components(*raw["pixels"], units, seed),
    }


def _finetune_rows(
    name: str,
    program: Any,
    train: LabeledImages,
    test: LabeledImages,
    subsets: Mapping[int, Sequence[np.ndarray]],
    seed: int,
) -> list[Accuracy]:
    rows = []

    def predict(part: tuple[int, np.ndarray]) -> np.ndarray:
        draw, indices = part
        labeled = train.pixels[indices], train.classes[indices]
        # The same stream for both encoders, whose accuracies are compared, and for all numbers of labels.
        return finetune(program.guide, *labeled, test.pixels, seed=derive_seed(seed, "draw", draw))

    for num_labels, draws in progress_bar(name, "number of labels")(subsets.items()):
        correct = np.array(list(parallel.map_parts(predict, enumerate(draws)))) == test.classes
        rows.append(Accuracy(name, "fine-tuned", num_labels, *mean_accuracy(correct)))
    return rows


@contextmanager
def _fresh_param_store() -> Iterator[None]:
    """Use an empty param store for a second program with the same parameter names, then restore the first one."""
    with isolated_param_store(), pyro.get_param_store().scope():
        yield


def probe_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the probes of one or more runs, accuracy in percent, or the reason why a run has none."""
    lines = []
    for name, summary in summaries.items():
        rows = summary[Probe.name]
        if rows is None:
            lines.append(f"{printable(name)}: not probed, {summary['reasons'][Probe.name]}")
            continue
        heads = [f"{labels:,} labels" for labels in dict.fromkeys(row["labels"] for row in rows)]
        columns = [(printable(name)[-34:], -35), *((head, 16) for head in heads)]
        lines += format_table(columns, (_cells(rows, *pair) for pair in _pairs(rows)))
    lines.append("% of the test images; +- 1 s.e. over labeled subsets and test images; the last column: all labels")
    return "\n".join(lines)


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["classifier"], row["features"]) for row in rows))


def _cells(rows: Sequence[Mapping[str, Any]], classifier: str, features: str) -> list[str]:
    selected = [row for row in rows if (row["classifier"], row["features"]) == (classifier, features)]
    return [f"{classifier}, {features}", *(format_percent(row["accuracy"], row["se"]) for row in selected)]
