r"""Per-image results as netCDF files, which ArviZ reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.evaluate.likelihood.diagnostics import is_arviz_1


def write_netcdf(per_image: Mapping[str, np.ndarray], path: Path, rows: str = "num_particles") -> None:
    """Write per-image results, {name: (N,) or (rows, N)}, as the constant data of an ArviZ file.

    `arviz.from_netcdf(path)` reads it.
    """
    import arviz  # on use, as in `evaluate.likelihood.diagnostics`

    dims = {name: ["image"] if values.ndim == 1 else [rows, "image"] for name, values in per_image.items()}
    groups: Any = {"constant_data": dict(per_image)}
    dataset = arviz.from_dict(groups, dims=dims) if is_arviz_1() else arviz.from_dict(**groups, dims=dims)
    dataset.to_netcdf(str(path))


def read_netcdf(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_netcdf` wrote."""
    import arviz

    group = arviz.from_netcdf(str(path))["constant_data"]
    return {str(name): group[name].to_numpy() for name in group.data_vars}
