r"""Checks that the scores of several runs may be compared: the same images, the same quantity, the same estimator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_vae import data
from pyro_vae.errors import UserError
from pyro_vae.instruments.quantity import TRANSFORMED
from pyro_vae.runs import Folder
from pyro_vae.runs.netcdf import read_netcdf
from pyro_vae.text import printable

Summary = Mapping[str, Any]
# Fields of a configuration that determine the test images of a named data set, for runs without their digest.
_DATA = ("data", "binarize", "test_images", "image_size", "channels", "splits")


def check_comparable(runs: Mapping[str, Sequence[Folder]], summaries: Mapping[str, Sequence[Summary]]) -> None:
    """Raise unless the log-likelihoods of some runs can be compared image by image.

    Args:
        runs: Folders of each name, with summary.json and scores.nc.
        summaries: Their summaries, as `read_summary` returns them.

    Raises:
        UserError: If a run is unfinished, has no log p(x), or a single test image, whose differences have no standard
            error; or if runs differ in the quantity (a density or a probability, joint or conditional), in the test
            images, or in the number of importance samples or their proposal, on which the bias depends.
    """
    first: tuple[str, Summary] | None = None
    for name, seeds in summaries.items():
        for folder, summary in zip(runs[name], seeds, strict=True):
            path = printable(str(folder.path))
            if not summary.get("finished", True):
                raise UserError(f"{path} belongs to an unfinished run; continue it with fit.py --resume.")
            if summary["log_likelihood"] is None:
                reason = summary["reasons"].get("log_likelihood", "no reason is given")
                raise UserError(f"{path} has no log p(x) to compare: {reason}. Its other numbers are in summary.json.")
            if summary["num_test_images"] < 2:
                raise UserError(f"{path} has one test image, and standard errors require two or more.")
            first = first or (path, summary)
            _check_pair(*first, path, summary)


def _check_pair(path: str, summary: Summary, other_path: str, other: Summary) -> None:
    """Raise UserError if the scores of two runs are not of the same kind."""
    if summary["density"] != other["density"]:
        dense = path if summary["density"] else other_path
        raise UserError(
            f"{dense} scores densities of pixels and the rest probabilities, whose nats are not comparable; compare "
            "bits_per_dim in summary.json of each run."
        )
    quantities = _quantity(summary), _quantity(other)
    if quantities[0] != quantities[1]:
        raise UserError(f"{path} scores the {quantities[0]}, and {other_path} the {quantities[1]}.")
    if not same_images(summary, other):
        raise UserError(
            f"{path} and {other_path} are scored on different test images: compare runs with the same --data, "
            "--binarize and --test-images."
        )
    numbers = summary["num_samples"], other["num_samples"]
    if numbers[0] != numbers[1]:
        raise UserError(
            f"{path} has {numbers[0]} importance samples per image and {other_path} {numbers[1]}, so that their bounds "
            "differ: score both with evaluate.py --num-samples, and compare the folders evaluation/."
        )
    proposals = summary.get("proposal", "guide"), other.get("proposal", "guide")  # earlier versions had the guide only
    if proposals[0] != proposals[1]:
        raise UserError(
            f"log p(x) of {path} has the proposal {printable(str(proposals[0]))} and that of {other_path} "
            f"{printable(str(proposals[1]))}: score both with the same --proposal of evaluate.py, and compare the "
            "folders evaluation/."
        )


def _quantity(summary: Summary) -> str:
    """Return the quantity that a run scores, with its program if only that defines it."""
    quantity = str(summary.get("quantity", "density of x" if summary["density"] else "probability of x"))
    return f"{quantity} of {_config(summary).get('program')}" if TRANSFORMED in quantity else quantity


def same_images(summary: Summary, other: Summary) -> bool:
    """Return whether two summaries have the same test images, by their digests.

    Without a digest, in runs of an earlier version, the configurations decide if the data set is a named one: the files
    of your own data may have changed.
    """
    if summary.get("num_test_images") != other.get("num_test_images"):
        return False
    digests = summary.get("test_images"), other.get("test_images")
    if None not in digests:
        return bool(digests[0] == digests[1])
    fields = [[repr(_config(each).get(name)) for name in _DATA] for each in (summary, other)]
    return _config(summary).get("data") in data.DATASETS and fields[0] == fields[1]


def mark_unlike(summaries: Mapping[str, Summary]) -> dict[str, str]:
    """Return a label for each run in a common figure, which says that its nats compare only with those of some others.

    Args:
        summaries: Summaries of the runs by name.
    """
    others, labels = with_other_images(summaries), {}
    mixed = len({summary["density"] for summary in summaries.values()}) > 1
    for name, summary in summaries.items():
        words = ["density"] * (mixed and summary["density"]) + ["other images"] * (name in others)
        labels[name] = f"{name} ({', '.join(words)})" if words else name
    return labels


def with_other_images(summaries: Mapping[str, Summary]) -> list[str]:
    """Return the names of the runs whose test images differ from those of the first run of the same kind.

    A density observes dequantized images, which always differ from those of a probability.
    """
    first = {summary.get("density"): summary for summary in reversed(list(summaries.values()))}
    return [name for name, summary in summaries.items() if not same_images(first[summary.get("density")], summary)]


def _config(summary: Summary) -> Summary:
    config: Summary = summary.get("config", {})
    return config


def read_log_likelihoods(folder: Folder, summary: Summary) -> np.ndarray:
    """Return log p(x) of each test image from scores.nc, shape (N,).

    Raises:
        UserError: If the file is damaged, or is not that of the summary.
    """
    path = folder.path / "scores.nc"
    values = read_netcdf(path).get("log_likelihood", np.empty(0))
    numbers = summary["num_test_images"], summary["log_likelihood"]
    if values.shape != numbers[:1] or not math.isclose(values.mean(), numbers[1], rel_tol=1e-6):
        raise UserError(f"{path} does not belong to summary.json next to it; fit or evaluate the run again.")
    return values
