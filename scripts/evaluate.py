"""Evaluate finished runs, and plot their bounds together.

    python scripts/evaluate.py runs/mnist-standard-elbo runs/mnist-standard-iwae50 --num-samples 5000
    python scripts/evaluate.py runs/mnist-standard-elbo --test-images 100 --ais-temperatures 50
    python scripts/evaluate.py runs/mnist-standard-elbo --probe
    python scripts/evaluate.py runs/shapes-standard-elbo --disentanglement

    torchrun --nproc-per-node 4 scripts/evaluate.py runs/mnist-standard-elbo

The results are written to RUN/evaluation/ of each run: summary.json, scores.nc, bounds.csv and figures, of which
bounds.png shows all runs. Instruments make further measurements. Their numbers are added to summary.json, and their
other files are written to the same folder:
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pyro
import tyro

from pyro_vae import cli, config, ranks
from pyro_vae.config.overrides import DataOverrides, ModelOverrides, RuntimeOverrides, given
from pyro_vae.errors import UserError
from pyro_vae.evaluate import Scores
from pyro_vae.instruments import INSTRUMENTS, EvaluatedRun, Instrument
from pyro_vae.instruments.scores import measure_scores, write_bounds, write_scores
from pyro_vae.instruments.scores_table import scores_table
from pyro_vae.report import curves
from pyro_vae.runs import Run, RunFolder
from pyro_vae.runs.load import load_config, restore
from pyro_vae.runs.summary import num_parameters, write_summary

# Earlier names of flags, which are still accepted.
_RENAMED = {
    "--temperatures": "--ais-temperatures",
    "--anneal-from": "--ais-start",
    "--path": "--temperature-schedule",
    "--local-steps": "--local-vi-steps",
    "--calibrate": "--sbc-images",
}


@dataclass(frozen=True)
class DataFlags(DataOverrides):
    """Location and number of the test images. If None, as in the run.

    Args:
        test_images: Use only the first N test images.
    """

    test_images: config.OptionalCount = None


@dataclass(frozen=True)
class EvaluationFlags:
    """Scores of the test images.

    Args:
        num_samples: Number K of importance samples per image for log p(x). If None, as in the run.
        proposal: Distribution of the samples that estimate log p(x). guide is q(z|x); adaptive is fitted to the
            posterior of each image, with more effort where k-hat is large; laplace is a Gaussian around its mode. The
            last two are for continuous latents; otherwise the guide is used. For D latent units adaptive takes 16 D +
            400 further densities per image, or more. The bounds are those of the guide.
    """

    num_samples: config.OptionalCount = None
    proposal: Literal["adaptive", "laplace", "guide"] = "adaptive"


@dataclass(frozen=True)
class RuntimeFlags(RuntimeOverrides):
    """Randomness, device and execution.

    Args:
        compile: Compile the evaluation of log-densities, on or off. If None, as in the run.
    """

    compile: Annotated[Literal["on", "off"] | None, tyro.conf.arg(metavar="{on,off}")] = None


@dataclass(frozen=True)
class RunArguments:
    """Evaluate finished runs, and plot their bounds together.

    Args:
        runs: Run folders.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...", help_behavior_hint="")]
    evaluation: EvaluationFlags
    data: DataFlags
    model: ModelOverrides
    runtime: RuntimeFlags


# The flags of each instrument are a group with the name of the instrument.
_FLAGS = [
    (name, Annotated[kind, tyro.conf.arg(help="")], field(default_factory=kind)) for name, kind in INSTRUMENTS.items()
]
Arguments = tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)(
    make_dataclass("Arguments", _FLAGS, bases=(RunArguments,), frozen=True)
)
_HELP = "\n".join(
    [__doc__, *(f"    {name:17}{str(kind.__doc__).splitlines()[0]}" for name, kind in INSTRUMENTS.items())]
)


def parse(words: list[str]) -> RunArguments:
    """Parse the words of a command line; earlier names of flags are accepted."""
    flags = [word.partition("=") for word in words]
    args = [_RENAMED.get(flag.replace("_", "-"), flag) + equals + value for flag, equals, value in flags]
    return tyro.cli(Arguments, args=args, description=_HELP)


