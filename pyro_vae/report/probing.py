r"""How good the features of a program are for classifiers of few labels: measured, and laid out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyro
from torch import Tensor
from tqdm import tqdm

from pyro_vae.evaluate import (
    Accuracy,
    NoMeanError,
    finetune,
    labelled_subsets,
    mean_accuracy,
    principal_components,
    probe,
)
from pyro_vae.report import plots
from pyro_vae.report.results import Program, codes
from pyro_vae.runs.folder import Folder
from pyro_vae.runs.run import Labelled
from pyro_vae.text import printable
from pyro_vae.trace import Batch, Data, derive
from pyro_vae.trace.isolation import scoped_store

_LOG = logging.getLogger("pyro_vae")
_FINETUNED_SUBSETS = 5


def write_probe(
    folder: Folder, program: Program, untrained: Program, x: Mapping[str, Data], labels: Any, seed: int
) -> tuple[list[dict[str, Any]] | None, dict[str, str]]:
    """Probe a program and write the figure, where there is something to predict.

    Args:
        folder: of the results.
        program: a fitted object with ``model(x)`` and ``guide(x)``.
        untrained: the same with its random initial weights.
        x: images of the splits train and test, as the program observes them.
        labels: `data.Labels`, of which the first name is predicted, or None.
        seed: of the subsets and of all noise.

    Returns:
        The rows, and no reasons; or None, and the reason under "probe".
    """
    if labels is None:
        return None, {"probe": "the images have no labels"}
    if isinstance(x["train"], Batch):
        return None, {"probe": "the program is given the labels"}
    name = labels.names[0]
    train, test = (Labelled(x[split], labels.of(name, split).cpu().numpy()) for split in ("train", "test"))
    if len(np.unique(train.classes)) == 1:
        return None, {"probe": f"the training images have the same {name}"}
    rows = measure_probe(program, untrained, train, test, seed)
    folder.save_figure("probe", plots.probe(rows))
    return rows, {}


def measure_probe(
    program: Program, untrained: Program, train: Labelled, test: Labelled, seed: int
) -> list[dict[str, Any]]:
    """Classify test images by what a program makes of them, by their pixels, and by an encoder that is trained on.

    Args:
        program: a fitted object with ``model(x)`` and ``guide(x)``.
        untrained: the same with its random initial weights, of which there is this one draw.
        train: all training images, of two classes at least; the subsets whose classes are told are the same throughout.
        test: test images.
        seed: of the subsets and of all noise.

    Returns:
        Rows of `Accuracy` as JSON values; an error that does not exist is None.
    """
    subsets = labelled_subsets(train.classes, seed)
    bar = partial(tqdm, desc="probe", unit="classifier", disable=None, leave=False)
    classes = (train.classes, test.classes)
    rows = probe(_features(program, train.pixels, test.pixels, seed), classes, subsets, bar)
    few = {number: places[:_FINETUNED_SUBSETS] for number, places in subsets.items()}
    try:
        rows += _finetuned("fitted encoder", program, train, test, few, seed)
        with _own_store():
            rows += _finetuned("random encoder", untrained, train, test, few, seed)
    except NoMeanError as error:
        _LOG.info("no encoder is fine-tuned: %s.", error)
    return [row._asdict() | {"se": row.se if row.se == row.se else None} for row in rows]


def _features(program: Program, train: Tensor, test: Tensor, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    means, pixels = [], []
    for x in (train, test):
        means.append(codes(program, x, seed).cpu().numpy())
        pixels.append(x.flatten(1).double().cpu().numpy())
    raw = {"pixels": (pixels[0], pixels[1])}
    if not (units := means[0].shape[1]):
        _LOG.info("no posterior means are probed: the program has no latent site.")
        return raw
    return {
        "posterior means": (means[0], means[1]),
        **raw,
        "principal components": principal_components(*raw["pixels"], units, seed),
    }


def _finetuned(
    name: str,
    program: Program,
    train: Labelled,
    test: Labelled,
    subsets: Mapping[int, Sequence[np.ndarray]],
    seed: int,
) -> list[Accuracy]:
    rows = []
    for number, draws in tqdm(subsets.items(), desc=name, unit="number of labels", disable=None, leave=False):
        predictions = [
            finetune(program.guide, train.pixels[own], train.classes[own], test.pixels, seed=derive(seed, "draw", draw))
            for draw, own in enumerate(draws)
        ]
        correct = np.array(predictions) == test.classes
        rows.append(Accuracy(name, "fine-tuned", number, *mean_accuracy(correct)))
    return rows


@contextmanager
def _own_store() -> Iterator[None]:
    """Let a program that has the names of another one start from parameters of its own."""
    with scoped_store(), pyro.get_param_store().scope():
        yield


def probe_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out the probes of one or more runs, in per cent of the test images, or say why there is none."""
    lines = []
    for name, numbers in summaries.items():
        rows = numbers["probe"]
        if rows is None:
            lines.append(f"{printable(name)}: nothing to probe, {numbers['reasons']['probe']}")
            continue
        heads = [f"{labels:,} labels" for labels in dict.fromkeys(row["labels"] for row in rows)]
        lines.append(f"{printable(name)[-34:]:35}" + "".join(f"{head:>16}" for head in heads))
        for classifier, features in dict.fromkeys((row["classifier"], row["features"]) for row in rows):
            cells = [_cell(row) for row in _of(rows, classifier, features)]
            lines.append(f"{f'{classifier}, {features}':35}" + "".join(f"{cell:>16}" for cell in cells))
    lines.append("% of the test images; +- 1 s.e. over labelled subsets and test images; the last column: all labels")
    return "\n".join(lines)


def _of(rows: Sequence[Mapping[str, Any]], classifier: str, features: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["classifier"], row["features"]) == (classifier, features)]


def _cell(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} +- " + ("-" if row["se"] is None else f"{100 * row['se']:.1f}")
