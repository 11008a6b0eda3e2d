"""Fit the same program under several priors (or objectives, ...), all else equal, and compare them.

    python scripts/compare.py --priors standard mixture vamp nsf --data mnist --epochs 30 --seeds 2
    python scripts/compare.py --systems pixelcnn autoencoder vae beta-vae wae pixelvae

Every flag of fit.py is available. Each run is a folder of fit.py in --out; existing ones are reused, so that an
interrupted comparison continues. --systems makes a gallery of different programs, with their log p(x) where it exists,
the accuracy of a classifier of their codes, and the Fréchet distance of their samples to test images.
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

Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME NAME ...", help_behavior_hint="")]


@dataclass(frozen=True)
class ComparisonFlags:
    """What is compared. Exactly one of the first five flags is required.

    Args:
        priors: Two or more priors to compare.
        posteriors: Two or more posteriors to compare.
        likelihoods: Two or more likelihoods to compare.
        objectives: Two or more objectives to compare.
        systems: Two or more systems to compare, each a set of flags named in pyro_vae/config/presets.py.
        seeds: Number of runs for each name, with consecutive seeds from --seed on. It must be 1 with --systems.
    """

    priors: Names = ()
    posteriors: Names = ()
    likelihoods: Names = ()
    objectives: Names = ()
    systems: Names = ()
    seeds: config.Count = 1


@dataclass(frozen=True)
class OutputFlags:
    """Runs and comparison.

    Args:
        out: Folder of the run folders and of the comparison.
    """

    out: config.DirPath = Path("runs/comparison")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
@dataclass(frozen=True)
class Arguments:
    """Fit the same program under several priors, posteriors, likelihoods or objectives, and compare them."""

    comparison: ComparisonFlags
    config: config.ConfigFlags
    output: OutputFlags


def main(arguments: Arguments) -> None:
    """Run the script."""
    asked, out = arguments.comparison, arguments.output.out
    names = {part: getattr(asked, f"{part}s") for part in ("prior", "posterior", "likelihood", "objective", "system")}
    chosen = [part for part in names if names[part]]
    if len(chosen) != 1 or len(set(names[chosen[0]])) < max(2, len(names[chosen[0]])):
        raise UserError(
            "Give two or more different names to one of --priors, --posteriors, --likelihoods, --objectives, --systems."
        )
    if asked.seeds < 1:
        raise UserError(f"--seeds is {asked.seeds}; it must be at least 1.")
    if asked.systems and asked.seeds > 1:
        raise UserError("--systems shows one run of each: leave out --seeds.")
    if asked.systems and 1 in (arguments.config.train_images, arguments.config.test_images):
        raise UserError("--systems compares how features vary over images: use two or more of each split.")
    settings = {  # all of them first, so that a name that is not known stops before anything is fitted
        (name, seed): comparison.vary_config(arguments.config, chosen[0], name, seed)
        for seed in range(asked.seeds)
        for name in names[chosen[0]]
    }
    for setting in settings.values():
        programs.check_flags(setting)
    if asked.systems:
        gallery.check_images(load_images(arguments.config.resolve()).pixels)
    runs: dict[str, list[RunFolder]] = {name: [] for name in names[chosen[0]]}
    for (name, seed), setting in settings.items():
        folder = RunFolder(out / (f"{name}-seed{setting.seed}" if seed else name))
        fit(setting, folder)
        runs[name].append(folder)
    if asked.systems:
        folders = {name: folder for name, (folder,) in runs.items()}
        rows = gallery.measure_systems(folders)
        gallery.write_gallery(out, rows, {name: folder.path for name, folder in folders.items()})
        print(gallery.gallery_table(rows))
    else:
        rows = comparison.compare(runs)
        comparison.write_comparison(out, rows, runs)
        print(comparison.comparison_table(rows))
    print(f"\nwritten to {out}")


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
