"""Fit a VAE, score it on the test images, and write one run folder.

python scripts/fit.py                                             the embedded digits, about a minute
python scripts/fit.py --data mnist --data-root DIR --epochs 20    real MNIST
python scripts/fit.py --prior mixture --objective iwae --num-particles 5
python scripts/fit.py --program my_program.py:factory             a program of your own
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyro
import torch
import tyro
from tqdm import tqdm

from pyro_vae import cli, config, data, programs
from pyro_vae.infer import SVI, Fit, Optim, checkpoint, schedules
from pyro_vae.report import RunFolder, measure, plots, table, write_results
from pyro_vae.trace import check_domain, is_density

_CHECKPOINTS_PER_RUN = 20


@dataclass(frozen=True)
class Arguments:
    """Fit a VAE as a Pyro program, score it on the test images, and write one run folder."""

    config: Annotated[config.Config, tyro.conf.arg(name="")]
    out: Path | None = None
    """Run folder (None: runs/<data>-<prior>-<objective>). An existing one is refused."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint."""
    overwrite: bool = False
    """Replace the run in --out."""


def main(arguments: Arguments) -> None:
    """Run the script."""
    settings = arguments.config.resolved()
    particles = settings.num_particles if settings.num_particles > 1 else ""
    own = "" if settings.program == "vae" else Path(settings.program).name.replace(".py:", "-") + "-"
    name = f"{settings.data}-{own}{settings.prior}-{settings.objective}{particles}"
    folder = RunFolder(arguments.out or Path("runs") / name)
    if arguments.resume and folder.finished:
        folder.check_same(settings.to_json())
        print(f"{folder.path} is finished; nothing to resume.")
        return
    images = config.load_images(settings)
    pyro.set_rng_seed(settings.seed)
    program = programs.build(settings, images)
    density = is_density(program.model, program.guide, images.train[:1] / 255)
    look = config.look(settings, density)
    batches = data.Batches(images.train, settings.batch_size, settings.seed, look)
    valid, test = (data.observe_once(split, look) for split in (images.valid, images.test))
    check_domain(program.model, program.guide, test[:100])
    assert settings.epochs is not None
    assert settings.num_samples is not None
    total_steps = settings.epochs * settings.epoch_steps(batches.num_images)
    schedule = schedules.over(schedules.SCHEDULES[settings.schedule], total_steps)
    optim = Optim(torch.optim.Adam, {"lr": settings.learning_rate, "fused": True}, schedule)
    objective = programs.build_objective(settings, batches.num_images)
    fit = Fit(
        SVI(program.model, program.guide, optim, objective, graph=settings.graph, precision=settings.precision),
        batches,
        settings.epochs,
        valid=valid,
        patience=settings.patience,
        seed=settings.seed,
    )
    folder.claim(settings.to_json(), resume=arguments.resume, overwrite=arguments.overwrite)
    if arguments.resume and folder.checkpoints():
        fit.load_state_dict(checkpoint.load(folder.checkpoints()[-1]))
    folder.keep_metrics(fit.epoch)
    train(fit, folder, settings.epochs)

    scores, numbers = measure(
        program, test, settings.num_samples, density=density, seed=settings.seed, compiled=settings.graph == "compiled"
    )
    write_results(folder, program, test, scores, settings.seed)
    metrics = folder.metrics()
    folder.save_figure("learning_curve", plots.learning_curve(metrics))
    folder.save_figure("bounds", plots.bounds({folder.path.name: scores}))
    parameters = sum(p.numel() for p in fit.svi.optim.params.values())
    numbers |= {
        "parameters": parameters,
        "epochs": len(metrics),
        "train_seconds": sum(line["seconds"] for line in metrics),
    }
    folder.write_json("summary.json", {"config": settings.to_json(), **numbers})
    print(table({folder.path.name: numbers}, {folder.path.name: scores}))
    print(f"\nwritten to {folder.path}")
    if settings.data == "digits":
        print("real MNIST: python scripts/fit.py --data mnist --data-root data --epochs 20")


def train(fit: Fit, folder: RunFolder, epochs: int) -> None:
    """Run the epochs that remain; write metrics after each and a checkpoint after every twentieth of them."""
    every = math.ceil(epochs / _CHECKPOINTS_PER_RUN)
    with tqdm(total=epochs, initial=fit.epoch, desc="fit", unit="epoch", disable=None, leave=False) as bar:
        for epoch in fit:
            folder.append_metrics(epoch.as_dict())
            if fit.finished or fit.epoch % every == 0:
                checkpoint.save(folder.checkpoint_path(fit.epoch), fit.state_dict())
                folder.drop_old_checkpoints()
            bar.update()
            bar.set_postfix_str(f"validation ELBO {epoch.valid_elbo:.2f} nats")


if __name__ == "__main__":
    with cli.exit_status():
        main(tyro.cli(Arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)))
