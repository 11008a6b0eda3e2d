r"""The same program under several parts: one table, paired over test images, and its figures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.errors import UserError
from pyro_vae.evaluate import paired_differences
from pyro_vae.report import pictures, plots
from pyro_vae.runs.folder import Folder
from pyro_vae.runs.netcdf import read_netcdf
from pyro_vae.runs.run_folder import RunFolder
from pyro_vae.text import printable

_MEANS = ("bits_per_dim", "elbo", "rate", "distortion", "active_units", "khat_bad_fraction", "parameters")
_NAME_LENGTH = 40


def compare(runs: Mapping[str, Sequence[RunFolder]]) -> list[dict[str, Any]]:
    """Compare finished runs on the same test images.

    Args:
        runs: {name: its runs, one for each seed}.

    Returns:
        A row for each name, best log p(x) first. Numbers are means over seeds; differences are to the best, of
        each image's mean over seeds, with their standard error over images; the spread is the standard
        deviation over seeds, None with one seed.

    Raises:
        ValueError: some have no log p(x), or some score densities of pixels and others probabilities, whose nats do not
            compare.
    """
    summaries = {
        name: [json.loads((run.path / "summary.json").read_text()) for run in seeds] for name, seeds in runs.items()
    }
    for name, (numbers, *_) in summaries.items():
        if numbers["log_likelihood"] is None:
            reason = numbers["reasons"]["log_likelihood"]
            raise UserError(f"{name} has no log p(x) to compare: {reason}. See the numbers in its summary.json.")
    densities = {name: each[0]["density"] for name, each in summaries.items()}
    if len(set(densities.values())) > 1:
        named = ", ".join(name for name, density in densities.items() if density)
        raise UserError(
            f"{named} scores densities of pixels and the rest probabilities, whose nats do not compare: compare the "
            "bits_per_dim in their summary.json."
        )
    likelihoods = {
        name: np.mean([read_netcdf(run.path / "scores.nc")["log_likelihood"] for run in seeds], axis=0)
        for name, seeds in runs.items()
    }
    rows = []
    for name, (difference, error) in paired_differences(likelihoods).items():
        values = likelihoods[name]
        each = [summary["log_likelihood"] for summary in summaries[name]]
        rows.append(
            {
                "name": name,
                "log_likelihood": float(values.mean()),
                "log_likelihood_se": float(values.std(ddof=1) / len(values) ** 0.5),
                "below_best": difference,
                "below_best_se": error,
                "seed_spread": statistics.stdev(each) if len(each) > 1 else None,
                "iwae_50": _mean([summary["iwae"].get("50") for summary in summaries[name]]),
                **{key: _mean([summary[key] for summary in summaries[name]]) for key in _MEANS},
                "seconds_per_epoch": _mean([s["train_seconds"] / s["epochs"] for s in summaries[name]]),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the rows of a comparison, nats per image."""
    heads = ("log p(x)", "below best", "seeds", "ELBO", "IWAE_50", "rate", "dist.", "units", "k-hat", "params", "s/ep.")
    widths = (16, 14, 7, 9, 9, 7, 7, 6, 6, 8, 6)
    names = [printable(row["name"])[-_NAME_LENGTH:] for row in rows]
    longest = max(12, *map(len, names)) + 2
    lines = [f"{'':{longest}}" + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]
    for name, row in zip(names, rows, strict=True):
        cells = (
            f"{row['log_likelihood']:.2f} +- {row['log_likelihood_se']:.2f}",
            f"{row['below_best']:.2f} +- {row['below_best_se']:.2f}",
            _cell(row["seed_spread"], ".2f"),
            _cell(row["elbo"], ".2f"),
            _cell(row["iwae_50"], ".2f"),
            _cell(row["rate"], ".1f"),
            _cell(row["distortion"], ".1f"),
            _cell(row["active_units"], ".1f"),
            _cell(row["khat_bad_fraction"], ".0%"),
            _cell(row["parameters"], ".0f"),
            _cell(row["seconds_per_epoch"], ".2f"),
        )
        lines.append(f"{name:{longest}}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))
    lines.append("nats per image; below best: paired over images; seeds: standard deviation; k-hat: share above good")
    return "\n".join(lines)


def write_comparison(folder: Path, rows: Sequence[Mapping[str, Any]], runs: Mapping[str, Sequence[RunFolder]]) -> None:
    """Write comparison.csv, .json and .png (intervals), and samples.png (prior samples under each name)."""
    results = Folder(folder, figures=".")
    results.write_csv("comparison.csv", [{**row, "name": printable(row["name"])} for row in rows])
    results.write_json("comparison.json", rows)
    samples = {row["name"]: runs[row["name"]][0].path / "figures" / "prior_samples.png" for row in rows}
    results.save_figure("comparison", plots.intervals(rows))
    results.save_figure("samples", pictures.gallery(samples))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
