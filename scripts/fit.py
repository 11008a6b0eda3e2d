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
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import tyro
from tqdm import tqdm

from pyro_vae import cli, config, data, ranks, torchrun
from pyro_vae.config import programs
from pyro_vae.errors import UserError
from pyro_vae.evaluate import Scores
from pyro_vae.infer import Epoch, Fit, FitMany
from pyro_vae.instruments.scores import measure_scores, rehearse, write_scores
from pyro_vae.instruments.scores_table import scores_table
from pyro_vae.report import curves
from pyro_vae.runs import Run, RunFolder, fit_in_folder, fit_many_in_folders, load_images, make_fit, prepare, seed_path
from pyro_vae.runs.summary import write_summary
from pyro_vae.trace import Batch, check_support


@dataclass(frozen=True)
class OutputFlags:
    """Run folder and checkpoints.

    Args:
        out: Run folder. If None, it is runs/<data>-<program>-<prior>-<objective>, without vae and without names that
            the program ignores. An existing folder is rejected unless --resume or --overwrite is given.
        resume: Continue the run in --out from its newest valid checkpoint.
        overwrite: Replace the run in --out.
        checkpoint_seconds: Maximum number of seconds between two checkpoints. It has no effect on results.
        seeds: Number of runs, with consecutive seeds from --seed on, which are fitted together. The run of the first
            seed is written to --out, and that of another seed S to <out>-seedS.
    """

    out: config.OptionalDirPath = None
    resume: bool = False
    overwrite: bool = False
    checkpoint_seconds: float = 60.0
    seeds: config.Count = 1


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
@dataclass(frozen=True)
class Arguments:
    """Fit a VAE as a Pyro program, score it on the test images, and write a run folder."""

    config: config.ConfigFlags
    output: OutputFlags


def main(arguments: Arguments) -> None:
    """Fit and score a program with one or several seeds, or resume its fits."""
    output = arguments.output
    if not output.checkpoint_seconds >= 0:
        raise UserError(f"--checkpoint-seconds is {output.checkpoint_seconds}; it must be 0 or more.")
    if output.resume and output.overwrite:
        raise UserError("--resume continues the run in --out, and --overwrite replaces it; give only one of them.")
    if output.seeds < 1:
        raise UserError(f"--seeds is {output.seeds}; it must be at least 1.")
    if output.seeds > 1 and torchrun.launched():
        raise UserError("--seeds fits several seeds in one process; start it with python, or use one seed.")
    if torchrun.restarts() and not output.resume:
        raise UserError("--max-restarts starts this command again after a failure; add --resume, so that it continues.")
    first = arguments.config.resolve()
    with ranks.process_group(first.device):
        fit_and_score(output, first)


