"""Fit a VAE, score it on the test images, and write a run folder.

    python scripts/fit.py                                             the bundled digits, about a minute
    python scripts/fit.py --data mnist --data-root DIR --epochs 20    MNIST
    python scripts/fit.py --prior mixture --objective iwae --num-particles 5
    python scripts/fit.py --seeds 8                                   eight seeds at once
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
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import tyro
from tqdm import tqdm

from pyro_vae import cli, config, data, parallel, ranks, torchrun
from pyro_vae.command_line import fields_given, parse
from pyro_vae.config.fields_read import set_model_flags
from pyro_vae.config.run_names import run_name
from pyro_vae.errors import UserError, check_count
from pyro_vae.evaluate import Scores
from pyro_vae.infer import Epoch, Fit, FitMany, rehearse_last_batch
from pyro_vae.instruments.fitted import draw_fit, score_fit
from pyro_vae.instruments.scores import rehearse
from pyro_vae.instruments.scores_table import scores_table
from pyro_vae.output import show
from pyro_vae.report.drawing import FigureFormat
from pyro_vae.runs import (
    Run,
    RunFolder,
    check_flags_read,
    fit_in_folder,
    fit_many_in_folders,
    load_images,
    make_fit,
    prepare,
    raise_if_undrawn,
    seed_path,
)
from pyro_vae.runs.resume import continue_config, is_finished
from pyro_vae.text import printable
from pyro_vae.trace import Batch, check_support


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
            seed is written to --out, and that of another seed S to <out>-seedS.
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
    if output.seeds > 1 and torchrun.launched():
        raise UserError("--seeds fits several seeds in one process; start it with python, or use one seed.")
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
    """Fit and score a program with one or several seeds; several processes share its steps and its scores."""
    configs = {seed: replace(first, seed=seed) for seed in range(first.seed, first.seed + output.seeds)}
    folders = {seed: RunFolder(run_path(output, path, configs[seed], first)) for seed in configs}
    if output.resume:
        finished = parallel.on_first(lambda: [seed for seed in configs if is_finished(folders[seed], configs[seed])])
        for seed in finished:
            del configs[seed]
            show(f"{printable(str(folders[seed].path))} is finished; nothing to resume.")
    if not configs:
        return
    claim = {"resume": output.resume, "overwrite": output.overwrite}
    for seed in configs:  # before anything is computed
        parallel.on_first(partial(folders[seed].check, configs[seed].to_json(), **claim))

    # Data, programs and fits.
    images = parallel.in_turn(partial(load_images, first, download=download))
    runs: dict[int, Run] = {}

    def make(seed: int) -> Fit:
        runs[seed] = prepare(configs[seed], images)
        if len(runs) == 1:
            check_flags_read(configs[seed], images, set_model_flags(configs[seed]))
            check(runs[seed])
        return make_fit(runs[seed])

    pyro.set_rng_seed(first.seed)
    fit = FitMany(make, configs) if output.seeds > 1 else make(first.seed)
    fits = fit.fits if isinstance(fit, FitMany) else {first.seed: fit}
    rehearse_last_batch(fits[next(iter(runs))], len(images.pixels.train), first.batch_size)

    # Training. The folders are created after the first step, so that runs that cannot start leave and replace nothing.
    ranks.gather(None)  # no process has failed so far
    with cli.deferred_signals() as stop:
        train(fit, runs, folders, **claim, every_seconds=output.checkpoint_seconds, should_stop=stop)
        # A signal that another process has received, perhaps after the last step, stops this one, too.
        if any(ranks.gather(stop())) and not stop():
            signal.raise_signal(signal.SIGTERM)

    # All numbers first, then the figures, each by itself: what goes wrong late costs nothing else.
    errors = fit.errors if isinstance(fit, FitMany) else {}
    scored: dict[int, tuple[Scores, dict[str, Any]]] = {}
    for seed in [seed for seed in runs if seed not in errors]:
        params = fits[seed].svi.optim.params.values()
        with fits[seed].scope():
            scored[seed] = score_fit(runs[seed], folders[seed], sum(p.numel() for p in params))
    numbers = {folders[seed].path.name: numbers for seed, (_, numbers) in scored.items()}
    show(scores_table(numbers, {folders[seed].path.name: scores for seed, (scores, _) in scored.items()}))
    show_spread(list(numbers.values()))
    for seed, (scores, _) in scored.items():
        folders[seed].figure_format = output.figure_format
        with fits[seed].scope():
            parallel.on_first(partial(draw_fit, runs[seed], folders[seed], scores))
    paths = ", ".join(printable(str(folders[seed].path)) for seed in scored)
    show(f"\nwritten to {paths}")
    if errors:
        raise next(iter(errors.values()))
    parallel.on_first(lambda: raise_if_undrawn(*(folders[seed] for seed in scored)))
    if first.data == "digits":
        show("MNIST: python scripts/fit.py --data mnist --data-root data --epochs 20")


def run_path(output: OutputFlags, path: Path, settings: config.Config, first: config.Config) -> Path:
    """Return the path of the run folder of a configuration, given the path and the configuration of the first seed."""
    if output.out is None and settings.seed != first.seed:
        return Path("runs") / run_name(settings)
    return seed_path(path, settings.seed, first.seed)


def check(run: Run) -> None:
    """Describe your own data, and report errors of the program and its evaluation before training."""
    if run.config.data not in data.DATASETS:
        binarized = "" if run.config.binarize == "none" else f", binarized ({run.config.binarize})"
        show(f"{run.images.pixels}; --likelihood {run.config.likelihood}{binarized}")
    test = run.observed("test")
    check_support(run.program.model, run.program.guide, Batch.of(test)[:100])
    rehearse(run.program, test, density=run.density)


def train(fit: Fit | FitMany, runs: Mapping[int, Run], folders: Mapping[int, RunFolder], **options: Any) -> None:
    """Run one or several fits in their folders with a progress bar; see `fit_in_folder` for the options."""
    ((seed, run), *_) = runs.items()
    epochs: Iterable[Sequence[Epoch]]
    if isinstance(fit, FitMany):
        settings = {seed: run.config for seed, run in runs.items()}
        epochs = (list(by_seed.values()) for by_seed in fit_many_in_folders(fit, folders, settings, **options))
    else:
        epochs = ([epoch] for epoch in fit_in_folder(fit, folders[seed], run.config, **options))
    with tqdm(total=run.config.epochs, desc="fit", unit="epoch", disable=None, leave=False) as bar:
        for members in epochs:
            bar.update(members[0].index + 1 - bar.n)
            elbos = [epoch.valid_elbo for epoch in members if epoch.valid_elbo is not None]
            distortions = [epoch.valid_distortion for epoch in members if epoch.valid_distortion is not None]
            name, values = ("ELBO", elbos) if elbos else ("distortion", distortions)
            bar.set_postfix_str(f"validation {name} {statistics.fmean(values):.2f} nats")


def show_spread(numbers: Sequence[Mapping[str, Any]]) -> None:
    """Print mean and standard deviation of log p(x) over seeds, if there are several."""
    values = [each["log_likelihood"] for each in numbers if each["log_likelihood"] is not None]
    if len(values) > 1:
        mean, deviation = statistics.fmean(values), statistics.stdev(values)
        show(f"log p(x) over {len(values)} seeds: mean {mean:.2f} nats, standard deviation {deviation:.2f}")


if __name__ == "__main__":
    with cli.exit_status("continue with --resume"):
        main(parse(Arguments, sys.argv[1:], __doc__), fields_given(sys.argv[1:]))
