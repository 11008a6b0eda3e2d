r"""Comparison of runs that differ in one component: a table of differences paired over test images, and figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pyro_vae.config import Config, programs
from pyro_vae.config.presets import SYSTEMS
from pyro_vae.errors import UserError
from pyro_vae.evaluate import paired_differences, standard_error
from pyro_vae.instruments.comparable import check_comparable, read_log_likelihoods
from pyro_vae.report import curves, images
from pyro_vae.report.tables import format_number, format_table, format_with_error
from pyro_vae.runs import Folder
from pyro_vae.runs.summary import read_summary
from pyro_vae.text import printable

_MEANS = ("bits_per_dim", "elbo", "rate", "distortion", "active_units", "khat_bad_fraction", "parameters")
_NAME_LENGTH = 40  # maximum number of characters in the table


def vary_config(config: Config, kind: str, name: str, seed: int) -> Config:
    """Return the configuration of one run of a comparison.

    Flags that do not apply to an objective or a system are set to their defaults.

    Args:
        config: Configuration of the comparison.
        kind: Kind of the component that varies: prior, posterior, likelihood, objective or system.
        name: Name of the component.
        seed: Index of the run, added to ``config.seed``. It is ignored for systems, which are fitted once.

    Raises:
        UserError: If the system does not exist.
    """
    if kind == "system" and name not in SYSTEMS:
        raise UserError(f"Unknown system {name!r}; choose one of {', '.join(SYSTEMS)}.")
    changes: dict[str, Any] = SYSTEMS[name] if kind == "system" else {kind: name, "seed": config.seed + seed}
    varied = replace(config, **changes)
    return replace(varied, **programs.ignored_defaults(varied)) if kind in ("objective", "system") else varied


def compare(runs: Mapping[str, Sequence[Folder]]) -> list[dict[str, Any]]:
    """Compare finished runs on the same test images.

    Args:
        runs: Run folders of each name, one per seed, or folders of their evaluations.

    Returns:
        A row for each name, best log p(x) first. Numbers are means over seeds, in nats per image. `below_best` is the
        mean difference from the best row, with a standard error over images: log p(x) of each image is averaged over
        seeds, then the differences are paired by image. `below_best_seed_se` is its standard error over seeds, with
        differences of mean log p(x) paired by seed, and `seed_spread` the standard deviation of mean log p(x) over
        seeds; both are None for a single seed.

    Raises:
        UserError: If files of a run are damaged, one of its images has no log p(x), or the scores of runs are not
            comparable, see `check_comparable`.
    """
    summaries = {name: [read_summary(run) for run in seeds] for name, seeds in runs.items()}
    check_comparable(runs, summaries)
    likelihoods = {
        name: np.mean([read_log_likelihoods(*each) for each in zip(seeds, summaries[name], strict=True)], axis=0)
        for name, seeds in runs.items()
    }
    by_seed = {name: [summary["log_likelihood"] for summary in seeds] for name, seeds in summaries.items()}
    differences = paired_differences(likelihoods)
    best = next(iter(differences))
    rows = []
    for name, (difference, error) in differences.items():
        values = likelihoods[name]
        spread = _deviation(by_seed[name])
        below = _deviation([top - own for top, own in zip(by_seed[best], by_seed[name], strict=True)])
        rows.append(
            {
                "name": name,
                "log_likelihood": float(values.mean()),
                "log_likelihood_se": standard_error(values),
                "below_best": difference,
                "below_best_se": error,
                "below_best_seed_se": None if below is None else below / len(by_seed[name]) ** 0.5,
                "seed_spread": spread,
                "iwae_50": _mean([summary["iwae"].get("50") for summary in summaries[name]]),
                **{key: _mean([summary[key] for summary in summaries[name]]) for key in _MEANS},
                "seconds_per_epoch": _mean([_seconds_per_epoch(summary) for summary in summaries[name]]),
            }
        )
    return rows


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows of a comparison as a table, in nats per image."""
    heads = {"log p(x)": 16, "below best": 14, "seed se": 8, "seed sd": 8, "ELBO": 9, "IWAE_50": 9}
    heads |= {"rate": 7, "distortion": 11, "units": 6, "k-hat": 6, "params": 8, "s/epoch": 8}
    names = [printable(row["name"])[-_NAME_LENGTH:] for row in rows]
    cells = [
        (
            name,
            format_with_error(row["log_likelihood"], row["log_likelihood_se"]),
            format_with_error(row["below_best"], row["below_best_se"]),
            format_number(row["below_best_seed_se"]),
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
    lines.append(
        "nats per image; below best: paired over images; seed se: its standard error over seeds; seed sd: standard "
        "deviation of log p(x) over seeds; units: active units; k-hat: fraction of images above the threshold"
    )
    return "\n".join(lines)


def write_comparison(results: Folder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write comparison.csv and .json: the rows."""
    results.write_csv("comparison.csv", [{**row, "name": printable(row["name"])} for row in rows])
    results.write_json("comparison.json", rows)


def draw_comparison(results: Folder, rows: Sequence[Mapping[str, Any]], runs: Mapping[str, Sequence[Folder]]) -> None:
    """Draw comparison.png (intervals) and samples.png (prior samples of each run that has drawn them)."""
    with results.drawing("comparison"):
        by_seed = {name: [read_summary(run)["log_likelihood"] for run in seeds] for name, seeds in runs.items()}
        results.save_figure("comparison", curves.intervals(rows, by_seed))
    with results.drawing("samples"):
        paths = {row["name"]: runs[row["name"]][0].figures / "prior_samples.png" for row in rows}
        if samples := {name: path for name, path in paths.items() if path.is_file()}:
            results.save_figure("samples", images.gallery(samples))


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _seconds_per_epoch(summary: Mapping[str, Any]) -> float | None:
    seconds, epochs = summary["train_seconds"], summary["epochs"]
    return seconds / epochs if seconds is not None and epochs else None


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return statistics.fmean(defined) if defined else None
