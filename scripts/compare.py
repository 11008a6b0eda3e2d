"""Fit the same program with several priors (or posteriors, likelihoods, objectives), all else equal, and compare them.

    python scripts/compare.py --priors standard mixture vamp nsf --data mnist --epochs 30 --seeds 2
    python scripts/compare.py --systems pixelcnn autoencoder vae beta-vae wae pixelvae
    torchrun --nproc-per-node 2 scripts/compare.py --priors standard mixture vamp nsf --data mnist --epochs 30

Every flag of fit.py is available. Each run is a run folder of fit.py in --out. Existing runs are reused, so that an
interrupted comparison can be continued. --systems compares different programs by log p(x), if it is defined, by the
accuracy of a classifier on their codes, and by the Fréchet distance of their samples to test images.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports, which take seconds, ends the process without a traceback; see `cli.exit_status`.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pyro_vae import cli, config, ranks, torchrun
from pyro_vae.command_line import parse
from pyro_vae.config import programs
from pyro_vae.errors import UserError, check_count
from pyro_vae.instruments import comparison, gallery
from pyro_vae.runs import RunFolder, load_images, seed_path

Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME NAME ...", help_behavior_hint="")]


@dataclass(frozen=True)
class ComparisonFlags:
    """Components to compare. Exactly one of the first five flags is required.

    Args:
        priors: Two or more priors to compare.
        posteriors: Two or more posteriors to compare.
        likelihoods: Two or more likelihoods to compare.
        objectives: Two or more objectives to compare.
        systems: Two or more systems to compare, each a set of flags defined in pyro_vae/config/presets.py.
        seeds: Number of runs per name, with consecutive seeds from --seed on, which are fitted together. It must be 1
            with --systems.
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
        out: Folder for the run folders and the comparison.
    """

    out: config.DirPath = Path("runs/comparison")


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
@dataclass(frozen=True)
class Arguments:
    """Fit the same program with several priors, posteriors, likelihoods or objectives, and compare them."""

    comparison: ComparisonFlags
    config: config.ConfigFlags
    output: OutputFlags


def main(arguments: Arguments) -> None:
    """Check all configurations, fit those without a finished run, and compare the runs."""
    flags, out = arguments.comparison, arguments.output.out
    names = {kind: getattr(flags, f"{kind}s") for kind in ("prior", "posterior", "likelihood", "objective", "system")}
    chosen = [kind for kind in names if names[kind]]
    if len(chosen) != 1 or len(set(names[chosen[0]])) < max(2, len(names[chosen[0]])):
        raise UserError(
            "Give two or more different names to one of --priors, --posteriors, --likelihoods, --objectives, --systems."
        )
    check_count("--seeds", flags.seeds, 1, config.MAX_SEEDS)
    if flags.systems and flags.seeds > 1:
        raise UserError("--systems fits one run per system; leave out --seeds.")
    if flags.systems and 1 in (arguments.config.train_images, arguments.config.test_images):
        raise UserError("--systems compares the variation of features over images; use two or more of each split.")
    configs = {  # all configurations first, so that an unknown name is rejected before anything is fitted
        name: [comparison.vary_config(arguments.config, chosen[0], name, seed) for seed in range(flags.seeds)]
        for name in names[chosen[0]]
    }
    comparison.check_varied(arguments.config, chosen[0], {name: varied[0] for name, varied in configs.items()})
    for varied in configs.values():
        programs.check_flags(varied[0])
    comparison.check_test_images(arguments.config.resolve())
    if flags.systems:
        gallery.check_images(load_images(arguments.config.resolve()).pixels)
    runs = {
        name: [RunFolder(seed_path(out / name, each.seed, varied[0].seed)) for each in varied]
        for name, varied in configs.items()
    }
    with ranks.process_group("cpu"):  # only the fits compute
        first = ranks.is_first()
        for path, status in ranks.map_parts(lambda name: fit(configs[name], runs[name]), configs):
            if status:
                if first:
                    print(f"The fit of {path} ended with status {status}.", file=sys.stderr)
                ranks.gather(None)  # torchrun stops all processes when one ends: wait for that line
                raise SystemExit(status if status > 0 else 128 - status)
    if not first:
        return
    if flags.systems:
        folders = {name: folder for name, (folder,) in runs.items()}
        rows = gallery.measure_systems(folders)
        gallery.write_gallery(out, rows, {name: folder.path for name, folder in folders.items()})
        print(gallery.gallery_table(rows))
    else:
        rows = comparison.compare(runs)
        comparison.write_comparison(out, rows, runs)
        print(comparison.comparison_table(rows))
    print(f"\nwritten to {out}")


def fit(configs: Sequence[config.Config], folders: Sequence[RunFolder]) -> tuple[Path, int]:
    """Run fit.py in a separate process for consecutive seeds, unless all their runs are finished.

    Returns:
        The folder of the first seed, and the exit status of the fit; a negative one is minus the number of a signal.

    Raises:
        RunFolderError: If a folder has a finished run with a different configuration.
    """
    first, path = configs[0], folders[0].path
    for settings, folder in zip(configs, folders, strict=True):
        if folder.finished:
            folder.check_config_matches(settings.resolve().to_json())
    if all(folder.finished for folder in folders):
        return path, 0
    flags = [word for name, value in first.to_json().items() for word in words(config.flag(name), value)]
    flags += ["--out", str(path), "--seeds", str(len(configs)), "--resume"]
    print(path, flush=True)
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fit.py")), *flags],
        stdout=subprocess.DEVNULL,
        env=torchrun.single_process_environment(),
    ) as process:
        try:
            return path, process.wait()
        except BaseException:  # usually a signal: forward it, so that the fit writes a checkpoint and stops
            process.terminate()
            process.wait()
            raise


def words(flag: str, value: Any) -> list[str]:
    """Return a flag and its value as arguments for fit.py. None and False give no arguments, True gives the flag."""
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


if __name__ == "__main__":
    with cli.exit_status("run the same command again to continue"):
        main(parse(Arguments, sys.argv[1:], __doc__))
