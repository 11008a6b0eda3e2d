"""Fit a VAE, score it on the test images, and write a run folder.

    python scripts/fit.py                                             the bundled digits, about a minute
    python scripts/fit.py --data mnist --data-root DIR --epochs 20    MNIST
    python scripts/fit.py --prior mixture --objective iwae --num-particles 5
    python scripts/fit.py --program my_program.py:factory             your own program

The run folder, --out, contains config.json, metrics.jsonl, checkpoints, summary.json, scores.nc and figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyro
import tyro
from tqdm import tqdm

from pyro_vae import cli, config, data
from pyro_vae.config import components, programs
from pyro_vae.errors import UserError
from pyro_vae.infer import SVI, Epoch, Fit, Optim, schedules
from pyro_vae.instruments.scores import measure_scores, rehearse, scores_table, write_scores
from pyro_vae.report import curves
from pyro_vae.runs import RunFolder, fit_in_folder, prepare
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
    """

    out: config.OptionalDirPath = None
    resume: bool = False
    overwrite: bool = False
    checkpoint_seconds: float = 60.0


@tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
@dataclass(frozen=True)
class Arguments:
    """Fit a VAE as a Pyro program, score it on the test images, and write a run folder."""

    config: config.ConfigFlags
    output: OutputFlags


def main(arguments: Arguments) -> None:
    """Fit and score one program, or resume its fit."""
    output = arguments.output
    if not output.checkpoint_seconds >= 0:
        raise UserError(f"--checkpoint-seconds is {output.checkpoint_seconds}; it must be 0 or more.")
    if output.resume and output.overwrite:
        raise UserError("--resume continues the run in --out, and --overwrite replaces it; give only one of them.")
    settings = arguments.config.resolve()
    folder = RunFolder(output.out or Path("runs") / programs.run_name(settings))
    if output.resume and folder.finished:
        folder.check_config_matches(settings.to_json())
        print(f"{folder.path} is finished; nothing to resume.")
        return

    # Data and program.
    pyro.set_rng_seed(settings.seed)
    run = prepare(settings)
    if settings.data not in data.DATASETS:
        binarized = "" if run.config.binarize == "none" else f", binarized ({run.config.binarize})"
        print(f"{run.images.pixels}; --likelihood {run.config.likelihood}{binarized}")
    settings = run.config  # with the fields that the data determine
    batches, valid, test = run.batches(), run.observed("valid"), run.observed("test")
    program = run.program
    check_support(program.model, program.guide, Batch.of(test)[:100])
    rehearse(program, test, density=run.density)  # report errors of the evaluation before training

    # Optimizer and objective.
    assert settings.epochs is not None
    assert settings.num_samples is not None
    total_steps = settings.epochs * settings.steps_per_epoch(batches.num_images)
    schedule = schedules.per_step(schedules.SCHEDULES[settings.schedule], total_steps)
    optimizer, options = components.OPTIMIZERS[settings.optimizer]
    optim = Optim(optimizer, {"lr": settings.learning_rate, **options}, schedule)
    objective = programs.build_objective(settings, batches.num_images)
    fit = Fit(
        SVI(program.model, program.guide, optim, objective, execution=run.execution, precision=settings.precision),
        batches,
        settings.epochs,
        valid=valid,
        patience=settings.patience,
        seed=settings.seed,
        ema=settings.ema,
    )

    # Training. The folder is created only now, so that a run that cannot start does not leave one.
    folder.create(settings.to_json(), resume=output.resume, overwrite=output.overwrite)
    with cli.deferred_signals() as stop:
        show(
            fit_in_folder(fit, folder, settings, every_seconds=output.checkpoint_seconds, should_stop=stop),
            settings.epochs,
        )

    # Scores and report.
    scores, numbers = measure_scores(
        program,
        test,
        settings.num_samples,
        density=run.density,
        seed=settings.seed,
        compiled=run.execution == "compiled",
        level_bits=run.images.level_bits,
    )
    write_scores(folder, program, test, scores, settings.seed, run.images.pixels.columns)
    metrics = folder.metrics()
    folder.save_figure("learning_curve", curves.learning_curve(metrics))
    if not scores.reason:
        folder.save_figure("bounds", curves.bounds({folder.path.name: scores}))
    parameters = sum(p.numel() for p in fit.svi.optim.params.values())
    write_summary(folder, settings.to_json(), numbers, parameters=parameters, metrics=metrics)
    print(scores_table({folder.path.name: numbers}, {folder.path.name: scores}))
    print(f"\nwritten to {folder.path}")
    if settings.data == "digits":
        print("MNIST: python scripts/fit.py --data mnist --data-root data --epochs 20")


def show(epochs: Iterable[Epoch], total: int) -> None:
    """Run the epochs of a fit with a progress bar, which shows the validation ELBO or distortion."""
    with tqdm(total=total, desc="fit", unit="epoch", disable=None, leave=False) as bar:
        for epoch in epochs:
            bar.update(epoch.index + 1 - bar.n)
            name, value = (
                ("ELBO", epoch.valid_elbo) if epoch.valid_elbo is not None else ("distortion", epoch.valid_distortion)
            )
            bar.set_postfix_str(f"validation {name} {value:.2f} nats")


if __name__ == "__main__":
    with cli.exit_status():
        main(tyro.cli(Arguments, description=__doc__))
