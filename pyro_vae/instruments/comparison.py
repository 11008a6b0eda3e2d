r"""Comparison of runs that differ in one component: a table of differences paired over test images, and figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from pyro_vae.config import MAX_SEEDS, Config, flag, programs
from pyro_vae.config.presets import SYSTEMS
from pyro_vae.data import DATASETS
from pyro_vae.errors import UserError, check_count
from pyro_vae.evaluate import paired_differences, standard_error
from pyro_vae.instruments.comparable import check_comparable, read_log_likelihoods
from pyro_vae.report import curves, images
from pyro_vae.report.tables import format_number, format_table, format_with_error
from pyro_vae.runs import Folder, load_images
from pyro_vae.runs.summary import read_summary
from pyro_vae.text import printable

_MEANS = ("bits_per_dim", "elbo", "rate", "distortion", "active_units", "khat_bad_fraction", "parameters")
# Flags that no other system of this name would have.
_DEFINE_SYSTEMS = ("program", "prior", "objective", "beta", "warmup_epochs", "free_bits", "mmd_weight")
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


def vary_configs(config: Config, kind: str, names: Sequence[str], seeds: int) -> dict[str, list[Config]]:
    """Return the configurations of the runs of each name, see `vary_config`, after checks of all.

    Raises:
        UserError: If a name does not exist, or a flag does not apply, see `check_varied`.
    """
    check_count("--seeds", seeds, 1, MAX_SEEDS)
    if kind == "system" and seeds > 1:
        raise UserError("--systems fits one run per system; leave out --seeds.")
    if kind == "system" and 1 in (config.train_images, config.test_images):
        raise UserError("--systems compares the variation of features over images; use two or more of each split.")
    configs = {name: [vary_config(config, kind, name, seed) for seed in range(seeds)] for name in names}
    firsts = {name: first for name, (first, *_) in configs.items()}
    check_varied(config, kind, firsts)
    for first in firsts.values():
        programs.check_flags(first)
    return configs


def check_varied(config: Config, kind: str, varied: Mapping[str, Config]) -> None:
    """Raise UserError if a flag would be dropped silently, or would make a run another system than its name says.

    Args:
        config: Configuration of the comparison.
        kind: Kind of the component that varies, as in `vary_config`.
        varied: Configuration of one run of each name.
    """
    given = {field.name for field in fields(Config) if getattr(config, field.name) != field.default}
    if kind in given:
        raise UserError(f"{flag(kind)} is what {flag(kind)}s compares; leave it out.")
    if kind == "system":
        for name in _DEFINE_SYSTEMS:
            if name in given:
                raise UserError(f"{flag(name)} is part of what the names of --systems mean; leave it out.")
        for system in varied:
            for name, value in SYSTEMS[system].items():
                if name in given and getattr(config, name) != value:
                    raise UserError(f"{flag(name)} is {value} in the system {system}; leave out one of the two.")
    for name in sorted(given):
        if all(getattr(each, name) != getattr(config, name) for each in varied.values()):
            raise UserError(f"{flag(name)} has no effect on any of {', '.join(varied)}; leave it out.")


def check_test_images(config: Config) -> None:
    """Raise UserError if there is a single test image, before anything is fitted."""
    number = config.test_images
    if config.data not in DATASETS and number != 1:  # of your own data, only their number is known in advance
        number = len(load_images(config).pixels.test)
    if number == 1:
        raise UserError("There is one test image, and standard errors require two or more: change --test-images.")


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
        results.save_figure("comparison", curves.intervals(rows))
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
