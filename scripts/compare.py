"""Fit the same program under several priors (or objectives, ...), everything else alike, and compare them.

    python scripts/compare.py --priors standard mixture vamp nsf --data mnist --epochs 30 --seeds 2
    python scripts/compare.py --systems pixelcnn autoencoder vae beta-vae wae pixelvae

takes every flag of fit.py. Each run is a folder of fit.py in --out; those that are there already are used again,
so that an interrupted comparison continues. --systems makes a gallery of different programs: log p(x) where there is
one, how well their codes serve a classifier, and how far what they generate is from test images.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pyro_vae import cli, config
from pyro_vae.config import programs
from pyro_vae.errors import UserError
from pyro_vae.instruments import comparison, gallery
from pyro_vae.runs import RunFolder, load_images


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
        (name, seed): comparison.vary_config(arguments.config, chosen[0], name, seed)
        for seed in range(arguments.seeds)
        for name in names[chosen[0]]
    }
    for setting in settings.values():
        programs.check_flags(setting)
    if arguments.systems:
        gallery.check_images(load_images(arguments.config.resolve()).pixels)
    runs: dict[str, list[RunFolder]] = {name: [] for name in names[chosen[0]]}
    for (name, seed), setting in settings.items():
        folder = RunFolder(arguments.out / (f"{name}-seed{setting.seed}" if seed else name))
        fit(setting, folder)
        runs[name].append(folder)
    if arguments.systems:
        folders = {name: folder for name, (folder,) in runs.items()}
        rows = gallery.measure_systems(folders)
        gallery.write_gallery(arguments.out, rows, {name: folder.path for name, folder in folders.items()})
        print(gallery.gallery_table(rows))
    else:
        rows = comparison.compare(runs)
        comparison.write_comparison(arguments.out, rows, runs)
        print(comparison.comparison_table(rows))
    print(f"\nwritten to {arguments.out}")


def fit(setting: config.Config, folder: RunFolder) -> None:
    """Run fit.py in a process of its own, as its user would; a run that fails ends the comparison."""
    if folder.finished:
        return folder.check_config_matches(setting.resolve().to_json())
    flags = [word for name, value in setting.to_json().items() for word in words(config.flag(name), value)]
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


def words(flag: str, value: Any) -> list[str]:
    """Return a flag and its value as fit.py reads them from its command line."""
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


if __name__ == "__main__":
    with cli.exit_status():
        main(tyro.cli(Arguments, description=__doc__))
