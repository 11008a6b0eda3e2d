"""Fit the same program under several priors (or objectives, ...), everything else alike, and compare them.

    python scripts/compare.py --priors standard mixture vamp nsf --data mnist --epochs 30 --seeds 2
    python scripts/compare.py --systems pixelcnn autoencoder vae beta-vae wae pixelvae

takes every flag of fit.py. Each run is a folder of fit.py in --out; those that are there already are used again,
so that an interrupted comparison continues. --systems makes a gallery of different programs: log p(x) where there is
one, how well their codes serve a classifier, and how far what they generate is from test images.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from pyro_vae import cli, config
from pyro_vae.config import programs
from pyro_vae.config.presets import SYSTEMS
from pyro_vae.errors import UserError
from pyro_vae.evaluate import Features, train_features
from pyro_vae.report import comparison, systems
from pyro_vae.runs import RunFolder, load_run

# Of the summary of a run, for the gallery.
_KEPT = ("log_likelihood", "log_likelihood_se", "distortion", "squared_error", "parameters", "train_seconds")


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
    systems: tuple[str, ...] = ()
    """Systems to show side by side, by their names in pyro_vae/config/presets.py, which say what flags make them."""
    seeds: int = 1
    """Runs of each, with seeds from --seed on."""
    out: Path = Path("runs/comparison")
    """Folder of the runs and of the comparison."""


def main(arguments: Arguments) -> None:
    """Run the script."""
    names = {
        part: getattr(arguments, f"{part}s") for part in ("prior", "posterior", "likelihood", "objective", "system")
    }
    chosen = [part for part in names if names[part]]
    if len(chosen) != 1 or len(set(names[chosen[0]])) < max(2, len(names[chosen[0]])):
        raise UserError(
            "Give two or more different names to one of --priors, --posteriors, --likelihoods, --objectives, --systems."
        )
    if arguments.seeds < 1:
        raise UserError(f"--seeds is {arguments.seeds}; it must be at least 1.")
    if arguments.systems and arguments.seeds > 1:
        raise UserError("--systems shows one run of each: leave out --seeds.")
    if arguments.systems and 1 in (arguments.config.train_images, arguments.config.test_images):
        raise UserError("--systems compares how features vary over images: use two or more of each split.")
    settings = {  # all of them first, so that a name that is not known stops before anything is fitted
        (name, seed): setting_of(arguments.config, chosen[0], name, seed)
        for seed in range(arguments.seeds)
        for name in names[chosen[0]]
    }
    for setting in settings.values():
        programs.check(setting)
    runs: dict[str, list[RunFolder]] = {name: [] for name in names[chosen[0]]}
    for (name, seed), setting in settings.items():
        folder = RunFolder(arguments.out / (f"{name}-seed{setting.seed}" if seed else name))
        fit(setting, folder)
        runs[name].append(folder)
    if arguments.systems:
        rows = gallery({name: folder for name, (folder,) in runs.items()})
        systems.write_gallery(arguments.out, rows, {name: folder.path for name, (folder,) in runs.items()})
        print(systems.gallery_table(rows))
    else:
        rows = comparison.compare(runs)
        comparison.write_comparison(arguments.out, rows, runs)
        print(comparison.table(rows))
    print(f"\nwritten to {arguments.out}")


def setting_of(settings: config.Config, part: str, name: str, seed: int) -> config.Config:
    """Return the configuration with another part; of several objectives or systems, each gets the flags it reads."""
    if part == "system" and name not in SYSTEMS:
        raise UserError(f"Unknown system {name!r}; choose of {', '.join(SYSTEMS)}.")
    changes: dict[str, Any] = SYSTEMS[name] if part == "system" else {part: name, "seed": settings.seed + seed}
    setting = replace(settings, **changes)
    return replace(setting, **programs.unread(setting)) if part in ("objective", "system") else setting


def gallery(runs: Mapping[str, RunFolder]) -> list[dict[str, Any]]:
    """Measure each run as one system; one network of features serves all that observe the same."""
    nets: dict[Any, Features] = {}
    rows = []
    for name, folder in runs.items():
        summary = json.loads((folder.path / "summary.json").read_text())
        fitted = load_run(folder.path, download=True)
        settings = fitted.config
        with fitted.program.scope():
            train, test = fitted.labelled("train"), fitted.labelled("test")
            seen = settings.binarize, fitted.density
            if seen not in nets:
                classes = torch.as_tensor(train.classes, device=train.pixels.device)
                nets[seen] = train_features(train.pixels, classes, settings.seed)
            lossy = bool(fitted.lacks) and summary["rate"] is not None
            numbers = systems.measure_system(fitted.program, train, test, nets[seen], lossy=lossy, seed=settings.seed)
        rows.append({"name": name, **{key: summary[key] for key in _KEPT}, **numbers})
    return rows


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
