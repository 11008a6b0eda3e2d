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

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyro
import tyro

from pyro_vae import cli, config
from pyro_vae.errors import UserError
from pyro_vae.evaluate import Annealing, Scores, calibration_ranks
from pyro_vae.report import (
    factor_table,
    measure,
    measure_annealing,
    measure_classes,
    measure_factors,
    measure_slack,
    plots,
    probe_table,
    table,
    write_bounds,
    write_probe,
    write_results,
)
from pyro_vae.runs import Run, RunFolder
from pyro_vae.runs.load import load_config, rebuild, restore
from pyro_vae.text import printable
from pyro_vae.trace import Batch

_OF_DENSITIES = ("temperatures", "local_steps", "calibrate")
_RANKED_AMONG = 99  # draws from the guide
_CLASSIFIED_IMAGES = 5000  # of training, to which classifiers of factors are fitted, at most
# Flags that take the place of what the run was fitted with.
_OF_THE_RUN: tuple[str, ...] = ("num_samples", "test_images", "program", "data_root", "seed", "device", "compile")


@dataclass(frozen=True)
class Arguments:
    """Score finished runs again; None takes what the run was fitted with."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    num_samples: config.OptionalCount = None
    """K of the importance-sampled log-likelihood."""
    test_images: config.OptionalCount = None
    """Test on the first so many images."""
    program: str | None = None
    """path/to/file.py:factory, for runs of a program of your own: no code that a run folder names is run."""
    data_root: Path | None = None
    """Folder of the downloaded data sets; only into one given here is anything downloaded."""
    temperatures: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Anneal over so many temperatures (0: do not anneal)."""
    chains: config.Count = 16
    """Chains of each image."""
    leapfrogs: config.Count = 5
    """Leapfrog steps between two temperatures."""
    anneal_from: Literal["guide", "prior"] = "guide"
    """Where the path begins."""
    path: Literal["sigmoid", "linear"] = "sigmoid"
    """How the temperatures are spaced."""
    local_steps: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Optimise a posterior for each test image over so many steps, to see where the ELBO's slack is (0: do not)."""
    calibrate: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Rank the latents of so many simulated images among draws from the guide (0: do not)."""
    probe: bool = False
    """Predict the first label of the test images from the posterior means and from pixels, by classifiers of 10, 100,
    1,000 and all labels; and fine-tune the encoder."""
    disentanglement: bool = False
    """Score the latent units against the known factors of the data, where it has several."""
    seed: int | None = None
    """Seed of the draws."""
    device: config.Device = "auto"
    """auto takes CUDA where it is available."""
    compile: Literal["on", "off"] | None = None
    """Read programs by compiled graphs, on or off."""


def main(arguments: Arguments) -> None:
    """Run the script."""
    if not arguments.runs:
        raise UserError("No run folder is given: python scripts/evaluate.py RUN...")
    for name in _OF_DENSITIES:
        if getattr(arguments, name) < 0:
            raise UserError(f"{config.flag(name)} is {getattr(arguments, name)}; it must be 0 or more.")
    settings_of_annealing(arguments)  # refused before anything is scored
    asked = vars(arguments)
    changes = {name: asked[name] for name in _OF_THE_RUN if asked[name] is not None}
    runs = [(RunFolder(path), load_config(RunFolder(path), changes)) for path in arguments.runs]
    names = names_of(arguments.runs)
    scores: dict[str, Scores] = {}
    summaries = {}
    for name, (folder, settings) in zip(names, runs, strict=True):
        pyro.set_rng_seed(settings.seed)
        # A run of somebody else may name any folder, which is read and never written to.
        fitted = restore(folder, settings, download=arguments.data_root is not None)
        with fitted.program.scope():
            scores[name], summaries[name] = evaluate(folder, fitted, arguments)
    for folder, _ in runs:
        results = folder.evaluation
        if not all(each.reason for each in scores.values()):
            results.save_figure("bounds", plots.bounds(scores))
        if all(numbers["rate"] is not None for numbers in summaries.values()):
            results.save_figure("rate_distortion", plots.rate_distortion(summaries))
    print(table(summaries, scores))
    for name, numbers in summaries.items():
        if found := numbers.get("classes"):
            what = "accuracy" if "accuracy" in found else "purity"
            print(f"{printable(name)}: {what} of the classes {found[what]:.3f} +- {found[f'{what}_se']:.3f}")
    if arguments.probe:
        print("\n" + probe_table(summaries))
    if arguments.disentanglement:
        print(factor_table({name: numbers["disentanglement"] for name, numbers in summaries.items()}))


def settings_of_annealing(arguments: Arguments, compiled: bool = False) -> Annealing | None:
    """Return how to anneal, or None."""
    if not arguments.temperatures:
        return None
    return Annealing(
        arguments.chains, arguments.temperatures, arguments.leapfrogs, arguments.anneal_from, arguments.path, compiled
    )


def names_of(paths: tuple[Path, ...]) -> list[str]:
    """Return the shortest endings of the paths that tell them apart."""
    pieces = [path.resolve().parts for path in paths]
    if len(set(pieces)) < len(pieces):
        raise UserError("A run folder is given twice.")
    depth = next(d for d in range(1, 1 + max(map(len, pieces))) if len({p[-d:] for p in pieces}) == len(pieces))
    return ["/".join(p[-depth:]) for p in pieces]


def evaluate(folder: RunFolder, fitted: Run, arguments: Arguments) -> tuple[Scores, dict[str, Any]]:
    """Score one run and write its evaluation folder."""
    settings = fitted.config
    assert settings.num_samples is not None
    for name in _OF_DENSITIES:
        if fitted.lacks and getattr(arguments, name):
            raise UserError(f"{config.flag(name)} is of densities, and {folder.path} has none: {fitted.lacks}.")
    labels = fitted.labels
    if arguments.disentanglement and (labels is None or len(labels.names) < 2):
        raise UserError(f"{folder.path}: --disentanglement needs data of several known factors, as shapes have.")
    results = folder.evaluation
    results.lock()
    program, test = fitted.program, fitted.observed("test")
    compiled = settings.graph == "compiled"
    scores, numbers = measure(
        program, test, settings.num_samples, density=fitted.density, seed=settings.seed, compiled=compiled
    )
    write_results(results, program, test, scores, settings.seed)
    write_bounds(results, scores)
    if annealing := settings_of_annealing(arguments, compiled):
        per_image, numbers["annealing"] = measure_annealing(program, test, annealing, settings.seed)
        results.write_per_image("annealing", per_image)
    if arguments.local_steps:
        per_image, numbers["local"] = measure_slack(program, test, arguments.local_steps, settings.seed)
        results.write_per_image("local", per_image)
    if arguments.calibrate:
        like = Batch.of(test).expand(arguments.calibrate)
        ranks = calibration_ranks(program.model, program.guide, like, _RANKED_AMONG, seed=settings.seed)
        results.write_per_image("calibration", {"ranks": ranks.T}, rows="unit")
        results.save_figure("calibration", plots.calibration(ranks, _RANKED_AMONG))
    if labels is not None and len(labels.names) == 1 and not fitted.lacks:
        classes = measure_classes(program, test, labels.test[:, 0].cpu().numpy(), settings.seed)
        if classes:
            numbers["classes"] = classes
    if arguments.probe:
        untrained = rebuild(folder, settings, fitted.images)  # with the weights that the fit began with
        x = {"train": fitted.observed("train"), "test": test}
        numbers["probe"], reasons = write_probe(results, program, untrained, x, labels, settings.seed)
        numbers["reasons"] |= reasons
    if arguments.disentanglement and labels:
        some = slice(_CLASSIFIED_IMAGES)
        train = Batch.of(fitted.observed("train"))[some]
        halves = (train, labels.train[some]), (test, labels.test)
        numbers["disentanglement"], figure = measure_factors(program, *halves, labels.names, settings.seed)
        results.save_figure("factors", figure)
    results.write_json("summary.json", {"config": settings.to_json(), **numbers})
    results.release()
    return scores, numbers


if __name__ == "__main__":
    with cli.exit_status():
        main(tyro.cli(Arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,)))
