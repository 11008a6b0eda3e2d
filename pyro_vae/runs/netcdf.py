r"""Per-image results as netCDF files in the format of ArviZ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.evaluate.likelihood.diagnostics import is_arviz_1


def write_netcdf(per_image: Mapping[str, np.ndarray], path: Path, rows: str = "num_particles") -> None:
    """Write per-image results as the ``constant_data`` group of a file for `arviz.from_netcdf`.

    Args:
        per_image: Arrays by name, shape (N,) or (rows, N) for N images.
        path: File to write.
        rows: Name of the first of two dimensions. The dimension of size N is named ``image``.
    """
    import arviz  # imported on use, as in `evaluate.likelihood.diagnostics`

    dims = {name: ["image"] if values.ndim == 1 else [rows, "image"] for name, values in per_image.items()}
    groups: Any = {"constant_data": dict(per_image)}
    dataset = arviz.from_dict(groups, dims=dims) if is_arviz_1() else arviz.from_dict(**groups, dims=dims)
    dataset.to_netcdf(str(path))


def read_netcdf(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays that `write_netcdf` wrote, by name."""
    import arviz

    group = arviz.from_netcdf(str(path))["constant_data"]
    return {str(name): group[name].to_numpy() for name in group.data_vars}
