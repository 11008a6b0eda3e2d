"""Draw samples, reconstructions, traversals and completions of a finished run.

    python scripts/sample.py runs/digits-standard-elbo

The figures are written to RUN/samples/, or --out: prior.png and reconstructions.png (means of p(x|z) and draws from
it), traversals.png and traversals.gif (one latent unit varies at a time), interpolations.png, completions.png (the
lower half of images given the upper half), and for two latent units manifold.png and codes.png. A table has only
prior.png and reconstructions.png. Figures that do not apply to the program are skipped with a message.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports, which take seconds, ends the process without a traceback; see `cli.exit_status`.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyro
import tyro

from pyro_vae import cli, torchrun
from pyro_vae.command_line import parse
from pyro_vae.config.overrides import DataOverrides, ModelOverrides, OutputFlags, RuntimeOverrides, given
from pyro_vae.errors import UserError
from pyro_vae.instruments import completions, samples
from pyro_vae.instruments.rows import write_rows
from pyro_vae.output import show
from pyro_vae.report.images import are_pictures
from pyro_vae.runs import Folder, RunFolder, load_run, place_results, raise_if_undrawn
from pyro_vae.text import printable
from pyro_vae.trace import Batch


@tyro.conf.configure(tyro.conf.OmitArgPrefixes)
@dataclass(frozen=True)
class Arguments:
    """Draw samples, reconstructions, traversals and completions of a finished run.

    Args:
        run: Run folder.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    data: DataOverrides
    model: ModelOverrides
    runtime: RuntimeOverrides
    output: OutputFlags


def main(arguments: Arguments) -> None:
    """Load the run and write the figures that apply to its data and program."""
    folder, changes = RunFolder(arguments.run), given(arguments.data, arguments.model, arguments.runtime)
    fitted = load_run(arguments.run, download="data_root" in changes, **changes)
    settings = fitted.config
    pyro.set_rng_seed(settings.seed)
    results, program, x = place_results(folder.samples, arguments.output.out), fitted.program, fitted.observed("test")
    results.figure_format = arguments.output.figure_format
    pixels = Batch.of(x).x
    if pixels.dim() == 2:
        results.lock()
        results.clear()
        write_rows(results, program, Batch.of(x), fitted.images.pixels.columns, settings.seed, "prior")
        finish(results)
        return
    if not are_pictures(pixels):
        shape = tuple(pixels.shape[1:])
        raise UserError(
            f"Data of shape {shape} cannot be shown; it must be (columns,), (height, width) or (3, height, width)."
        )
    labels = fitted.labels
    classes = None if labels is None else labels.test[:, 0].cpu().numpy()
    results.lock()
    results.clear()
    samples.write_prior(results, program, x, settings.seed)
    samples.write_reconstructions(results, program, x, settings.seed)
    samples.write_latents(results, program, x, classes, settings.seed)
    completions.write_completions(results, program, x, fitted.no_density_reason, settings.seed)
    finish(results)


def finish(results: Folder) -> None:
    """Say where the figures are, and raise if some could not be drawn."""
    show(f"written to {printable(str(results.path))}")
    results.unlock()
    raise_if_undrawn(results)


if __name__ == "__main__":
    with cli.exit_status():
        torchrun.refuse("sample.py")
        main(parse(Arguments, sys.argv[1:], __doc__))
