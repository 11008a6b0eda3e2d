r"""The same program under several parts: one table, paired over test images, and its figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.config import Config, programs
from pyro_vae.config.presets import SYSTEMS
from pyro_vae.errors import UserError
from pyro_vae.evaluate import paired_differences
from pyro_vae.report import curves, images
from pyro_vae.report.tables import format_number, format_table, format_with_error
from pyro_vae.runs import Folder, RunFolder
from pyro_vae.runs.netcdf import read_netcdf
from pyro_vae.runs.summary import read_summary
from pyro_vae.text import printable

_MEANS = ("bits_per_dim", "elbo", "rate", "distortion", "active_units", "khat_bad_fraction", "parameters")
_NAME_LENGTH = 40


def vary_config(config: Config, kind: str, name: str, seed: int) -> Config:
    """Return the configuration with another part; of several objectives or systems, each gets the flags it reads.

    Args:
        config: of the comparison.
        kind: what is compared: prior, posterior, likelihood, objective or system.
        name: of the prior, ....
        seed: number of the run, added to the seed of the comparison; a system is fitted once.

    Raises:
        UserError: there is no system of the name.
    """
    if kind == "system" and name not in SYSTEMS:
        raise UserError(f"Unknown system {name!r}; choose of {', '.join(SYSTEMS)}.")
    changes: dict[str, Any] = SYSTEMS[name] if kind == "system" else {kind: name, "seed": config.seed + seed}
    varied = replace(config, **changes)
    return replace(varied, **programs.ignored_defaults(varied)) if kind in ("objective", "system") else varied


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
    summaries = {name: [read_summary(run) for run in seeds] for name, seeds in runs.items()}
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


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the rows of a comparison, nats per image."""
    heads = {"log p(x)": 16, "below best": 14, "seeds": 7, "ELBO": 9, "IWAE_50": 9, "rate": 7, "dist.": 7}
    heads |= {"units": 6, "k-hat": 6, "params": 8, "s/ep.": 6}
    names = [printable(row["name"])[-_NAME_LENGTH:] for row in rows]
    cells = [
        (
            name,
            format_with_error(row["log_likelihood"], row["log_likelihood_se"]),
            format_with_error(row["below_best"], row["below_best_se"]),
            format_number(row["seed_spread"]),
            format_number(row["elbo"]),
            format_number(row["iwae_50"]),
            format_number(row["rate"], ".1f"),
            format_number(row["distortion"], ".1f"),
            format_number(row["active_units"], ".1f"),
            format_number(row["khat_bad_fraction"], ".0%"),
            format_number(row["parameters"], ".0f"),
            format_number(row["seconds_per_epoch"]),
        )
        for name, row in zip(names, rows, strict=True)
    ]
    lines = format_table([("", -max(12, *map(len, names)) - 2), *heads.items()], cells)
    lines.append("nats per image; below best: paired over images; seeds: standard deviation; k-hat: share above good")
    return "\n".join(lines)


def write_comparison(folder: Path, rows: Sequence[Mapping[str, Any]], runs: Mapping[str, Sequence[RunFolder]]) -> None:
    """Write comparison.csv, .json and .png (intervals), and samples.png (prior samples under each name)."""
    results = Folder(folder, figures=".")
    results.write_csv("comparison.csv", [{**row, "name": printable(row["name"])} for row in rows])
    results.write_json("comparison.json", rows)
    samples = {row["name"]: runs[row["name"]][0].path / "figures" / "prior_samples.png" for row in rows}
    results.save_figure("comparison", curves.intervals(rows))
    results.save_figure("samples", images.gallery(samples))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