def main(arguments: RunArguments) -> None:
    """Evaluate all runs, then write the figures and print the tables that compare them."""
    if not arguments.runs:
        raise UserError("No run folder is given; use python scripts/evaluate.py RUN ...")
    changes = given(arguments.evaluation, arguments.data, arguments.model, arguments.runtime)
    proposal = changes.pop("proposal")
    instruments = [getattr(arguments, name) for name in INSTRUMENTS]
    requested = [instrument for instrument in instruments if instrument.requested]
    runs = [(RunFolder(path), load_config(RunFolder(path), changes)) for path in arguments.runs]
    names = names_of(arguments.runs)
    scores: dict[str, Scores] = {}
    summaries = {}
    with ranks.process_group(max(settings.device for _, settings in runs)):  # "cuda" if any run needs it
        first = ranks.is_first()
        for name, (folder, settings) in zip(names, runs, strict=True):
            # The run folder may be untrusted: download only to a data_root given on the command line, not to the saved
            # one.
            fitted = ranks.in_turn(partial(restored, folder, settings, download="data_root" in changes))
            with fitted.program.scope():
                scores[name], summaries[name] = evaluate(EvaluatedRun(folder, fitted), requested, proposal)
    if first:
        report(runs, scores, summaries, requested)


def restored(folder: RunFolder, settings: config.Config, *, download: bool) -> Run:
    """Seed the global random state, and restore a run."""
    pyro.set_rng_seed(settings.seed)
    return restore(folder, settings, download=download)


def report(
    runs: list[tuple[RunFolder, config.Config]],
    scores: dict[str, Scores],
    summaries: dict[str, dict[str, Any]],
    requested: list[Instrument],
) -> None:
    """Write the figures that compare runs to the evaluation folder of each, and print the tables."""
    for folder, _ in runs:
        results = folder.evaluation
        if not all(run_scores.reason for run_scores in scores.values()):
            results.save_figure("bounds", curves.bounds(scores))
        if all(numbers["rate"] is not None for numbers in summaries.values()):
            results.save_figure("rate_distortion", curves.rate_distortion(summaries))
    print(scores_table(summaries, scores))
    for instrument in requested:
        if text := instrument.table(summaries):
            print(text)


def evaluate(run: EvaluatedRun, requested: list[Instrument], proposal: str) -> tuple[Scores, dict[str, Any]]:
    """Score one run, run the requested instruments on it, and write its evaluation folder.

    Several processes share out the images. Only the first one writes.
    """
    fitted, settings, results = run.fitted, run.fitted.config, run.folder.evaluation
    assert settings.num_samples is not None
    for instrument in requested:
        ranks.on_first(partial(instrument.check, run))
    metrics = run.folder.metrics()
    ranks.on_first(results.lock)
    compiled = fitted.execution == "compiled"
    scores, numbers = measure_scores(
        fitted.program,
        run.test,
        settings.num_samples,
        density=fitted.density,
        seed=settings.seed,
        compiled=compiled,
        level_bits=fitted.images.level_bits,
        proposal=proposal,
    )
    columns = fitted.images.pixels.columns
    ranks.on_first(lambda: write_scores(results, fitted.program, run.test, scores, settings.seed, columns))
    ranks.on_first(lambda: write_bounds(results, scores))
    for instrument in requested:
        result = instrument.measure(run, settings.seed)
        ranks.on_first(partial(result.write, results, instrument.name))
        if result.numbers != {}:
            numbers[instrument.name] = result.numbers
        numbers["reasons"] |= result.reasons
    parameters = num_parameters(fitted.program)
    ranks.on_first(lambda: write_summary(results, settings.to_json(), numbers, parameters=parameters, metrics=metrics))
    results.unlock()
    return scores, numbers


def names_of(paths: tuple[Path, ...]) -> list[str]:
    """Return the shortest suffixes of the paths, of equal depth, that are all different."""
    pieces = [path.resolve().parts for path in paths]
    if len(set(pieces)) < len(pieces):
        raise UserError("A run folder is given twice; give each one once.")
    depth = next(d for d in range(1, 1 + max(map(len, pieces))) if len({p[-d:] for p in pieces}) == len(pieces))
    return ["/".join(p[-depth:]) for p in pieces]


if __name__ == "__main__":
    with cli.exit_status():
        main(parse(sys.argv[1:]))
