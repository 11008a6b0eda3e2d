"""Fit a VAE, score it on the test images, and write a run folder.

    python scripts/fit.py                                             the bundled digits, about a minute
    python scripts/fit.py --data mnist --data-root DIR --epochs 20    MNIST
    python scripts/fit.py --prior mixture --objective iwae --num-particles 5
    python scripts/fit.py --seeds 8                                   eight seeds at once
    torchrun --nproc-per-node 2 scripts/fit.py --seeds 8              the same, four seeds in each process
    python scripts/fit.py --program my_program.py:factory             your own program

The run folder, --out, contains config.json, metrics.jsonl, checkpoints, summary.json, scores.nc and figures.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports, which take seconds, ends the process without a traceback; see `cli.exit_status`.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import statistics
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import tyro

from pyro_vae import cli, config, parallel, ranks, torchrun
from pyro_vae.command_line import fields_given, parse
from pyro_vae.config.run_names import run_name
from pyro_vae.errors import UserError, check_count
from pyro_vae.instruments.fits import Fits
from pyro_vae.instruments.scores_table import scores_table
from pyro_vae.output import show
from pyro_vae.report.drawing import FigureFormat
from pyro_vae.runs import (
    RunFolder,
    load_images,
    raise_if_undrawn,
    seed_path,
)
from pyro_vae.runs.resume import continue_config, is_finished
from pyro_vae.text import printable


@dataclass(frozen=True)
class OutputFlags:
    """Run folder and checkpoints.

    Args:
        out: Run folder. If None, it is runs/<data>-<program>-<prior>-<objective>, without vae and without names that
            the program ignores, followed by a posterior, likelihood, network, binarization, number of latents or seed
            that is not the default. An existing folder is rejected unless --resume or --overwrite is given.
        resume: Continue the run in --out from its newest valid checkpoint, with its flags. Only --epochs (more),
            --device, --data-root and the path of a file may be different. A learning-rate schedule then spans the new
            number of epochs.
        overwrite: Replace the run in --out.
        checkpoint_seconds: Maximum number of seconds between two checkpoints. It has no effect on results.
        seeds: Number of runs, with consecutive seeds from --seed on, which are fitted together. The run of the first
            seed is written to --out, and that of another seed S to <out>-seedS. torchrun divides them among processes.
        figure_format: Format of the figures.
    """

    out: config.OptionalDirPath = None
    resume: bool = False
    overwrite: bool = False
    checkpoint_seconds: float = 60.0
    seeds: config.Count = 1
    figure_format: FigureFormat = "png"


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
@dataclass(frozen=True)
class Arguments:
    """Fit a VAE as a Pyro program, score it on the test images, and write a run folder."""

    config: config.ConfigFlags
    output: OutputFlags


def main(arguments: Arguments, given: Collection[str]) -> None:
    """Fit and score a program with one or several seeds, or resume its fits; `given` names the fields that are set."""
    output = arguments.output
    if not output.checkpoint_seconds >= 0:
        raise UserError(f"--checkpoint-seconds is {output.checkpoint_seconds}; it must be 0 or more.")
    if output.resume and output.overwrite:
        raise UserError("--resume continues the run in --out, and --overwrite replaces it; give only one of them.")
    check_count("--seeds", output.seeds, 1, config.MAX_SEEDS)
    if torchrun.restarts() and not output.resume:
        raise UserError("--max-restarts starts this command again after a failure; add --resume, so that it continues.")
    path = output.out or Path("runs") / run_name(arguments.config.resolve())
    continues = output.resume and RunFolder(path).is_run
    first = continue_config(RunFolder(path), arguments.config, given) if continues else arguments.config.resolve()
    if not continues or "data_root" in given:  # a run of an earlier version may have been started with it
        first.check_data_root()
    with ranks.process_group(first.device):
        # Nothing is downloaded to a folder that only a run folder names.
        fit_and_score(output, path, first, download=not continues or "data_root" in given)


def fit_and_score(output: OutputFlags, path: Path, first: config.Config, *, download: bool) -> None:
    """Fit and score a program with one or several seeds.

    Several processes share the steps and scores of one fit; of several fits, each process takes some.
    """
    configs = {seed: replace(first, seed=seed) for seed in range(first.seed, first.seed + output.seeds)}
    folders = {seed: RunFolder(run_path(output, path, configs[seed], first)) for seed in configs}
    for folder in folders.values():
        folder.figure_format = output.figure_format
    if output.resume:
        finished = parallel.on_first(lambda: [seed for seed in configs if is_finished(folders[seed], configs[seed])])
        for seed in finished:
            del configs[seed]
            show(f"{printable(str(folders[seed].path))} is finished; nothing to resume.")
    if not configs:
        return
    for seed in configs:  # before anything is computed
        check = partial(folders[seed].check, resume=output.resume, overwrite=output.overwrite)
        parallel.on_first(partial(check, configs[seed].to_json()))
    images = parallel.in_turn(partial(load_images, first, download=download))

    divided = output.seeds > 1
    own = list(configs)[ranks.rank() :: ranks.size()] if divided else list(configs)
    fits = Fits({seed: configs[seed] for seed in own}, folders, images, together=divided)
    with ranks.alone() if divided else nullcontext():
        if own:
            pyro.set_rng_seed(own[0])
            fits.prepare()
            if fits.description:
                show(fits.description)
            train(fits, output)
        # All numbers first, then the figures, each by itself: what goes wrong late costs nothing else.
        scored = fits.score()
        if divided:  # the others may fail while this process waits for them
            fits.draw({seed: scores for seed, (scores, _) in scored.items()})
    if divided:
        scored = {seed: each for part in ranks.gather(scored) for seed, each in part.items()}
    names = {seed: folders[seed].path.name for seed in configs if seed in scored}
    numbers = {name: scored[seed][1] for seed, name in names.items()}
    show(scores_table(numbers, {name: scored[seed][0] for seed, name in names.items()}))
    show_spread(list(numbers.values()))
    if not divided:
        fits.draw({seed: scores for seed, (scores, _) in scored.items()})
    ranks.gather(None)  # all is written and printed before an error ends a process, and thereby all others
    paths = ", ".join(printable(str(folders[seed].path)) for seed in names)
    parallel.on_first(lambda: show(f"\nwritten to {paths}"))
    if fits.errors:
        raise next(iter(fits.errors.values()))
    raise_if_undrawn(*(folders[seed] for seed in own))
    if first.data == "digits":
        show("MNIST: python scripts/fit.py --data mnist --data-root data --epochs 20")


def train(fits: Fits, output: OutputFlags) -> None:
    """Train in the run folders, until a signal to any process stops all that work together."""
    # The folders are created after the first step, so that runs that cannot start leave and replace nothing.
    ranks.gather(None)  # no process has failed so far
    with cli.deferred_signals() as stop:
        fits.train(
            resume=output.resume,
            overwrite=output.overwrite,
            every_seconds=output.checkpoint_seconds,
            should_stop=stop,
        )
        # A signal that another process has received, perhaps after the last step, stops this one, too.
        if any(ranks.gather(stop())) and not stop():
            signal.raise_signal(signal.SIGTERM)


def run_path(output: OutputFlags, path: Path, settings: config.Config, first: config.Config) -> Path:
    """Return the path of the run folder of a configuration, given the path and the configuration of the first seed."""
    if output.out is None and settings.seed != first.seed:
        return Path("runs") / run_name(settings)
    return seed_path(path, settings.seed, first.seed)


def show_spread(numbers: Sequence[Mapping[str, Any]]) -> None:
    """Print mean and standard deviation of log p(x) over seeds, if there are several."""
    values = [each["log_likelihood"] for each in numbers if each["log_likelihood"] is not None]
    if len(values) > 1:
        mean, deviation = statistics.fmean(values), statistics.stdev(values)
        show(f"log p(x) over {len(values)} seeds: mean {mean:.2f} nats, standard deviation {deviation:.2f}")


if __name__ == "__main__":
    with cli.exit_status("continue with --resume"):
        main(parse(Arguments, sys.argv[1:], __doc__), fields_given(sys.argv[1:]))
