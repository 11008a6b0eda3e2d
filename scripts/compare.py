"""Fit the same program with several priors (or posteriors, likelihoods, objectives), all else equal, and compare them.

    python scripts/compare.py runs/digits-standard-elbo runs/digits-mine-factory-standard-elbo
    python scripts/compare.py --priors standard mixture vamp nsf --data mnist --epochs 30 --seeds 2
    python scripts/compare.py --systems pixelcnn autoencoder vae beta-vae wae pixelvae
    torchrun --nproc-per-node 2 scripts/compare.py --priors standard mixture vamp nsf --data mnist --epochs 30

Given run folders, finished runs of any programs are compared, image by image; no code is executed, and runs with other
test images or other kinds of scores are refused. The folders RUN/evaluation of evaluate.py are accepted, too.

Otherwise every flag of fit.py is available. Each run is a run folder of fit.py in --out. Existing runs are reused, so
that an interrupted comparison can be continued. --systems compares different programs by log p(x), if it is defined, by
the accuracy of a classifier on their codes, and by the Fréchet distance of their samples to test images.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports, which take seconds, ends the process without a traceback; see `cli.exit_status`.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from pyro_vae import cli, config, parallel, ranks, torchrun
from pyro_vae.command_line import parse
from pyro_vae.errors import UserError, check_count
from pyro_vae.instruments import comparison, gallery
from pyro_vae.instruments.comparison_checks import check_before_fits
from pyro_vae.output import show
from pyro_vae.report.drawing import FigureFormat
from pyro_vae.runs import Folder, RunFolder, names_of, raise_if_undrawn, seed_path
from pyro_vae.text import printable

KINDS = ("prior", "posterior", "likelihood", "objective", "system")
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME NAME ...", help_behavior_hint="")]


@dataclass(frozen=True)
class ComparisonFlags:
    """Components to compare. Without run folders, exactly one of the first five flags is required.

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
        figure_format: Format of the figures of the comparison. Those of its runs, which samples.png shows, are PNG
            files.
    """

    out: config.DirPath = Path("runs/comparison")
    figure_format: FigureFormat = "png"


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
@dataclass(frozen=True)
class Arguments:
    """Fit the same program with several priors, posteriors, likelihoods or objectives, and compare them.

    Args:
        runs: Two or more finished runs to compare, instead of fitting any.
    """

    comparison: ComparisonFlags
    config: config.ConfigFlags
    output: OutputFlags
    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...", help_behavior_hint="")
    ] = ()


def main(arguments: Arguments) -> None:
    """Compare finished runs, or check all configurations, fit those without a finished run, and compare them."""
    results = Folder(arguments.output.out, figures=".")
    results.figure_format = arguments.output.figure_format
    if arguments.runs:
        compare_finished(arguments, results)
    else:
        fit_and_compare(arguments, results)


def compare_finished(arguments: Arguments, results: Folder) -> None:
    """Compare runs that are given by their folders."""
    flags = ComparisonFlags(), replace(config.Config(), device=arguments.config.device)
    if (arguments.comparison, arguments.config) != flags:
        raise UserError("Finished runs are compared as they were fitted: leave out the flags of their fits.")
    if len(arguments.runs) < 2:
        raise UserError("A comparison needs two or more run folders.")
    torchrun.refuse("compare.py RUN ...")
    runs = {name: [Folder(path)] for name, path in zip(names_of(arguments.runs), arguments.runs, strict=True)}
    rows = comparison.compare(runs)
    results.lock()
    report(rows, runs, results)


def fit_and_compare(arguments: Arguments, results: Folder) -> None:
    """Fit the runs of a comparison that are not finished, and compare all."""
    flags, out = arguments.comparison, results.path
    arguments.config.check_data_root()
    names = {kind: getattr(flags, f"{kind}s") for kind in KINDS}
    chosen = [kind for kind in names if names[kind]]
    if len(chosen) != 1 or len(set(names[chosen[0]])) < max(2, len(names[chosen[0]])):
        raise UserError(
            "Give two or more different names to one of --priors, --posteriors, --likelihoods, --objectives, "
            "--systems, or two or more run folders."
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
    check_before_fits(arguments.config, chosen[0], {name: varied[0] for name, varied in configs.items()})
    runs = {name: [RunFolder(seed_path(out / name, each.seed, v[0].seed)) for each in v] for name, v in configs.items()}
    undrawn = False
    with ranks.process_group("cpu"):  # only the fits compute
        parallel.on_first(results.lock)
        first = ranks.is_first()
        for path, status in parallel.map_parts(lambda name: fit(configs[name], runs[name]), configs):
            if status == cli.UNDRAWN:
                undrawn = True  # the fit has named its figures; its numbers can be compared
            elif status:
                if first:
                    print(printable(f"The fit of {path} ended with status {status}."), file=sys.stderr)
                ranks.gather(None)  # torchrun stops all processes when one ends: wait for that line
                raise SystemExit(status if status > 0 else 128 - status)
    if not first:
        return
    if flags.systems:
        folders = {name: folder for name, (folder,) in runs.items()}
        rows = gallery.measure_systems(folders)
        gallery.write_gallery(results, rows)
        show(gallery.gallery_table(rows))
        gallery.draw_gallery(results, folders)
        finish(results)
    else:
        report(comparison.compare(runs), runs, results)
    if undrawn:
        raise SystemExit(cli.UNDRAWN)


def report(rows: list[dict[str, Any]], runs: Mapping[str, Sequence[Folder]], results: Folder) -> None:
    """Write and print the rows of a comparison, then draw its figures."""
    comparison.write_comparison(results, rows)
    show(comparison.comparison_table(rows))
    comparison.draw_comparison(results, rows, runs)
    finish(results)


def finish(results: Folder) -> None:
    """Say where the results are, and raise if a figure could not be drawn."""
    show(f"\nwritten to {printable(str(results.path))}")
    results.unlock()
    raise_if_undrawn(results)


def fit(configs: Sequence[config.Config], folders: Sequence[RunFolder]) -> tuple[Path, int]:
    """Run fit.py in a separate process for consecutive seeds, unless all their runs are finished.

    Returns:
        The folder of the first seed, and the exit status of the fit; a negative one is minus the number of a signal.

    Raises:
        RunFolderError: If a folder has a run with a different configuration.
    """
    first, path = configs[0], folders[0].path
    for settings, folder in zip(configs, folders, strict=True):
        # fit.py takes the flags of a run that it continues, of which those that are not set here may differ.
        check = folder.check_config_matches if folder.finished else partial(folder.check, resume=True)
        check(settings.resolve().to_json())
    if all(folder.finished for folder in folders):
        return path, 0
    flags = [*first.to_flags(), "--out", str(path), "--seeds", str(len(configs)), "--resume"]
    show(printable(str(path)))
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fit.py")), *flags],
        stdin=subprocess.PIPE,  # closed when this process ends, even by SIGKILL, and then the fit stops
        stdout=subprocess.DEVNULL,
        env=cli.environment_of_child(torchrun.single_process_environment()),
    ) as process:
        try:
            return path, process.wait()
        except BaseException:  # usually a signal: forward it, so that the fit writes a checkpoint and stops
            process.terminate()
            process.wait()
            raise


if __name__ == "__main__":
    with cli.exit_status("run the same command again to continue"):
        main(parse(Arguments, sys.argv[1:], __doc__))
