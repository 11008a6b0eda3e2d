r"""The fit of a run: its optimizer, schedule, objective and batches."""

from __future__ import annotations

from functools import partial

from pyro_vae import ranks
from pyro_vae.config import components, programs
from pyro_vae.infer import SVI, Fit, Optim, ShardedSVI, schedules
from pyro_vae.runs.run import Run


def make_fit(run: Run) -> Fit:
    """Return the fit of a run, which has not taken a step. Several processes (`ranks`) share its steps.

    Raises:
        DataError: If a batch is larger than the training data.
        UserError: If the objective is invalid, see `programs.build_objective`.
    """
    config, program, batches = run.config, run.program, run.batches()
    assert config.epochs is not None
    total_steps = config.epochs * config.steps_per_epoch(batches.num_images)
    schedule = schedules.per_step(schedules.SCHEDULES[config.schedule], total_steps)
    optimizer, options = components.OPTIMIZERS[config.optimizer]
    optim = Optim(optimizer, {"lr": config.learning_rate, **options}, schedule)
    objective = programs.build_objective(config, batches.num_images)
    shards = config.deterministic_shards
    driver = SVI if ranks.size() == 1 and shards is None else partial(ShardedSVI, shards=shards)
    return Fit(
        driver(program.model, program.guide, optim, objective, execution=run.execution, precision=config.precision),
        batches,
        config.epochs,
        valid=run.observed("valid"),
        patience=config.patience,
        seed=config.seed,
        ema=config.ema,
    )
