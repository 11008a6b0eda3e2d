"""Draw what a finished run generates.

    python scripts/sample.py runs/digits-standard-elbo

writes RUN/samples/: prior.png and reconstructions.png (the mean of p(x|z) beside a draw from it), traversals.png and
.gif (one latent unit moved at a time), interpolations.png, completions.png (the lower half of an image given the upper
one), and of two latent units manifold.png and codes.png; of a table prior.png and reconstructions.png. What a program
does not have is left out, with a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyro
import tyro

from pyro_vae import cli, config
from pyro_vae.errors import UserError
from pyro_vae.instruments import samples
from pyro_vae.instruments.rows import write_rows
from pyro_vae.report.images import are_pictures
from pyro_vae.runs import RunFolder, load_run
from pyro_vae.trace import Batch

_OF_THE_RUN = ("data", "program", "data_root", "seed", "device")


@dataclass(frozen=True)
class Arguments:
    """Draw what a finished run generates; None takes what the run was fitted with."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    data: str | None = None
    """Folder of images of your own, where it lies elsewhere now."""
    program: str | None = None
    """path/to/file.py:factory, for a run of a program of your own: no code that a run folder names is run."""
    data_root: Path | None = None
    """Folder of the downloaded data sets; only into one given here is anything downloaded."""
    seed: int | None = None
    """Seed of the draws."""
    device: config.Device = "auto"
    """auto takes CUDA where it is available."""


def main(arguments: Arguments) -> None:
    """Run the script."""
    folder, asked = RunFolder(arguments.run), vars(arguments)
    changes = {name: asked[name] for name in _OF_THE_RUN if asked[name] is not None}
    fitted = load_run(arguments.run, download=arguments.data_root is not None, **changes)
    settings = fitted.config
    pyro.set_rng_seed(settings.seed)
    results, program, x = folder.samples, fitted.program, fitted.observed("test")
    pixels = Batch.of(x).x
    if pixels.dim() == 2:
        results.lock()
        write_rows(results, program, Batch.of(x), fitted.images.pixels.columns, settings.seed, "prior")
        print(f"written to {results.path}")
        return
    if not are_pictures(pixels):
        shape = tuple(pixels.shape[1:])
        raise UserError(
            f"Data of shape {shape} cannot be drawn; it must be (columns,), (height, width) or (3, height, width)."
        )
    labels = fitted.labels
    classes = None if labels is None else labels.test[:, 0].cpu().numpy()
    results.lock()
    samples.write_prior(results, program, x, settings.seed)
    samples.write_reconstructions(results, program, x, settings.seed)
    samples.write_latents(results, program, x, classes, settings.seed)
    samples.write_completions(results, program, x, fitted.no_density_reason, settings.seed)
    print(f"written to {results.path}")


if __name__ == "__main__":
    with cli.exit_status():
        main(tyro.cli(Arguments, description=__doc__))