def fit_and_score(output: OutputFlags, first: config.Config) -> None:
    """Fit and score a program with one or several seeds; several processes share its steps and its scores."""
    configs = {seed: replace(first, seed=seed) for seed in range(first.seed, first.seed + output.seeds)}
    path = output.out or Path("runs") / programs.run_name(first)
    folders = {seed: RunFolder(seed_path(path, seed, first.seed)) for seed in configs}
    if output.resume:
        for seed in ranks.on_first(partial(finished_seeds, configs, folders)):
            del configs[seed]
            print(f"{folders[seed].path} is finished; nothing to resume.")
    if not configs:
        return

    # Data, programs and fits.
    images = ranks.in_turn(partial(load_images, first))
    runs: dict[int, Run] = {}

    def make(seed: int) -> Fit:
        runs[seed] = prepare(configs[seed], images)
        if len(runs) == 1:
            check(runs[seed])
        return make_fit(runs[seed])

    pyro.set_rng_seed(first.seed)
    fit = FitMany(make, configs) if output.seeds > 1 else make(first.seed)

    # Training. The folders are created only now, so that runs that cannot start do not leave one.
    ranks.gather(None)  # no process has failed so far
    for seed, fitted in runs.items():
        create = partial(folders[seed].create, resume=output.resume, overwrite=output.overwrite)
        ranks.on_first(partial(create, fitted.config.to_json()))
    with cli.deferred_signals() as stop:
        train(fit, runs, folders, every_seconds=output.checkpoint_seconds, should_stop=stop)
        # A signal that another process has received, perhaps after the last step, stops this one, too.
        if any(ranks.gather(stop())) and not stop():
            signal.raise_signal(signal.SIGTERM)

    # Scores and report.
    fits, errors = (fit.fits, fit.errors) if isinstance(fit, FitMany) else ({first.seed: fit}, {})
    scored = {folders[seed]: score(runs[seed], fits[seed], folders[seed]) for seed in runs if seed not in errors}
    numbers = {folder.path.name: numbers for folder, (_, numbers) in scored.items()}
    print(scores_table(numbers, {folder.path.name: scores for folder, (scores, _) in scored.items()}))
    print_spread(list(numbers.values()))
    print(f"\nwritten to {', '.join(str(folder.path) for folder in scored)}")
    if errors:
        raise next(iter(errors.values()))
    if first.data == "digits":
        print("MNIST: python scripts/fit.py --data mnist --data-root data --epochs 20")


def finished_seeds(configs: Mapping[int, config.Config], folders: Mapping[int, RunFolder]) -> list[int]:
    """Return the seeds whose runs are finished; raise if such a run has another configuration."""
    finished = [seed for seed in configs if folders[seed].finished]
    for seed in finished:
        folders[seed].check_config_matches(configs[seed].to_json())
    return finished


def check(run: Run) -> None:
    """Describe your own data, and report errors of the program and its evaluation before training."""
    if run.config.data not in data.DATASETS:
        binarized = "" if run.config.binarize == "none" else f", binarized ({run.config.binarize})"
        print(f"{run.images.pixels}; --likelihood {run.config.likelihood}{binarized}")
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


def score(run: Run, fit: Fit, folder: RunFolder) -> tuple[Scores, dict[str, Any]]:
    """Score the test images, write all results of a run, and return the scores and their summary."""
    settings, test = run.config, run.observed("test")
    assert settings.num_samples is not None
    with fit.scope():
        scores, numbers = measure_scores(
            run.program,
            test,
            settings.num_samples,
            density=run.density,
            seed=settings.seed,
            compiled=run.execution == "compiled",
            level_bits=run.images.level_bits,
        )
        columns = run.images.pixels.columns
        ranks.on_first(lambda: write_scores(folder, run.program, test, scores, settings.seed, columns))
        ranks.on_first(lambda: write_report(folder, fit, settings, scores, numbers))
    return scores, numbers


def write_report(
    folder: RunFolder, fit: Fit, settings: config.Config, scores: Scores, numbers: Mapping[str, Any]
) -> None:
    """Write the learning curve, the figure of bounds, and summary.json, the last file of a run."""
    metrics = folder.metrics()
    folder.save_figure("learning_curve", curves.learning_curve(metrics))
    if not scores.reason:
        folder.save_figure("bounds", curves.bounds({folder.path.name: scores}))
    parameters = sum(p.numel() for p in fit.svi.optim.params.values())
    write_summary(folder, settings.to_json(), numbers, parameters=parameters, metrics=metrics)


def print_spread(numbers: Sequence[Mapping[str, Any]]) -> None:
    """Print mean and standard deviation of log p(x) over seeds, if there are several."""
    values = [each["log_likelihood"] for each in numbers if each["log_likelihood"] is not None]
    if len(values) > 1:
        mean, deviation = statistics.fmean(values), statistics.stdev(values)
        print(f"log p(x) over {len(values)} seeds: mean {mean:.2f} nats, standard deviation {deviation:.2f}")


if __name__ == "__main__":
    with cli.exit_status():
        main(tyro.cli(Arguments, description=__doc__))
