"""Fit the same program under several priors (or objectives, ...), everything else alike, and compare them.

    python scripts/compare.py --priors standard mixture vamp nsf --data mnist --epochs 30 --seeds 2

takes every flag of fit.py. Each run is a folder of fit.py in --out; those that are there already are used again,
so that an interrupted comparison continues.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from pyro_vae import cli, config, programs
from pyro_vae.report import RunFolder, comparison


@dataclass(frozen=True)
class Arguments:
    """Fit the same program under several priors, posteriors, likelihoods or objectives, and compare them."""

    config: Annotated[config.Config, tyro.conf.arg(name="")]
    priors: tuple[str, ...] = ()
    """Priors to compare."""
    posteriors: tuple[str, ...] = ()
    """Posteriors to compare."""
    likelihoods: tuple[str, ...] = ()
    """Likelihoods to compare."""
    objectives: tuple[str, ...] = ()
    """Objectives to compare."""
    seeds: int = 1
    """Runs of each, with seeds from --seed on."""
    out: Path = Path("runs/comparison")
    """Folder of the runs and of the comparison."""


def main(arguments: Arguments) -> None:
    """Run the script."""
    names = {part: getattr(arguments, f"{part}s") for part in ("prior", "posterior", "likelihood", "objective")}
    chosen = [part for part in names if names[part]]
    if len(chosen) != 1 or len(set(names[chosen[0]])) < max(2, len(names[chosen[0]])):
        raise ValueError(
            "Give two or more different names to one of --priors, --posteriors, --likelihoods, --objectives."
        )
    if arguments.seeds < 1:
        raise ValueError(f"--seeds is {arguments.seeds}; it must be at least 1.")
    settings = {  # all of them first, so that a name that is not known stops before anything is fitted
        (name, seed): setting_of(arguments.config, chosen[0], name, seed)
        for seed in range(arguments.seeds)
        for name in names[chosen[0]]
    }
    runs: dict[str, list[RunFolder]] = {name: [] for name in names[chosen[0]]}
    for (name, seed), setting in settings.items():
        folder = RunFolder(arguments.out / (f"{name}-seed{setting.seed}" if seed else name))
        fit(setting, folder)
        runs[name].append(folder)
    rows = comparison.compare(runs)
    comparison.write_comparison(arguments.out, rows, runs)
    print(comparison.table(rows))
    print(f"\nwritten to {arguments.out}")


def setting_of(settings: config.Config, part: str, name: str, seed: int) -> config.Config:
    """Return the configuration with another part; of several objectives, each gets the flags that it reads."""
    changes: dict[str, Any] = {part: name, "seed": settings.seed + seed}
    setting = replace(settings, **changes)
    return replace(setting, **programs.unread(setting)) if part == "objective" else setting


def fit(setting: config.Config, folder: RunFolder) -> None:
    """Run fit.py in a process of its own, as its user would; a run that fails ends the comparison."""
    if folder.finished:
        return folder.check_same(setting.resolved().to_json())
    flags = [
        word
        for name, value in setting.to_json().items()
        if value is not None
        for word in (config.flag(name), str(value))
    ]
    call = [sys.executable, str(Path(__file__).with_name("fit.py")), *flags, "--out", str(folder.path), "--resume"]
    print(folder.path, flush=True)
    with subprocess.Popen(call, stdout=subprocess.DEVNULL) as process:
        try:
            status = process.wait()
        except BaseException:  # a signal: the fit, too, is to stop, and to write its checkpoint
            process.terminate()
            process.wait()
            raise
    if status:
        print(f"{folder.path} has ended with status {status}", file=sys.stderr)
        raise SystemExit(status if status > 0 else 128 - status)


if __name__ == "__main__":
    with cli.exit_status():
        main(tyro.cli(Arguments, description=__doc__))
