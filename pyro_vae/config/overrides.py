r"""The flags of scripts that open a finished run: settings that replace those of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from pyro_vae.config.choices import Device, OptionalDirPath
from pyro_vae.report.drawing import FigureFormat


@dataclass(frozen=True)
class DataOverrides:
    """Location of the data. If None, it is that of the run.

    Args:
        data: New path of your own data, if they have moved.
        data_root: Folder of the named data sets. Missing ones are downloaded only if it is given.
    """

    data: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    data_root: OptionalDirPath = None


@dataclass(frozen=True)
class ModelOverrides:
    """Program of the run.

    Args:
        program: Your own program, path/to/file.py:factory, if the run was fitted with one. It must be repeated here,
            because no code that a run folder names is executed.
    """

    program: Annotated[str | None, tyro.conf.arg(metavar="FILE:FACTORY")] = None


@dataclass(frozen=True)
class RuntimeOverrides:
    """Randomness, device and execution.

    Args:
        seed: Random seed for sampling. If None, it is that of the run.
        device: Device to run on. auto uses CUDA if it is available, and the CPU otherwise.
    """

    seed: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    device: Device = "auto"


@dataclass(frozen=True)
class OutputFlags:
    """Results.

    Args:
        out: Folder for the results, e.g. of a run that cannot be written to; with several runs, it contains a folder
            for each. If None, they are written to a folder in each run.
        figure_format: Format of the figures.
    """

    out: OptionalDirPath = None
    figure_format: FigureFormat = "png"


def given(*groups: Any) -> dict[str, Any]:
    """Return the fields of groups of overrides that are not None."""
    return {name: value for group in groups for name, value in vars(group).items() if value is not None}
