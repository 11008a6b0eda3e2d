"""Score finished runs again, and draw their bounds side by side.

    python scripts/evaluate.py runs/mnist-standard-elbo runs/mnist-standard-iwae50 --num-samples 5000
    python scripts/evaluate.py runs/mnist-standard-elbo --test-images 100 --temperatures 500
    python scripts/evaluate.py runs/mnist-standard-elbo --probe
    python scripts/evaluate.py runs/shapes-standard-elbo --disentanglement

Each run gets RUN/evaluation/ with summary.json, scores.nc, bounds.csv and figures; bounds.png there shows all the
runs. With --temperatures also annealing.nc: annealed importance sampling of the test images, and upper and lower
bounds on as many images that the model has simulated, whose mean gap says how accurate it is. Where the program has one
discrete latent that is summed out and the data have labels, its purity and confusion with these. With --probe how well
classifiers of few labels do on what the program makes of an image. With --disentanglement, for data of known factors,
what each latent unit tells of each, and figures/factors.png.
"""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyro
import tyro

from pyro_vae import cli, config
from pyro_vae.errors import UserError
from pyro_vae.evaluate import Scores
from pyro_vae.instruments import INSTRUMENTS, EvaluatedRun, Instrument
from pyro_vae.instruments.scores import measure_scores, scores_table, write_bounds, write_scores
from pyro_vae.report import curves
from pyro_vae.runs import RunFolder
from pyro_vae.runs.load import load_config, restore
from pyro_vae.runs.summary import num_parameters, write_summary

# Flags that take the place of what the run was fitted with.
_OF_THE_RUN: tuple[str, ...] = (
    "num_samples",
    "test_images",
    "data",
    "program",
    "data_root",
    "seed",
    "device",
    "compile",
)


@dataclass(frozen=True)
class RunArguments:
    """Score finished runs again; None takes what the run was fitted with."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    num_samples: config.OptionalCount = None
    """K of the importance-sampled log-likelihood."""
    test_images: config.OptionalCount = None
    """Test on the first so many images."""
    data: str | None = None
    """Folder of images of your own, where it lies elsewhere now."""
    program: str | None = None
    """path/to/file.py:factory, for runs of a program of your own: no code that a run folder names is run."""
    data_root: Path | None = None
    """Folder of the downloaded data sets; only into one given here is anything downloaded."""
    seed: int | None = None
    """Seed of the draws."""
    device: config.Device = "auto"
    """auto takes CUDA where it is available."""
    compile: Literal["on", "off"] | None = None
    """Read programs by compiled graphs, on or off."""


# With the flags of every instrument, as if they stood among those above.
_FLAGS = [
    (name, Annotated[kind, tyro.conf.arg(name="")], field(default_factory=kind)) for name, kind in INSTRUMENTS.items()
]
Arguments = make_dataclass("Arguments", _FLAGS, bases=(RunArguments,), frozen=True)


def main(arguments: RunArguments) -> None:
    """Run the script."""
    if not arguments.runs:
        raise UserError("No run folder is given: python scripts/evaluate.py RUN...")
    given = vars(arguments)
    changes = {name: given[name] for name in _OF_THE_RUN if given[name] is not None}
    requested = [given[name] for name in INSTRUMENTS if given[name].requested]
    runs = [(RunFolder(path), load_config(RunFolder(path), changes)) for path in arguments.runs]
    scores: dict[str, Scores] = {}
    summaries = {}
    for name, (folder, settings) in zip(names_of(arguments.runs), runs, strict=True):
        pyro.set_rng_seed(settings.seed)
        # A run of somebody else may name any folder, which is read and never written to.
        fitted = restore(folder, settings, download=arguments.data_root is not None)
        with fitted.program.scope():
            scores[name], summaries[name] = evaluate(EvaluatedRun(folder, fitted), requested)
    for folder, _ in runs:
        results = folder.evaluation
        if not all(each.reason for each in scores.values()):
            results.save_figure("bounds", curves.bounds(scores))
        if all(numbers["rate"] is not None for numbers in summaries.values()):
            results.save_figure("rate_distortion", curves.rate_distortion(summaries))
    print(scores_table(summaries, scores))
    for instrument in requested:
        if text := instrument.table(summaries):
            print(text)


def evaluate(run: EvaluatedRun, requested: list[Instrument]) -> tuple[Scores, dict[str, Any]]:
    """Score one run, measure it with the instruments asked for, and write its evaluation folder."""
    fitted, settings, results = run.fitted, run.fitted.config, run.folder.evaluation
    assert settings.num_samples is not None
    for instrument in requested:
        instrument.check(run)
    metrics = run.folder.metrics()
    results.lock()
    compiled = fitted.execution == "compiled"
    scores, numbers = measure_scores(
        fitted.program,
        run.test,
        settings.num_samples,
        density=fitted.density,
        seed=settings.seed,
        compiled=compiled,
        level_bits=fitted.images.level_bits,
    )
    write_scores(results, fitted.program, run.test, scores, settings.seed, fitted.images.pixels.columns)
    write_bounds(results, scores)
    for instrument in requested:
        found = instrument.measure(run, settings.seed)
        found.write(results, instrument.name)
        if found.numbers != {}:
            numbers[instrument.name] = found.numbers
        numbers["reasons"] |= found.reasons
    parameters = num_parameters(fitted.program)
    write_summary(results, settings.to_json(), numbers, parameters=parameters, metrics=metrics)
    results.unlock()
    return scores, numbers


def names_of(paths: tuple[Path, ...]) -> list[str]:
    """Return the shortest endings of the paths that tell them apart."""
    pieces = [path.resolve().parts for path in paths]
    if len(set(pieces)) < len(pieces):
        raise UserError("A run folder is given twice.")
    depth = next(d for d in range(1, 1 + max(map(len, pieces))) if len({p[-d:] for p in pieces}) == len(pieces))
    return ["/".join(p[-depth:]) for p in pieces]


if __name__ == "__main__":
    with cli.exit_status():
        main(tyro.cli(Arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)))
