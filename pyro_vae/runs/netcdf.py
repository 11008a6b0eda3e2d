r"""Per-image results as netCDF files in the format of ArviZ.

HDF5, in which netCDF is stored, ends the process if it cannot write, e.g. to a full disk, and a file may refer to other
files of the machine. It is therefore given bytes in memory only, and of a file only arrays stored in it are read.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.errors import UserError
from pyro_vae.runs.files import read_regular_file

_GROUP = "constant_data"
_MAX_ENTRIES = 2**26  # of an array: a small compressed file may claim any size
_FILTERS = {1, 2, 3}  # deflate, shuffle and checksum, which need no plugin


def to_netcdf(per_image: Mapping[str, np.ndarray], rows: str = "num_particles") -> bytes:
    """Return per-image results as the content of a file for `arviz.from_netcdf`, in its group ``constant_data``.

    Args:
        per_image: Arrays by name, shape (N,) or (rows, N) for N images.
        rows: Name of the first of two dimensions. The dimension of size N is named ``image``.
    """
    import h5netcdf  # imported on use: few processes write results

    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        group = file.create_group(_GROUP)
        for name, array in per_image.items():
            values = array.astype(np.int8) if array.dtype == bool else array  # netCDF has no booleans
            dims = ("image",) if values.ndim == 1 else (rows, "image")
            for dim, size in zip(dims, values.shape, strict=True):
                if dim not in group.dimensions:
                    group.dimensions[dim] = size
                    group.create_variable(dim, (dim,), np.int64, data=np.arange(size))
            group.create_variable(name, dims, values.dtype, data=values, compression="gzip")
    return buffer.getvalue()


def read_netcdf(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file that holds the result of `to_netcdf`, by name.

    Raises:
        UserError: If the file cannot be read, is damaged, or has other contents than arrays of numbers. The message
            names it.
    """
    import h5py

    try:
        content = read_regular_file(path)
        with h5py.File(io.BytesIO(content), "r") as file:
            group = _hard_linked(file, _GROUP)
            arrays = {str(name): _hard_linked(group, name) for name in group}
            return {name: _plain(array)[()] for name, array in arrays.items() if not h5py.h5ds.is_scale(array.id)}
    except OSError as error:
        reason = error.strerror or "it is not a netCDF file"
        raise UserError(f"{path} cannot be read ({reason}); fit or evaluate the run again.") from error
    except Exception as error:  # HDF5 raises errors of many kinds for untrusted bytes
        reason = str(error) if isinstance(error, _UnsupportedError) else type(error).__name__
        raise UserError(f"{path} is not a file of scores ({reason}); fit or evaluate the run again.") from error


class _UnsupportedError(ValueError):
    """Content of a file that `to_netcdf` does not write."""


def _hard_linked(group: Any, name: str) -> Any:
    """Return an entry of a group that is stored in the same file."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise _UnsupportedError(f"{name!r} is missing, or a link")
    return group[name]


def _plain(array: Any) -> Any:
    """Return an array of numbers if its values are stored in the same file."""
    import h5py

    if not isinstance(array, h5py.Dataset) or array.dtype.kind not in "fiub" or array.ndim not in (1, 2):
        raise _UnsupportedError(f"{array.name!r} is not an array of numbers")
    stored = array.id.get_create_plist()
    filters = {stored.get_filter(index)[0] for index in range(stored.get_nfilters())}
    if array.external or array.is_virtual or not filters <= _FILTERS or math.prod(array.shape) > _MAX_ENTRIES:
        raise _UnsupportedError(f"{array.name!r} is stored elsewhere, too large, or encoded by a plugin")
    return array
