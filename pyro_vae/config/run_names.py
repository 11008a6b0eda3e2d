r"""Default names of runs."""

from __future__ import annotations

from pathlib import Path

from pyro_vae.config.flags import Config
from pyro_vae.config.programs import ignored_by_program

# Fields of which a value other than the default is a word of the name of a run; and numbers, with the word before them.
_NAMED = ("posterior", "likelihood", "net")
_NUMBERED = (("binarize", "binarize-"), ("latent_dim", "latent"), ("seed", "seed"))


def run_name(config: Config) -> str:
    """Return the default name of a run: its data set, its program, and the flags that distinguish models.

    Components and a seed that are not the default are appended, e.g. digits-standard-elbo-iaf-conv-latent8-seed1.
    """
    ignored = ignored_by_program(config)
    program = "" if config.program == "vae" else Path(config.program).name.replace(".py:", "-")
    particles = config.num_particles if config.num_particles > 1 else ""
    words = [Path(config.data).stem, program, "" if "prior" in ignored else config.prior]
    words.append("" if "objective" in ignored else f"{config.objective}{particles}")
    words += [getattr(config, name) for name in _NAMED if getattr(config, name) != getattr(Config, name)]
    words += [
        f"{word}{getattr(config, name)}" for name, word in _NUMBERED if getattr(config, name) != getattr(Config, name)
    ]
    return "-".join(filter(None, words))
