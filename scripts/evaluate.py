"""Evaluate finished runs, and plot their bounds together.

    python scripts/evaluate.py runs/mnist-standard-elbo runs/mnist-standard-iwae50 --num-samples 5000
    python scripts/evaluate.py runs/mnist-standard-elbo --test-images 100 --ais-temperatures 50
    python scripts/evaluate.py runs/mnist-standard-elbo --probe
    python scripts/evaluate.py runs/shapes-standard-elbo --disentanglement

    torchrun --nproc-per-node 4 scripts/evaluate.py runs/mnist-standard-elbo

The results are written to RUN/evaluation/ of each run: summary.json, scores.nc, bounds.csv and figures, of which
bounds.png shows all runs; or to --out, with a folder for each of several runs. Instruments make further measurements.
Their numbers are added to summary.json, and their other files are written to the same folder:
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports, which take seconds, ends the process without a traceback; see `cli.exit_status`.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pyro
import tyro

from pyro_vae import cli, command_line, config, parallel, ranks
from pyro_vae.config.overrides import DataOverrides, OutputFlags, RuntimeOverrides, given
from pyro_vae.errors import UserError
from pyro_vae.evaluate import Scores
from pyro_vae.instruments import INSTRUMENTS, EvaluatedRun, Instrument
from pyro_vae.instruments.comparable import mark_unlike
from pyro_vae.instruments.evaluation import evaluate_run
from pyro_vae.instruments.scores_table import scores_table
from pyro_vae.output import show
from pyro_vae.report import curves, rates
from pyro_vae.runs import Folder, Run, RunFolder, names_of, place_results, raise_if_undrawn
from pyro_vae.runs.load import choose_program, load_config, restore

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
            posterior of each image, with more effort where k-hat is large; laplace is a Gaussian around its mode; local
            is a flow, optimized by Adam. The last three are for continuous latents; otherwise the guide is used. For D
            latent units adaptive takes 16 D + 400 further densities per image, or more. The bounds are those of the
            guide.
    """

    num_samples: config.OptionalCount = None
    proposal: Literal["adaptive", "laplace", "local", "guide"] = "adaptive"


@dataclass(frozen=True)
class ModelFlags:
    """Programs of the runs.

    Args:
        program: Your own programs, path/to/file.py:factory, if runs were fitted with some. Each is used for the runs
            that were fitted with its factory. They must be repeated here, because no code that a run folder names is
            executed.
    """

    program: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="FILE:FACTORY ...", help_behavior_hint="(default: none)")
    ] = ()


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
    model: ModelFlags
    runtime: RuntimeFlags
    output: OutputFlags


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
    parsed: RunArguments = command_line.parse(Arguments, args, _HELP)
    return parsed


def main(arguments: RunArguments) -> None:
    """Evaluate all runs, then write the figures and print the tables that compare them."""
    if not arguments.runs:
        raise UserError("No run folder is given; use python scripts/evaluate.py RUN ...")
    changes = given(arguments.evaluation, arguments.data, arguments.runtime)
    proposal = changes.pop("proposal")
    instruments = [getattr(arguments, name) for name in INSTRUMENTS]
    requested = [instrument for instrument in instruments if instrument.requested]
    folders = [RunFolder(path) for path in arguments.runs]
    programs = choose_program(folders, arguments.model.program)
    runs = [(folder, load_config(folder, changes | own)) for folder, own in zip(folders, programs, strict=True)]
    names = names_of(arguments.runs)
    results = [
        place_results(folder.evaluation, arguments.output.out, name if len(names) > 1 else "")
        for name, folder in zip(names, folders, strict=True)
    ]
    for written in results:
        written.figure_format = arguments.output.figure_format
    names = [name if folder.finished else f"{name} (unfinished)" for name, folder in zip(names, folders, strict=True)]
    scores: dict[str, Scores] = {}
    summaries = {}
    with ranks.process_group(max(settings.device for _, settings in runs)):  # "cuda" if any run needs it
        first = ranks.is_first()
        for name, (folder, settings), written in zip(names, runs, results, strict=True):
            # The run folder may be untrusted: download only to a data_root given on the command line, not to the saved
            # one.
            fitted = parallel.in_turn(partial(restored, folder, settings, download="data_root" in changes))
            with fitted.program.scope():
                run = EvaluatedRun(folder, fitted)
                scores[name], summaries[name] = evaluate_run(run, written, requested, proposal)
        if first:
            show_tables(scores, summaries, requested)
            draw_all(results, scores, summaries)
        for written in results:
            written.unlock()
        parallel.on_first(lambda: raise_if_undrawn(*results))


def restored(folder: RunFolder, settings: config.Config, *, download: bool) -> Run:
    """Seed the global random state, and restore a run."""
    pyro.set_rng_seed(settings.seed)
    return restore(folder, settings, download=download)


def show_tables(scores: dict[str, Scores], summaries: dict[str, dict[str, Any]], requested: list[Instrument]) -> None:
    """Print the tables of all runs."""
    show(scores_table(summaries, scores))
    for instrument in requested:
        if text := instrument.table(summaries):
            show(text)


def draw_all(results: list[Folder], scores: dict[str, Scores], summaries: dict[str, dict[str, Any]]) -> None:
    """Draw the figures that compare the runs, into the folder of results of each."""
    labels = mark_unlike(summaries)
    scores = {labels[name]: value for name, value in scores.items()}
    summaries = {labels[name]: value for name, value in summaries.items()}
    title = next(iter(scores)) if len(scores) == 1 else f"{len(scores)} runs"
    for folder in results:
        if not all(run_scores.reason for run_scores in scores.values()):
            with folder.drawing("bounds"):
                folder.save_figure("bounds", curves.bounds(scores), title)
        if all(numbers["rate"] is not None for numbers in summaries.values()):
            with folder.drawing("rate_distortion"):
                folder.save_figure("rate_distortion", rates.rate_distortion(scores), title)


if __name__ == "__main__":
    with cli.exit_status():
        main(parse(sys.argv[1:]))
